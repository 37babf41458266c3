"""Paths as people type them: relative, with spaces and letters of many alphabets, into models of any size."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nanogpt_jax import convert, plot
from nanogpt_jax.cli import prepare, sample, train
from nanogpt_jax.core.errors import RunFailed, UserError
from nanogpt_jax.data.commands import flags_to_resume
from nanogpt_jax.lens import command
from nanogpt_jax.run import curves, loop, progress
from nanogpt_jax.run.faults import Stopped
from nanogpt_jax.weights.checkpoint import FOLDER
from nanogpt_jax.weights.saving import LARGE
from tests.helpers.commands import HANGS, ROOT
from tests.helpers.states import assert_same_bits, state_of
from tests.helpers.tiny import TINY, prepare_tiny

# A token table of 2,048 x 160 floats is larger than `LARGE`: Orbax keeps it, as it does the tensors of larger models.
WIDE = ("--vocab_size=2048", "--n_embd=160", "--n_head=2", "--data_dir=my data", "--eval_iters=1")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a space and an umlaut in its name, with a data set and a run of two updates, made from within."""
    folder = tmp_path_factory.mktemp("in a füller")
    prepare_tiny(folder).rename(folder / "my data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert train.main([*TINY, *WIDE, "--out_dir=out rel", "--max_iters=2"]) == 0
    assert max(path.stat().st_size for path in (folder / "out rel" / FOLDER / "2" / "params").rglob("*")) > LARGE / 2
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A copy of that folder, and the working directory in it."""
    copy = shutil.copytree(made, tmp_path / "ein Füller")
    monkeypatch.chdir(copy)
    return copy


@pytest.mark.parametrize("named", ["out rel", "{here}/out rel/"])
def test_every_command_takes_a_run_by_any_way_of_writing_its_path(here, named, capsys):
    run = named.format(here=here)
    assert train.main(["--init_from=resume", f"--out_dir={run}", "--max_iters=3"]) == 0
    tuned = [f"--init_from={run}", "--out_dir=tuned", "--max_iters=1", "--dataset=tiny", "--data_dir=my data"]
    assert train.main([*TINY[-4:], *tuned]) == 0
    capsys.readouterr()
    assert sample.main([f"--out_dir={run}", "--start=to be", "--max_new_tokens=4", "--num_samples=1"]) == 0
    assert capsys.readouterr().out.startswith("to be")
    assert convert.main([run, "made/ckpt.pt"]) == 0
    assert convert.main(["made/ckpt.pt", "made/back", "--tokenizer=my data/tiny/meta.json", "--data_dir=my data"]) == 0
    assert_same_bits(state_of(Path("made/back")), state_of(Path(run)))
    assert command.main([f"--out_dir={run}", "--start=to be", "--html=made/look.html"]) == 0
    assert Path("made/look.html").is_file()


PROGRAMS = {
    "train.py": train.main,
    "sample.py": sample.main,
    "data/prepare.py": prepare.main_texts,
    "data/shakespeare_char/prepare.py": lambda argv: prepare.main_known("shakespeare_char", argv),
    "nanogpt_jax.plot": plot.main,
}


def paste(text):
    """Run the command in `text`, from `python` to the end, as a shell would take it apart; its program and status."""
    _, program, *rest = shlex.split(text[text.index("python ") :])
    if program == "-m":
        program, *rest = rest
    else:
        assert Path(program).is_file(), "the program must be found from here"
        program = str(Path(program).relative_to(ROOT))
    return program, PROGRAMS[program](rest)


def test_commands_that_a_run_suggests_work_when_pasted(here, capsys, monkeypatch):
    assert train.main([*TINY, *WIDE, "--max_iters=1", "--out_dir=my run's"]) == 0
    *said, end = capsys.readouterr().out.splitlines()
    assert [line.endswith(" tokens)") for line in said if line.startswith("final val loss ")] == [True]
    assert paste(end + " --num_samples=1 --max_new_tokens=3 --start=to") == ("sample.py", 0)

    assert train.main(["--init_from=resume", "--out_dir=my run's"]) == 0
    finished = next(line for line in capsys.readouterr().out.splitlines() if "is finished, at iteration 1" in line)
    assert paste(finished) == ("train.py", 0)
    assert "\nstep 2: train loss" in capsys.readouterr().out

    def stop(*arguments):
        raise Stopped(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", stop)
        assert train.main(["--init_from=resume", "--out_dir=my run's"]) == 130
    assert paste(capsys.readouterr().out.splitlines()[-1] + " --max_iters=3") == ("train.py", 0)

    with monkeypatch.context() as patch:
        patch.setattr(curves, "write_figure", stop)
        patch.setattr(curves, "loss_figure", stop)
        assert train.main(["--init_from=resume", "--out_dir=my run's", "--max_iters=4"]) == 0
    assert paste(next(line for line in capsys.readouterr().err.splitlines() if "could not be drawn" in line)) == (
        "nanogpt_jax.plot",
        0,
    )


def test_flags_that_a_failed_run_suggests_go_on_with_it(here, capsys, monkeypatch):
    """These are for every process of the run, and so without a program."""
    with monkeypatch.context() as patch, pytest.raises(RunFailed) as failed:
        patch.setattr(progress, "is_finite", lambda state: False)
        train.main(["--init_from=resume", "--out_dir=out rel", "--max_iters=3"])
    flags = str(failed.value)[str(failed.value).index("--init_from") :]
    assert train.main([*shlex.split(flags), "--max_iters=3"]) == 0
    said = capsys.readouterr().out
    assert "changed: learning_rate=0.005 where the run in out rel has learning_rate=0.01" in said
    assert shlex.split(flags_to_resume("out rel")) == ["--init_from=resume", "--out_dir=out rel"]


def test_commands_that_prepare_data_work_when_pasted(here, capsys):
    (here / "a text.txt").write_text("to be or not to be " * 50)
    with pytest.raises(UserError) as missing:
        train.main(["--dataset=a text", "--data_dir=my data"])
    assert paste(str(missing.value).replace("FILE...", "'a text.txt'")) == ("data/prepare.py", 0)
    few = " --block_size=8 --n_layer=1 --max_iters=1 --eval_iters=1"
    assert paste(capsys.readouterr().out.splitlines()[-1] + few) == ("train.py", 0)
    assert Path("out-shakespeare-char-a text").is_dir()


def test_a_suggested_command_in_a_shell(here):
    """One of them by a real shell: what the others split, it splits alike."""
    shown = subprocess.run(
        [sys.executable, ROOT / "train.py", "--init_from=resume", "--out_dir=out rel"],
        capture_output=True, text=True, check=True, timeout=HANGS,
    ).stdout.splitlines()[-1]  # fmt: skip
    line = shown[shown.index("python ") :]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["sh", "-c", f"{line} --num_samples=1 --max_new_tokens=3 --start=be"],
        env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=HANGS, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.startswith("be"), done.stderr
