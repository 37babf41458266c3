"""A sweep: each run as it would be alone, in a folder like any other; killed, it goes on to the same bits."""

import contextlib
import json
import signal

import jax
import numpy as np
import pytest

from nanogpt_jax import plot, sweep
from nanogpt_jax.cli import train
from nanogpt_jax.run import hosts, many
from nanogpt_jax.run.curves import by_recipe, read_all
from nanogpt_jax.run.faults import Stopped
from nanogpt_jax.run.sweep_plan import read_plan
from nanogpt_jax.run.sweep_report import Row, rows
from tests.helpers.commands import metrics_of
from tests.helpers.refusals import refusal
from tests.helpers.states import assert_same_bits, state_of
from tests.helpers.tiny import TINY, prepare_tiny

VARIED = ("--learning_rate=1e-2,3e-3", "--seed=0..1")
NAMES = [f"learning_rate={rate},seed={seed}" for rate in (0.01, 0.003) for seed in (0, 1)]
LENGTH = "--max_iters=40"


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """JAX has looked for its devices, so that the command does not make one of every core for all tests after these."""
    jax.devices()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return prepare_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def flags(data_dir):
    return [flag for flag in (*TINY, f"--data_dir={data_dir}", LENGTH) if "learning_rate" not in flag]


@pytest.fixture(scope="module")
def made(flags, tmp_path_factory):
    """A sweep that has ended: two rates, two seeds."""
    out_dir = tmp_path_factory.mktemp("made") / "sweep"
    assert sweep.main([*flags, *VARIED, f"--out_dir={out_dir}"]) == 0
    return out_dir


def losses_of(run):
    return {(line["step"], line["split"]): line["loss"] for line in metrics_of(run)}


@pytest.mark.parametrize("name", NAMES)
def test_each_run_is_what_it_is_alone(made, flags, tmp_path, name):
    own = [f"--{part}" for part in name.split(",")]
    assert train.main([*flags, *own, f"--out_dir={tmp_path / 'alone'}"]) == 0
    alone, swept = losses_of(tmp_path / "alone"), losses_of(made / name)
    assert alone.keys() == swept.keys()
    for key, loss in alone.items():
        assert swept[key] == pytest.approx(loss, abs=1e-5), key
    there, here = (json.loads((folder / "config.json").read_text()) for folder in (made / name, tmp_path / "alone"))
    assert {**there["settings"], "out_dir": ""} == {**here["settings"], "out_dir": ""}
    assert (made / name / "loss.png").exists()


def test_a_run_of_a_sweep_goes_on_alone(made, flags, tmp_path, capsys):
    assert train.main([f"--init_from={made / NAMES[0]}", "--eval_only", *flags]) == 0
    assert f"final val loss {losses_of(made / NAMES[0])[40, 'val_whole']:.4f}" in capsys.readouterr().out


def test_the_table_tells_means_errors_and_differences(made):
    plan = read_plan(made)
    losses = np.array([losses_of(made / name)[40, "val_whole"] for name in NAMES]).reshape(2, 2)
    assert [run.loss for run in plan.runs] == pytest.approx(losses.ravel())
    least = int(losses.mean(axis=1).argmin())
    for i, (row, rate) in enumerate(zip(rows(plan), (0.01, 0.003), strict=True)):
        assert (row.varied, row.runs, row.failed) == ({"learning_rate": rate}, 2, 0)
        assert row.mean == pytest.approx(losses[i].mean())
        assert row.error == pytest.approx(losses[i].std(ddof=1) / np.sqrt(2))
        assert row.best == losses[i].min()
        differences = losses[i] - losses[least]
        if i != least:
            assert row.over_least == pytest.approx(differences.mean())
            assert row.over_error == pytest.approx(differences.std(ddof=1) / np.sqrt(2))
    document = json.loads((made / "sweep.json").read_text())
    assert [Row(**row) for row in document["facts"]["table"]] == rows(plan)
    assert [run["name"] for run in document["runs"]] == NAMES and (made / "sweep.png").exists()


def test_runs_that_differ_in_the_seed_alone_are_a_band(made, tmp_path):
    bands = by_recipe(read_all([made / name for name in NAMES]))
    assert {name: len(band) for name, band in bands.items()} == {
        "learning_rate=0.01, 2 seeds": 2, "learning_rate=0.003, 2 seeds": 2,
    }  # fmt: skip
    assert plot.main([*(str(made / name) for name in NAMES), f"--png={tmp_path / 'all.png'}"]) == 0


@pytest.mark.parametrize("after", [1, 15, 30, 46])
def test_a_sweep_that_is_stopped_goes_on_to_the_same_bits(made, flags, tmp_path, monkeypatch, capsys, after):
    calls = iter(range(10**6))

    def stop(received):
        if next(calls) == after:
            raise Stopped(signal.SIGTERM)

    out_dir = tmp_path / "out sweep"
    with monkeypatch.context() as patch:
        patch.setattr(hosts, "stop_if_told", stop)
        assert sweep.main([*flags, *VARIED, f"--out_dir={out_dir}"]) == 143
    assert f"--init_from=resume '--out_dir={out_dir}'" in capsys.readouterr().out
    assert sweep.main(["--init_from=resume", f"--out_dir={out_dir}", "--accelerator=cpu"]) == 0
    for name in NAMES:
        assert_same_bits(state_of(out_dir / name), state_of(made / name))
        assert losses_of(out_dir / name) == losses_of(made / name)


def test_runs_that_were_saved_at_different_steps_go_on_each_from_its_own(made, flags, tmp_path, monkeypatch):
    """As after a kill between two saves: one run has a checkpoint that the other lacks."""
    out_dir, saves = tmp_path / "sweep", iter(range(10**6))
    whole = many.Member.failing_alone

    @contextlib.contextmanager
    def killed(member):
        with whole(member):
            yield
        if member.progress.run.step == 20 and member.progress.needs_saving and next(saves) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(many.Member, "failing_alone", killed)
        sweep.main([*flags, *VARIED, f"--out_dir={out_dir}"])
    saved = [(out_dir / name / "checkpoints" / "20").exists() for name in NAMES]
    assert any(saved) and not all(saved)
    assert sweep.main(["--init_from=resume", f"--out_dir={out_dir}"]) == 0
    for name in NAMES:
        assert_same_bits(state_of(out_dir / name), state_of(made / name))


def test_runs_that_run_out_of_patience_end_where_they_would_alone(flags, tmp_path):
    impatient = [*flags, "--patience=1", "--eval_interval=2", "--eval_iters=1", "--warmup_iters=0"]
    assert sweep.main([*impatient, "--learning_rate=1e-2,0.5", f"--out_dir={tmp_path / 'sweep'}"]) == 0
    for rate in ("0.01", "0.5"):
        assert train.main([*impatient, f"--learning_rate={rate}", f"--out_dir={tmp_path / rate}"]) == 0
    swept, alone = ([losses_of(folder / name).keys() for name in names] for folder, names in (
        (tmp_path / "sweep", ("learning_rate=0.01", "learning_rate=0.5")), (tmp_path, ("0.01", "0.5")),
    ))  # fmt: skip
    assert swept == alone and swept[0] != swept[1]


def test_runs_begin_at_the_weights_of_another_and_must_fit_them(made, flags, tmp_path):
    weights = f"--init_from={made / NAMES[0]}"
    assert sweep.main([*flags, weights, "--seed=0,1", "--max_iters=2", f"--out_dir={tmp_path / 'sweep'}"]) == 0
    first = [losses_of(tmp_path / "sweep" / f"seed={seed}")[0, "train"] for seed in (0, 1)]
    assert max(first) < losses_of(made / NAMES[0])[5, "train"]
    line = refusal(sweep.main, [*flags, weights, "--seed=0,1", "--n_layer=2", f"--out_dir={tmp_path / 'no'}"])
    assert "n_layer=2 does not fit the weights" in line and not (tmp_path / "no").exists()


def test_a_run_that_fails_ends_named_and_the_others_go_on(flags, tmp_path, capsys):
    assert sweep.main([*flags, "--learning_rate=1e-2,1e30", "--grad_clip=0", f"--out_dir={tmp_path / 'sweep'}"]) == 0
    out = capsys.readouterr().out
    assert "learning_rate=1e+30 has failed, and ends: iteration" in out
    good, bad = read_plan(tmp_path / "sweep").runs
    assert (good.state, bad.state, bad.loss) == ("done", "failed", None) and "not finite" not in str(good.why)
    assert losses_of(tmp_path / "sweep" / good.name)[40, "val_whole"] == good.loss
    assert sweep.main([*flags, "--learning_rate=1e29,1e30", "--grad_clip=0", f"--out_dir={tmp_path / 'bad'}"]) == 1


def test_shapes_and_numbers_at_once_make_programs(flags, tmp_path):
    out_dir = tmp_path / "sweep"
    varied = ["--n_layer=1,2", "--dropout=0.0,0.1", "--seed=0..2", "--max_iters=2", "--at_once=2"]
    assert sweep.main([*(flag for flag in flags if flag != LENGTH), *varied, f"--out_dir={out_dir}"]) == 0
    plan = read_plan(out_dir)
    assert plan.programs == [[0, 1], [2], [3, 4], [5], [6, 7], [8], [9, 10], [11]]
    assert all(run.state == "done" for run in plan.runs)
    assert sweep.main([*flags, "--seed=0,1", "--max_iters=1", f"--out_dir={out_dir}"]) == 0
    assert read_plan(out_dir / "previous" / "1").varied == plan.varied
    assert not (out_dir / plan.runs[0].name).exists() and (out_dir / "seed=0").exists()


def test_all_runs_may_learn_from_the_batches_of_the_first_seed(flags, tmp_path):
    """Begun at the same weights, without dropout, they are then one run, however few lie in memory together."""
    equal = [*flags, "--dropout=0", "--max_iters=3", "--same_data", "--seed=0..2", "--at_once=2"]
    assert train.main([*flags, "--max_iters=1", f"--out_dir={tmp_path / 'weights'}"]) == 0
    assert sweep.main([*equal, f"--init_from={tmp_path / 'weights'}", f"--out_dir={tmp_path / 'sweep'}"]) == 0
    states = [state_of(tmp_path / "sweep" / f"seed={seed}") for seed in (0, 1, 2)]
    assert_same_bits(states[0].params, states[1].params)
    assert_same_bits(states[0].params, states[2].params)


def test_a_finished_sweep_is_told_again(made, capsys):
    before = (made / "sweep.json").stat().st_size
    assert sweep.main(["--init_from=resume", f"--out_dir={made}"]) == 0
    assert "| 0.003 " in capsys.readouterr().out
    assert (made / "sweep.json").stat().st_size == before


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ([], "nothing varies; give a setting several values"),
        (["--seed=5..3"], "seed=5..3 is a range of nothing; give the smaller number first"),
        (["--seed=1,,2"], "seed= is not a whole number; give one"),
        (["--seed=1,1"], "seed=1,1 names 1 twice; name each value once"),
        (["--seed=0..10000"], "seed=0..10000 are 10,001 values, and a sweep has 10,000 runs at most"),
        (["--seed=0..200", "--n_layer=1..50"], "50 of n_layer x 201 of seed are 10,050 runs, where a sweep has 10,000"),
        (["--log_interval=1,2"], "log_interval=1,2 names several values, and a sweep can't vary log_interval"),
        (["--learning_rate=1,x"], "learning_rate=x is not a number; give one"),
        (["--seed=0..1", "--n_head=2,5"], "n_head=5,seed=0: n_embd=16 is not a multiple of n_head=5"),
        (["--seed=0..1", "--at_once=0"], "at_once=0"),
        (["--seed=0..1", "--max_iters=10000001"], "seed=0: max_iters=10000001"),
        (["--seed=0..1", "--wandb"], "wandb is for a single run, and not for a sweep; leave it out"),
        (["--seed=0..1", "--dropout=1.5"], "dropout=1.5 is outside"),
        (["--seed=0..1", "--dataset=nowhere"], "nowhere"),
        (["--init_from=resume", "--seed=0..1"], "goes on as it was begun; leave it out"),
    ],
)  # fmt: skip
def test_what_can_not_be_is_refused_in_a_line_before_anything_is_written(flags, tmp_path, given, line):
    assert line in refusal(sweep.main, [*flags, *given, f"--out_dir={tmp_path / 'sweep'}"])
    assert not (tmp_path / "sweep").exists()


def test_a_folder_without_a_plan_or_with_a_damaged_one_is_refused(tmp_path):
    resume = ["--init_from=resume", f"--out_dir={tmp_path}"]
    assert "holds no sweep.json" in refusal(sweep.main, resume)
    for text, line in (("{", "is not JSON"), ("{}", "no plan of a sweep"), ('{"format": 9}', "another version")):
        (tmp_path / "sweep.json").write_text(text)
        assert line in refusal(sweep.main, resume)
