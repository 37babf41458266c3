"""One model as people use it: prepared, trained on a terminal, stopped, resumed, sampled, converted, looked into.

Every step is a process of its own with the flags that people type, in a folder whose name has a space and an umlaut;
paths are relative, and where the same can be said by an absolute path or from another folder, it is said that way too.
`shakespeare_char` goes through it in the suite, GPT-2's 124M shape before a release.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from nanogpt_jax.data.assets import tiny_shakespeare
from tests.helpers.commands import ROOT, users_environment
from tests.helpers.terminal import terminal

LIMIT = 3600  # seconds for one step: a bound against hanging, whatever the machine
TEXT = ("--num_samples=1", "--max_new_tokens=24", "--start=ROMEO:")


@dataclasses.dataclass(frozen=True)
class Size:
    """A preset at its own size; only batches and iterations are few."""

    preset: str
    dataset: str
    tokenizer: str
    parameters: str
    every: int  # a line of how many is in the text
    flags: tuple[str, ...]


SHAKESPEARE_CHAR = Size(
    "shakespeare_char", "shakespeare_char", "char", "10,745,088", 120, ("--batch_size=2", "--warmup_iters=1")
)
GPT2 = Size(
    "gpt2", "openwebtext", "gpt2", "124,373,760", 10,
    ("--batch_size=1", "--gradient_accumulation_steps=1", "--warmup_iters=1"),
)  # fmt: skip


class Journey:
    """A folder with a prepared text, and the run in `out` that `trained` leaves there."""

    def __init__(self, size: Size, base: Path) -> None:
        self.size = size
        self.folder = base / "Zwei Wörter"
        self.elsewhere = base / "elsewhere"
        self.folder.mkdir()
        self.elsewhere.mkdir()
        self.sent = b""  # to the terminal that the run was begun on

    def run(self, program: str, *flags: object, cwd: Path | None = None) -> str:
        """What a script of the checkout, or else a module of the package, prints in the folder; it must end well."""
        start = [str(ROOT / program)] if program.endswith(".py") else ["-m", f"nanogpt_jax.{program}"]
        return self.typed(shlex.join(["python", *start, *map(str, flags)]), cwd)

    def typed(self, line: str, cwd: Path | None = None) -> str:
        """What a line typed into a shell prints; it must end well."""
        done = subprocess.run(
            ["bash", "-c", line], cwd=cwd or self.folder, env=self.environment(),
            capture_output=True, text=True, timeout=LIMIT, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}: {done.stderr}"
        return done.stdout

    def environment(self) -> dict[str, str]:
        """Variables of a user who has the package, and an ordinary terminal."""
        usual = users_environment()
        usual.pop("NO_COLOR", None)  # which whoever starts the tests may have set
        path = os.pathsep.join([str(Path(sys.executable).parent), usual["PATH"]])
        return {**usual, "PATH": path, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}

    def prepare(self) -> None:
        """Make the preset's data set of a few lines of Tiny Shakespeare, beside the run and not in the checkout."""
        play = tiny_shakespeare()
        some = "".join(play.splitlines(keepends=True)[:: self.size.every])
        (self.folder / "play.txt").write_text(some + "".join(sorted(set(play) - set(some))))
        flags = (f"--name={self.size.dataset}", f"--tokenizer={self.size.tokenizer}", "--data_dir=data")
        self.run("data/prepare.py", "play.txt", *flags)

    def begin_and_stop(self) -> str:
        """Begin the run on a terminal, stop it by Ctrl-C once it has made an update, and return what it suggests."""
        argv = [sys.executable, str(ROOT / "train.py"), self.size.preset, "--out_dir=out", *self.size.flags,
                "--eval_iters=1", "--log_interval=1", "--always_save_checkpoint=True"]  # fmt: skip
        with terminal() as (slave, received):
            process = subprocess.Popen(
                argv, cwd=self.folder, env=self.environment(), stdin=slave, stdout=slave, stderr=slave,
                start_new_session=True,
            )  # fmt: skip
            try:
                self._await_first_update(process, received)
                process.send_signal(signal.SIGINT)
                status = process.wait(LIMIT)
            finally:
                process.kill()
        self.sent = bytes(received)
        words = self.words()
        assert status == 130, words
        return re.search(r"go on with: (python .*--out_dir=out\b.*?)\s*$", words, re.M)[1]

    def _await_first_update(self, process: subprocess.Popen, received: bytearray) -> None:
        metrics = self.folder / "out" / "metrics.jsonl"
        until = time.monotonic() + LIMIT
        while not (metrics.exists() and '"train"' in metrics.read_text(encoding="utf-8")):
            assert process.poll() is None and time.monotonic() < until, bytes(received).decode(errors="replace")
            time.sleep(0.05)

    def words(self) -> str:
        """What the terminal was sent, without colours and movements."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.sent.decode()).replace("\r", "")

    def resume(self, suggested: str) -> str:
        """Go on by the suggested line for one more update; what is printed."""
        return self.typed(f"{suggested} --max_iters={self.updates() + 1} --eval_iters=1")

    def updates(self) -> int:
        """How many updates the newest checkpoint has behind it."""
        return max(int(path.name) for path in (self.folder / "out" / "checkpoints").iterdir() if path.name.isdigit())

    def losses(self) -> list[float]:
        """The losses of the run's updates, as its log has them."""
        lines = map(json.loads, (self.folder / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        return [line["loss"] for line in lines if line["split"] == "train"]

    def sample(self, *flags: object, cwd: Path | None = None) -> str:
        """The text that a model gives."""
        return self.run("sample.py", *TEXT, *flags, cwd=cwd)

    def final_loss(self, out: str) -> float:
        """The loss over the whole split, of what a command printed."""
        return float(re.search(r"^final val loss ([\d.]+)", out, re.M)[1])
