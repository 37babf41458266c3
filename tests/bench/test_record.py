"""`bench record`: whole runs of a preset under several seeds, their mean and error, and nanoGPT's own beside them."""

import json
import math
import statistics

import pytest

from nanogpt_jax.bench import command
from nanogpt_jax.bench.record import Measured, Row, Run, in_nats, record_tables
from nanogpt_jax.bench.records import FROM, RECORDS, Record
from nanogpt_jax.cli import entry
from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.run.presets import PRESETS
from tests.helpers.nanogpt import write_checkout
from tests.helpers.tiny import TINY, prepare_tiny

SHORT = [*TINY, "--max_iters=2", "--eval_interval=2", "--eval_iters=1"]


def row(words, *losses):
    return Row(words, [Run(1337 + i, loss) for i, loss in enumerate(losses)])


TIMED = [Run(1337, 1.9, 20.0), Run(1337, 1.9, 10.0)]


def test_a_row_is_the_mean_of_its_runs_and_its_standard_error():
    held = row("as it is", 1.5, 1.6, 1.7)
    assert held.mean == pytest.approx(1.6) and held.error == pytest.approx(0.1 / math.sqrt(3))
    assert in_nats(held) == "1.6000 ± 0.0577"
    assert in_nats(row("as it is", 1.5)) == "1.5000, one seed"


def test_what_a_step_brings_is_told_seed_by_seed():
    first, second = row("nanoGPT's recipe", 2.0, 2.2), row("less", 1.9, 2.0)
    told = record_tables(
        "it", Record("to be low", 1.95), Settings(), Measured(second, TIMED, [first, second], [], None)
    )
    assert "to be low. The loss of 1.95: reached." in told
    assert "| less             | 1.9500 ± 0.0500 | -0.1500 ± 0.0500 |" in told  # and not by the errors of both means
    assert "not reached" in record_tables("it", Record("", 1.9), Settings(), Measured(second, TIMED, [], [], None))


@pytest.mark.parametrize("name", [name for name, record in RECORDS.items() if record.steps])
def test_the_steps_of_a_record_are_its_preset(name):
    record = RECORDS[name]
    changes = {**PRESETS[FROM], **record.length}
    for step in record.steps.values():
        changes |= step
    own = {"out_dir", "eval_iters"}
    ours, preset = vars(Settings(**changes)), vars(Settings(**PRESETS[name]))
    assert {n: v for n, v in ours.items() if n not in own} == {n: v for n, v in preset.items() if n not in own}


def test_it_trains_under_each_seed_beside_a_checkout(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = prepare_tiny(tmp_path)
    (data / "shakespeare_char").symlink_to(data / "tiny")
    write_checkout(tmp_path / "nanoGPT")
    files = [f"--json={tmp_path / 'out.json'}", f"--plot={tmp_path / 'out.png'}"]
    argv = ["record", "speedrun_cpu", *SHORT, f"--data_dir={data}", "--seeds=2", "--reference=nanoGPT", *files]
    assert command.main(argv) == 0
    told = capsys.readouterr().out
    measured = json.loads((tmp_path / "out.json").read_text())["measured"]
    runs = measured["record"]["runs"]
    assert [run["seed"] for run in runs] == [1337, 1338] and runs[0]["loss"] != runs[1]["loss"]
    assert measured["record"]["mean"] == statistics.mean(run["loss"] for run in runs)
    assert [run["loss"] for run in measured["reference"]["runs"]] == [1.9051, 1.9051]
    assert all(run["seconds"] > 0 for run in measured["timed"])
    assert measured["timed"][0]["loss"] == pytest.approx(runs[0]["loss"], abs=1e-4)  # the sweep's run of this seed
    assert f"{measured['record']['mean']:.4f} ±" in told and "nanoGPT's own run: 1.905 by its estimate" in told
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {data.name, "text.txt", "nanoGPT", "out.json", "out.png"}


def test_a_run_that_fails_ends_it_by_its_own_words(tmp_path, monkeypatch, capsys):
    argv = ["record", "speedrun_cpu", *SHORT, "--seeds=1", f"--data_dir={tmp_path}"]
    assert command.main(argv) == entry.FAILED
    assert "ended with status 2: error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["record"], "record measures a preset; name one of"),
        (["record", "gpt_dev", "--seed=3"], "seed=3 is record's own to choose"),
        (["record", "gpt_dev", "--rounds=3"], "rounds=3 has no meaning for record"),
        (["record", "gpt_dev", "--seeds=0"], "seeds=0 is smaller than 1"),
        (["record", "gpt_dev", "--steps"], "steps has no meaning for gpt_dev"),
        (["record", "gpt_dev", "--reference=here"], "reference=here is not a folder with nanoGPT's train.py"),
        (["train", "gpt_dev", "--seeds=3"], "seeds is of record alone"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(argv, words):
    with pytest.raises(UserError, match=words):
        command.main(argv)
