"""Signals, and outputs that go away: what a process leaves behind, and the status it ends with."""

import os
import pty
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest

from nanogpt_jax.data import dataset
from nanogpt_jax.run import conversion, loop
from nanogpt_jax.run.faults import Stopped
from nanogpt_jax.weights.checkpoint import FOLDER, newest
from tests.helpers.commands import HANGS, ROOT, awaited
from tests.helpers.tiny import TINY, prepare_tiny

ENDS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
ENDLESS = "--max_iters=1000000000"
BEGIN = "from nanogpt_jax.data import process; process.begin(); "


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return prepare_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def flags(data_dir, tmp_path):
    return [*TINY, f"--data_dir={data_dir}", f"--out_dir={tmp_path / 'run'}"]


def start(*argv, **options):
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT, **options}
    return subprocess.Popen([sys.executable, *argv], **options)


def read_until(process, beginning):
    return next(line for line in process.stdout if line.startswith(beginning))


def is_listening(out_dir):
    """Whether a run has come so far that it would save; it is about to evaluate."""
    return (out_dir / FOLDER).is_dir()


@pytest.mark.parametrize(("number", "status"), ENDS)
def test_a_signal_in_an_evaluation_acts_between_two_batches(flags, tmp_path, number, status):
    process = start("train.py", *flags, "--eval_iters=1000000000")  # which takes days
    awaited(lambda: is_listening(tmp_path / "run"), process)
    process.send_signal(number)
    out, err = process.communicate(timeout=HANGS)
    line = f"stopped and saved; go on with: python train.py --init_from=resume --out_dir={tmp_path / 'run'}\n"
    assert (process.returncode, err) == (status, line if number == signal.SIGHUP else "")
    assert out.endswith(line)
    assert newest(tmp_path / "run").run.step == 0


def test_the_pass_over_the_whole_split_stops_between_two_batches(data_dir, monkeypatch):
    monkeypatch.setitem(loop.TOKENS_PER_EVAL_STEP, "cpu", 16)
    file = dataset.open_tokens(data_dir / "tiny" / "val.bin", 15, 8)
    calls = []

    def stop():
        if len(calls) == 2:
            raise Stopped(signal.SIGTERM)

    def loss_of(batch, weights):
        calls.append(batch)
        return np.float32(0)

    with pytest.raises(Stopped):
        loop.whole_split_loss(loss_of, file, 1, stop=stop)
    assert len(calls) == 2


LISTENS = (
    BEGIN
    + """
import time
from nanogpt_jax.run.faults import signals
received = []
with signals(received):
    print("listening", flush=True)
    while not received:
        time.sleep(0.01)
    print("told", flush=True)
    time.sleep(1000)
"""
)


@pytest.mark.parametrize("numbers", [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)])
def test_a_second_signal_ends_the_run_at_once(numbers):
    process = start("-c", LISTENS)
    for said, number in zip(("listening", "told"), numbers, strict=True):
        read_until(process, said)
        process.send_signal(number)
    assert process.wait(timeout=HANGS) == 128 + numbers[1]
    process.communicate()


def test_a_closing_terminal_may_say_so_twice():
    process = start("-c", LISTENS)
    for said in ("listening", "told"):
        read_until(process, said)
        process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=HANGS) == 128 + signal.SIGTERM
    process.communicate()


def test_nohup_stays_nohup():
    process = subprocess.Popen(
        ["nohup", sys.executable, "-c", LISTENS], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    )
    read_until(process, "listening")
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    read_until(process, "told")
    process.kill()
    process.communicate()


WRITES = (
    BEGIN
    + """
import sys, time
from pathlib import Path
from nanogpt_jax.data.files import replace_when_whole, temporary_folder
here = Path(sys.argv[1])
with replace_when_whole(here / "file"), temporary_folder(beside=here / "model") as folder:
    (folder / "part").touch()
    print("writing", flush=True)
    time.sleep(1000)
"""
)


@pytest.mark.parametrize(("number", "status"), ENDS)
def test_what_is_half_written_is_removed(tmp_path, number, status):
    process = start("-c", WRITES, str(tmp_path))
    read_until(process, "writing")
    process.send_signal(number)
    assert process.wait(timeout=HANGS) == status
    assert not list(tmp_path.iterdir())
    process.communicate()


def test_a_conversion_cut_short_while_it_replaces_puts_back_what_was_there(tmp_path, monkeypatch):
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    rename, calls = type(target).rename, []

    def interrupted(self, to):
        calls.append(self)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rename(self, to)

    monkeypatch.setattr(type(target), "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), conversion._folder_when_whole(target) as folder:
        (folder / "new").touch()
    assert [path.name for path in target.iterdir()] == ["old"] and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("controlling", [False, True])
def test_a_terminal_that_goes_away_stops_and_saves_the_run(flags, tmp_path, controlling):
    ours, theirs = pty.openpty()
    script = ["train.py", *flags, ENDLESS]
    if controlling:  # what a shell in a window gives a program
        begin = "import os, sys; os.setsid(); os.close(os.open(os.ttyname(1), os.O_RDWR)); os.execv(sys.executable, "
        script = ["-c", f"{begin} [sys.executable, *sys.argv[1:]])", *script]
    process = start(*script, stdin=theirs, stdout=theirs)
    os.close(theirs)
    awaited(lambda: is_listening(tmp_path / "run"), process)
    os.read(ours, 1)
    os.close(ours)
    _, err = process.communicate(timeout=HANGS)
    assert process.returncode == 128 + (signal.SIGHUP if controlling else signal.SIGPIPE)
    assert err == f"stopped and saved; go on with: python train.py --init_from=resume --out_dir={tmp_path / 'run'}\n"
    assert newest(tmp_path / "run") is not None


def test_a_terminal_that_takes_no_errors_either_ends_nothing_but_the_words(flags, tmp_path):
    ours, theirs = pty.openpty()
    process = start("train.py", *flags, ENDLESS, stdout=theirs, stderr=theirs)
    os.close(theirs)
    awaited(lambda: is_listening(tmp_path / "run"), process)
    os.close(ours)
    assert process.wait(timeout=HANGS) == 128 + signal.SIGPIPE
    assert newest(tmp_path / "run") is not None


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&- <&-"])
def test_closed_streams_are_no_fault(flags, tmp_path, closed):
    def run(*argv):
        line = f"exec {shlex.join([sys.executable, *argv])} {closed}"
        return subprocess.run(line, shell=True, cwd=ROOT, stderr=subprocess.PIPE, timeout=HANGS, check=False)

    out_dir = f"--out_dir={tmp_path / 'run'}"
    for command in (
        ["train.py", *flags, "--max_iters=2"],
        ["sample.py", out_dir, "--start=to be", "--num_samples=1", "--max_new_tokens=3"],
        ["-m", "nanogpt_jax.plot", str(tmp_path / "run")],
        ["-m", "nanogpt_jax.convert", str(tmp_path / "run"), str(tmp_path / "hf")],
    ):
        done = run(*command)
        assert (done.returncode, done.stderr) == (0, b""), command
    assert newest(tmp_path / "run").run.step == 2
