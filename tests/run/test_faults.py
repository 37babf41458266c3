"""What befalls a run from outside ends in one line, and leaves a checkpoint from which it goes on."""

import fcntl
import json
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from nanogpt_jax import Batch, Bigram, init_params, init_state, make_optimizer, make_train_step, preset
from nanogpt_jax.cli import train
from nanogpt_jax.core.errors import RunFailed, UserError
from nanogpt_jax.run import loop, progress, telemetry
from nanogpt_jax.run.run_folder import set_previous_run_aside
from nanogpt_jax.weights.checkpoint import FOLDER, newest
from tests.helpers.commands import HANGS, ROOT, awaited, metrics_of
from tests.helpers.refusals import largest_file
from tests.helpers.spoiled import spoiled
from tests.helpers.states import assert_same_bits, state_of, tree_of
from tests.helpers.tiny import TINY, prepare_tiny


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return prepare_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def flags(data_dir, tmp_path):
    return [*TINY, f"--data_dir={data_dir}", f"--out_dir={tmp_path / 'run'}"]


@pytest.fixture(scope="module")
def made(data_dir, tmp_path_factory):
    """A run that has ended after 40 iterations, with checkpoints at 20 and 40."""
    out_dir = tmp_path_factory.mktemp("made") / "run"
    assert train.main([*TINY, f"--data_dir={data_dir}", f"--out_dir={out_dir}", "--max_iters=40"]) == 0
    return out_dir


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def resume(out_dir, *flags):
    return train.main(["--init_from=resume", f"--out_dir={out_dir}", "--accelerator=cpu", *flags])


def losses_of(out_dir):
    return [(line["step"], line["split"], line["loss"]) for line in metrics_of(out_dir)]


def test_saves_are_as_often_as_asked_for_and_the_best_stays(flags, tmp_path, capfd):
    never = "--always_save_checkpoint=False"
    assert train.main([*flags, never, "--max_iters=37", "--eval_interval=1000", "--save_interval=10"]) == 0
    steps = sorted(int(path.name) for path in (tmp_path / "run" / FOLDER).iterdir())
    assert steps == [30, 37]
    assert newest(tmp_path / "run").run.evaluated


def test_a_run_resumed_between_two_evaluations_ends_in_the_same_bits(made, flags, tmp_path):
    assert train.main([*flags, "--max_iters=27", "--eval_interval=1000", "--save_interval=9"]) == 0
    shutil.rmtree(tmp_path / "run" / FOLDER / "27")
    assert resume(tmp_path / "run", "--max_iters=40", "--eval_interval=20") == 0
    assert_same_bits(state_of(tmp_path / "run"), state_of(made))
    in_training = [[line for line in losses_of(out_dir) if line[1] == "train"] for out_dir in (tmp_path / "run", made)]
    assert in_training[0] == in_training[1]


def test_a_damaged_checkpoint_costs_no_bit_and_no_line(made, run, capsys):
    (run / FOLDER / "40" / "files" / "rest.safetensors").write_bytes(b"")
    assert resume(run) == 0
    assert "is damaged (files/rest.safetensors is not what was saved)" in capsys.readouterr().err
    assert_same_bits(state_of(run), state_of(made))
    assert losses_of(run) == losses_of(made)


def test_metrics_that_a_dying_machine_left_damaged_are_written_again(made, run):
    shutil.rmtree(run / FOLDER / "40")
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if json.loads(line)["step"] == 25)
    (run / "metrics.jsonl").write_bytes(b"".join(lines[:at]) + bytes(100) + b"\n[]\nnonsense\n" + lines[at][:10])
    assert resume(run) == 0
    assert losses_of(run) == losses_of(made)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--learning_rate=0.1"], "learning_rate=0.1 where the run in"),
        (["--seed=1"], "seed=1 where the run in"),
        (["--batch_size=3"], "batch_size=3 where the run in"),
        (["--n_layer=2"], "n_layer=2 does not fit the run"),
    ],
)
def test_changed_settings_are_named_and_refused(run, changes, message):
    before = tree_of(run)
    with pytest.raises(UserError, match=message):
        resume(run, "--max_iters=50", *changes)
    assert tree_of(run) == before


def test_changed_settings_that_are_asked_for_are_named_and_taken(run, capsys):
    assert resume(run, "--max_iters=41", "--batch_size=3", "--allow_changes") == 0
    assert "changed: batch_size=3 where the run in" in capsys.readouterr().out
    assert resume(run, "--max_iters=42") == 0  # now they are the run's


def test_changed_data_are_named_and_refused_unless_asked_for(run, tmp_path, capsys):
    data_dir = prepare_tiny(tmp_path, "not to be or to be, that is the question: ")
    other = [f"--data_dir={data_dir}", "--max_iters=41"]
    before = tree_of(run)
    with pytest.raises(UserError, match=r"tokens of .*tiny are not those that the run in .* was trained on"):
        resume(run, *other)
    assert tree_of(run) == before
    assert resume(run, *other, "--allow_changes") == 0
    assert "changed: the tokens of" in capsys.readouterr().out


def test_moved_data_are_the_same_data(run, data_dir, tmp_path):
    shutil.copytree(data_dir, tmp_path / "elsewhere")
    assert resume(run, f"--data_dir={tmp_path / 'elsewhere'}", "--max_iters=41") == 0


def test_a_second_run_in_one_folder_is_refused_and_touches_nothing(run, flags):
    with open(run / ".lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # what a run at work holds, and the kernel lets go of when it dies
        before = tree_of(run)
        for second in (lambda: resume(run, "--max_iters=50"), lambda: train.main(flags)):
            with pytest.raises(UserError, match=r"another run is writing into out_dir="):
                second()
        assert tree_of(run) == before
    assert resume(run, "--max_iters=41") == 0


def test_looking_at_a_run_does_not_need_it_alone(run):
    with open(run / ".lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert resume(run, "--eval_only") == 0


@pytest.mark.parametrize("at", [29, 30])
def test_a_loss_that_is_not_finite_stops_the_run_at_its_last_good_checkpoint(flags, tmp_path, monkeypatch, at, made):
    monkeypatch.setattr(loop, "make_train_step", spoiled(at))
    with pytest.raises(RunFailed, match=rf"iteration {at}: loss nan"):
        train.main([*flags, "--max_iters=40", "--save_interval=10"])
    assert newest(tmp_path / "run").run.step == (20 if at == 29 else 30)
    monkeypatch.undo()
    assert resume(tmp_path / "run") == 0
    assert_same_bits(state_of(tmp_path / "run"), state_of(made))
    assert losses_of(tmp_path / "run") == losses_of(made)


def test_updates_that_are_not_finite_are_skipped_and_counted_where_that_is_asked_for(
    flags, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(loop, "make_train_step", spoiled(29))
    assert train.main([*flags, "--max_iters=40", "--nan_policy=skip"]) == 0
    assert "iteration 29: loss nan, gradient norm nan; update skipped, 1 so far" in capsys.readouterr().out
    assert newest(tmp_path / "run").run.skipped == 1
    state = state_of(tmp_path / "run")
    assert int(state.step) == 40
    assert {int(leaf) for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim == 0} == {39}
    line = next(line for line in metrics_of(tmp_path / "run") if line["step"] == 29 and line["split"] == "train")
    assert line["loss"] is None and line["skipped"] is True


def test_a_skipped_update_changes_the_step_alone():
    settings = preset("bigram")
    model, tx = Bigram(settings.gpt_config(vocab_size=5)), make_optimizer(settings)
    state = init_state(init_params(model, 0), tx, 0)
    state = state.replace(params=jax.tree.map(lambda p: p.at[0, 0].set(np.nan), state.params))
    kept = jax.tree.map(np.array, (state.params, state.opt_state))
    batch = Batch(np.zeros((2, 3), np.int32), np.zeros((2, 3), np.int32))
    new, metrics = make_train_step(model, tx, skip_nonfinite=True)(state, batch)
    assert np.isnan(metrics["loss"]) and int(new.step) == 1
    assert_same_bits((new.params, new.opt_state), kept)


def test_a_bad_state_is_never_saved(flags, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "is_finite", lambda state: False)
    with pytest.raises(RunFailed, match=r"iteration 20: the parameters or moments are not finite, and are not saved"):
        train.main([*flags, "--max_iters=40"])
    assert newest(tmp_path / "run") is None


@pytest.mark.filterwarnings("ignore:Error writing persistent compilation cache")
@pytest.mark.parametrize(
    ("size", "what"), [(25_000, "the checkpoint of iteration 60"), (9_000, "could not go on .No space")]
)
def test_a_disk_that_fills_up_ends_the_run_in_one_line_and_it_goes_on_to_the_same_bits(
    run, flags, data_dir, tmp_path, size, what
):
    with largest_file(size), pytest.raises(RunFailed, match=what) as error:
        resume(run, "--max_iters=80")
    assert len(str(error.value).splitlines()) == 1 and "--init_from=resume" in str(error.value)
    assert newest(run).run.step == 40
    assert resume(run, "--max_iters=80") == 0
    undisturbed = tmp_path / "undisturbed"
    assert train.main([*flags, "--max_iters=80", f"--out_dir={undisturbed}"]) == 0
    assert_same_bits(state_of(run), state_of(undisturbed))


def test_a_folder_that_vanishes_ends_the_run_in_one_line(flags, tmp_path, monkeypatch):
    def vanish(self, step, metrics):
        if step == 30:
            awaited((tmp_path / "run" / FOLDER / "20").is_dir)  # it is saved in the background
            (tmp_path / "run").rename(tmp_path / "gone")
        add(self, step, metrics)

    add = telemetry.StepLog.add
    monkeypatch.setattr(telemetry.StepLog, "add", vanish)
    with pytest.raises(RunFailed, match=r"the run in .*/run could not go on \(No such file or directory\)"):
        train.main([*flags, "--max_iters=60"])
    assert newest(tmp_path / "gone").run.step == 20
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [MemoryError(), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")])
def test_out_of_memory_names_the_settings_to_lower(flags, monkeypatch, error):
    def no_room(*arguments, **options):
        raise error

    monkeypatch.setattr(loop, "make_train_step", lambda *arguments, **options: no_room)
    with pytest.raises(RunFailed, match=r"out of memory with batch_size=2, block_size=8, n_layer=1, n_embd=16; lower"):
        train.main(flags)


def test_starting_over_loses_nothing_however_often_it_is_cut_short(made, tmp_path, monkeypatch):
    out_dir = shutil.copytree(made, tmp_path / "run")
    calls = []

    def killed(self, target):
        calls.append(self)
        if len(calls) in (2, 4):
            raise KeyboardInterrupt
        return rename(self, target)

    rename = type(out_dir).rename
    monkeypatch.setattr(type(out_dir), "rename", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            set_previous_run_aside(out_dir)
    set_previous_run_aside(out_dir)
    assert tree_of(out_dir / "previous").keys() == {
        out_dir / "previous" / "1" / path.relative_to(made) for path in tree_of(made) if path.name != ".lock"
    }


def test_every_earlier_run_is_kept_by_its_number_and_one_that_an_earlier_version_kept_alone(made, tmp_path, capsys):
    out_dir = tmp_path / "run"
    shutil.copytree(made, out_dir / "previous")  # as it was kept when there was room for one
    for number in (1, 2, 3):
        (out_dir / "config.json").write_text(f"run {number}")
        set_previous_run_aside(out_dir)
        assert f"{out_dir} held a run: it is in {out_dir}/previous/{number + 1} now" in capsys.readouterr().out
    set_previous_run_aside(out_dir)
    assert sorted(path.name for path in (out_dir / "previous").iterdir()) == ["1", "2", "3", "4"]
    assert newest(out_dir / "previous" / "1").run.step == 40
    assert [(out_dir / "previous" / str(n) / "config.json").read_text() for n in (2, 3, 4)] == [
        "run 1",
        "run 2",
        "run 3",
    ]
    assert capsys.readouterr().out == ""


def start(*flags):
    argv = [sys.executable, ROOT / "train.py", *flags]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def read_until(process, beginning):
    return next(line for line in process.stdout if line.startswith(beginning))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_says_how_to_resume_and_ends_with_its_status(flags, tmp_path, number, status):
    process = start(*flags, "--max_iters=1000000000")
    read_until(process, "iter 5")
    process.send_signal(number)
    out, err = process.communicate(timeout=HANGS)
    assert (process.returncode, err) == (status, "")
    assert out.splitlines()[-1].endswith(f"go on with: python train.py --init_from=resume --out_dir={tmp_path / 'run'}")
    last = max(line["step"] for line in metrics_of(tmp_path / "run"))
    assert newest(tmp_path / "run").run.step == last + 1


def test_a_reader_that_goes_away_stops_and_saves_the_run(flags, tmp_path):
    process = start(*flags, "--max_iters=1000000000")
    read_until(process, "iter 5")
    process.stdout.close()
    again = f"go on with: python train.py --init_from=resume --out_dir={tmp_path / 'run'}\n"
    assert process.wait(timeout=HANGS) == 128 + signal.SIGPIPE
    assert process.stderr.read().endswith(again)
    last = max(line["step"] for line in metrics_of(tmp_path / "run"))
    assert newest(tmp_path / "run").run.step == last + 1


def test_output_that_cannot_be_written_is_one_line(flags, tmp_path):
    with open("/dev/full", "w") as full:
        argv = [sys.executable, ROOT / "train.py", *flags]
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, timeout=HANGS, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
