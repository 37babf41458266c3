"""`python -m tests.hammer [--interrupts=300] [--command=train]`: Ctrl-C at every instant of a command's first seconds.

Each interrupt must end the command with a shell's status 130, or find it done, and soon; a run that has saved must be
whole. Python's own start, before the first line of ours, is told apart: what it does there is Python's to say.
"""

from __future__ import annotations

import argparse
import collections
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nanogpt_jax.weights.checkpoint import newest
from tests.helpers.tiny import TINY, prepare_tiny

ROOT = Path(__file__).parent.parent
INTERRUPTED = 130
COMMANDS = ("train", "sample", "prepare", "convert", "plot", "lens", "compare", "sweep")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hammer", description=__doc__)
    parser.add_argument("--interrupts", type=int, default=300, help="how many (300)")
    parser.add_argument("--command", choices=COMMANDS, default="train", help="what is interrupted (train)")
    parser.add_argument("--seconds", type=float, default=5.0, help="from the start that they are spread over (5)")
    parser.add_argument("--within", type=float, default=10.0, help="seconds in which the command must end (10)")
    parser.add_argument("--seed", type=int, default=0, help="what the instants are drawn from (0)")
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in a script's background it is ignored, and passed on
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        written = Path(folder) / "written"
        ends = hammered(Path(folder), written, given.command, given.interrupts, given.seconds, given.within, given.seed)
    print("\n".join(["| interrupts that | count |", "|---|---|", *(f"| {end} | {n} |" for end, n in ends.items())]))
    return 1 if any(end.startswith("FAULT") for end in ends) else 0


def prepare(folder: Path) -> None:
    """Put a data set and a run there, for the commands that read them."""
    flags = [*TINY, f"--data_dir={prepare_tiny(folder)}", f"--out_dir={folder / 'run'}", "--max_iters=2"]
    subprocess.run([sys.executable, "train.py", *flags], cwd=ROOT, check=True, capture_output=True)


def hammered(
    folder: Path, written: Path, command: str, interrupts: int, seconds: float, within: float, seed: int
) -> collections.Counter[str]:
    """How a command, which reads what is prepared in `folder`, ended, and how often, after one interrupt each."""
    draw, ends = random.Random(seed), collections.Counter()
    data_dir, run = folder / "data", folder / "run"
    flags = [*TINY, f"--data_dir={data_dir}"]
    written.mkdir()
    argv = {
        "train": ["train.py", *flags, f"--out_dir={written / 'run'}", "--max_iters=1000000000"],
        "sweep": ["-m", "nanogpt_jax.sweep", *flags, "--seed=0,1", f"--out_dir={written}", "--max_iters=100000"],
        "sample": ["sample.py", f"--out_dir={run}", "--start=to be", "--max_new_tokens=2000"],
        "prepare": ["data/prepare.py", str(folder / "text.txt"), f"--data_dir={written}", "--tokenizer=bpe:300"],
        "convert": ["-m", "nanogpt_jax.convert", str(run), str(written / "hf")],
        "plot": ["-m", "nanogpt_jax.plot", str(run), f"--png={written / 'loss.png'}"],
        "lens": ["-m", "nanogpt_jax.lens", f"--out_dir={run}", "--start=to be", f"--html={written / 'lens.html'}"],
        "compare": [
            "-m",
            "nanogpt_jax.compare",
            "--dataset=tiny",
            f"--data_dir={data_dir}",
            "--n_layer=1",
            "--steps=20",
        ],
    }[command]
    for i in range(interrupts):
        at = seconds * (i + draw.random()) / interrupts  # one in every stretch
        end = _interrupted(argv, at, within)
        left = [path.name for path in written.rglob("*.part")]
        if left:
            end = f"FAULT: left {left} behind"
        if end.startswith("FAULT"):
            print(f"after {at:.3f} s: {end}", flush=True)
        ends[end.partition(":\n")[0]] += 1
        for saved in written / "run", written / "seed=0", written / "seed=1":
            newest(saved)  # raises if what was saved is not whole
        if command == "convert":
            _remove(written / "hf")
    return ends


def _interrupted(argv: list[str], at: float, within: float) -> str:
    """What one interrupt after `at` seconds did."""
    process = subprocess.Popen(
        [sys.executable, "-X", "faulthandler", *argv],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(at)
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        time.sleep(5 * within)
        late = process.poll()
        process.send_signal(signal.SIGABRT)  # say where you are
        where = process.communicate()[1]
        if "Error processing line" in where:  # of the .pth file of an editable installation: `site` goes on after it
            return "Python dropped before the first line of ours"
        return f"FAULT: did not end within {within:g} s, " + (
            f"nor in six times that:\n{where}"
            if late is None
            else f"but in six times that, with {late}: a busy machine?"
        )
    status = process.returncode
    if status == -signal.SIGINT or ("KeyboardInterrupt" in err and status in (1, INTERRUPTED)):
        return "ended Python before the first line of ours"
    if status == INTERRUPTED and not err:
        return "ended the command with 130"
    return "found it done" if status == 0 and "Traceback" not in err else f"FAULT: status {status}:\n{err}"


def _remove(folder: Path) -> None:
    for path in folder.glob("*"):
        path.unlink()
    if folder.exists():
        folder.rmdir()


if __name__ == "__main__":
    sys.exit(main())
