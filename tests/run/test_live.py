"""On a terminal a run shows itself in a panel; the lines that others read stay as they are, and no update changes."""

import re
import signal
import subprocess
import sys

import jax
import pyte
import pytest

from nanogpt_jax.cli import train
from nanogpt_jax.core.errors import RunFailed
from nanogpt_jax.run import live, loop
from tests.helpers.commands import HANGS, ROOT, awaited, metrics_of
from tests.helpers.jobs import virtual_devices
from tests.helpers.spoiled import spoiled
from tests.helpers.states import assert_same_bits, state_of
from tests.helpers.terminal import terminal
from tests.helpers.tiny import TINY, prepare_tiny

HIDE_CURSOR = b"\x1b[?25l"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return prepare_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def flags(data_dir, tmp_path):
    return [*TINY, f"--data_dir={data_dir}", f"--out_dir={tmp_path / 'run'}", "--max_iters=40"]


def trained_on_terminal(monkeypatch, argv, **environment):
    """Train with stdout on a terminal; all that it was sent, and what the command ended with."""
    for name, value in {"TERM": "xterm", "NO_COLOR": None, **environment}.items():
        monkeypatch.setenv(name, value) if value is not None else monkeypatch.delenv(name, raising=False)
    with terminal() as (slave, received), monkeypatch.context() as patch, open(slave, "w", closefd=False) as stdout:
        patch.setattr(sys, "stdout", stdout)
        try:
            ended = train.main(argv)
        except RunFailed as error:
            ended = error
        assert sys.stdout is stdout  # given back
    return bytes(received), ended


def screen_of(sent, lines=100):
    """The lines that a terminal shows in the end, and its cursor."""
    screen = pyte.Screen(80, lines)
    pyte.ByteStream(screen).feed(sent)
    return [line.rstrip() for line in screen.display], screen.cursor


def step_lines(out_dir):
    """nanoGPT's lines, from the figures that a run left."""
    losses = {(line["step"], line["split"]): line["loss"] for line in metrics_of(out_dir)}
    steps = sorted(step for step, split in losses if split == "val")
    return [f"step {s}: train loss {losses[s, 'train_eval']:.4f}, val loss {losses[s, 'val']:.4f}" for s in steps]


def test_a_terminal_shows_the_run_and_keeps_its_lines(flags, tmp_path, monkeypatch, capfd):
    sent, status = trained_on_terminal(monkeypatch, flags)
    assert status == 0
    shown, cursor = screen_of(sent)
    lines = [line for line in shown if line.startswith(("step", "final"))]
    assert lines[:-1] == step_lines(tmp_path / "run")
    assert re.fullmatch(r"final val loss \d\.\d{4} \(whole split, \d+ tokens\)", lines[-1])
    assert not any(line.startswith("iter") for line in shown)

    panel = "\n".join(shown[shown.index(lines[-1]) + 1 :])
    last = {line["split"]: line for line in metrics_of(tmp_path / "run")}
    best = min(line["loss"] for line in metrics_of(tmp_path / "run") if line["split"] == "val")
    for what in (
        "40/40 100%", f"train loss {last['train']['loss']:.4f}", f"val loss {last['val']['loss']:.4f}",
        f"best loss {best:.4f}", f"learning rate {last['train']['learning_rate']:.2e}",
        f"tokens/s {last['train']['tokens_per_second']:,.0f}", "text at step 40",
    ):  # fmt: skip
        assert what in panel
    assert "MFU" not in panel  # no CPU's peak is known
    assert HIDE_CURSOR not in sent and cursor.y == max(i for i, line in enumerate(shown) if line) + 1

    plain = tmp_path / "plain"
    assert train.main([*flags, f"--out_dir={plain}"]) == 0
    out = capfd.readouterr().out
    assert "\x1b" not in out and [line for line in out.splitlines() if line.startswith("step")] == lines[:-1]
    assert sum(line.startswith("iter ") for line in out.splitlines()) == 40
    assert_same_bits(state_of(tmp_path / "run"), state_of(plain))


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(flags, monkeypatch):
    sent, status = trained_on_terminal(monkeypatch, [*flags, "--max_iters=1"], TERM="dumb")
    assert status == 0
    assert b"\x1b" not in sent and b"\niter 0: loss " in sent


def test_without_colours_and_without_room_for_a_text_it_trains_all_the_same(flags, monkeypatch):
    def no_room(*arguments, **options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(live, "generate", no_room)
    sent, status = trained_on_terminal(monkeypatch, [*flags, "--max_iters=1"], NO_COLOR="1")
    assert status == 0 and "none: RESOURCE_EXHAUSTED: Out of memory" in "\n".join(screen_of(sent)[0])
    assert b"\x1b[" in sent and not re.search(rb"\x1b\[[0-9;]*3[0-7]", sent)


def test_an_error_is_told_under_the_panel(flags, monkeypatch):
    monkeypatch.setattr(loop, "make_train_step", spoiled(29))
    sent, error = trained_on_terminal(monkeypatch, flags)
    assert "iteration 29: loss nan" in str(error)
    shown, cursor = screen_of(sent)
    assert "╰" in shown[cursor.y - 1] and cursor.x == 0


def test_control_characters_in_a_text_reach_no_terminal():
    assert live.printable("a\x1b[2J\x07\r\nb é") == "a\ufffd[2J\ufffd\ufffd\nb é"


def test_ctrl_c_leaves_the_panel_and_says_how_to_go_on(flags, tmp_path):
    """On two devices that share the work: the text comes from one of them."""
    with terminal() as (slave, received):
        argv = [sys.executable, ROOT / "train.py", *flags, "--max_iters=1000000000"]
        environment = {**virtual_devices(2), "TERM": "xterm", "COLUMNS": "80"}
        process = subprocess.Popen(argv, stdout=slave, stderr=slave, cwd=ROOT, env=environment)
        try:
            awaited(lambda: b"step 40:" in received)
            process.send_signal(signal.SIGINT)
            assert process.wait(HANGS) == 130
        finally:
            process.kill()
    shown, _ = screen_of(bytes(received), lines=2000)
    written = [line for line in shown if line]
    hint = "".join(written[next(i for i, line in enumerate(written) if line.startswith("stopped")) :])
    assert hint.endswith(f"go on with: python train.py --init_from=resume --out_dir={tmp_path / 'run'}")
    assert "text at step" in "\n".join(written) and "none: " not in "\n".join(written)
    assert "mesh data:2" in "\n".join(written) and HIDE_CURSOR not in received
