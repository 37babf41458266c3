"""The scripts of docs/launch.md as they stand there: what a worker runs, and what asks for a slice again.

Google Cloud is a stand-in here, which knows one request and has one worker: this machine.
"""

import os
import re
import shlex
import subprocess
import sys

import pytest

from tests.helpers.commands import HANGS, ROOT, metrics_of
from tests.helpers.tiny import TINY, prepare_tiny

from .meanings import require_meaning

BLOCK = re.compile(r"^```bash\n(#!/bin/bash\n# (\w+\.sh): .*?)^```$", re.M | re.S)
PAGE = (ROOT / "docs" / "launch.md").read_text(encoding="utf-8")
SCRIPTS = {name: text for text, name in BLOCK.findall(PAGE)}
BEGINS = re.compile(r"^exec (python train\.py gpt2_xl .*)\Z", re.M | re.S)  # the last command of begin.sh
UPDATES = 300

GCLOUD = """\
import os, subprocess, sys, time
from pathlib import Path
cloud, words = Path(os.environ["CLOUD"]), sys.argv[1:]
with open(cloud / "calls", "a") as calls:
    print(*words, file=calls)
state, taken, run = cloud / "state", cloud / "taken", cloud / "run"
if "describe" in words:
    sys.exit(print(state.read_text()) if state.exists() else 1)
if "create" in words:
    state.write_text("ACTIVE")
if "delete" in words:
    state.unlink()
if "ssh" in words:
    [command] = [word.partition("=")[2] for word in words if word.startswith("--command=")]
    worker = subprocess.Popen(["bash", "-c", command.replace("&& bash ", "&& exec bash ")])
    if "begin.sh" in command and not taken.exists():
        while worker.poll() is None and not (run / "checkpoints").exists():
            time.sleep(0.02)
        worker.terminate()
        taken.touch()
        state.write_text("SUSPENDED")
    sys.exit(worker.wait())
"""


@pytest.fixture
def cloud(tmp_path):
    """A folder with the scripts of the page, for a small run, and the stand-in; and the environment to run them in."""
    assert list(SCRIPTS) == ["begin.sh", "keep.sh"]
    flags = (*TINY, "--model=bigram", f"--max_iters={UPDATES}", "--save_interval=100", "--log_interval=100")
    small = f'exec python train.py {shlex.join(flags)} --data_dir={prepare_tiny(tmp_path)} --out_dir="$OUT"\n'
    begin, count = BEGINS.subn(small, SCRIPTS["begin.sh"])
    assert count == 1
    for name, text in {
        "begin.sh": begin.replace("/mnt/shared/out-gpt2-xl", str(tmp_path / "run")),
        "keep.sh": SCRIPTS["keep.sh"].replace("/mnt/shared/nanogpt-jax", str(tmp_path)),
        "worker.sh": "true\n",
        "train.py": (ROOT / "train.py").read_text(),
    }.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "gcloud.py").write_text(GCLOUD)
    stand_in = shlex.join([sys.executable, str(tmp_path / "gcloud.py")])  # a first line knows no path with a space
    for path, text in {
        tmp_path / "bin" / "gcloud": f'#!/bin/sh\nexec {stand_in} "$@"\n',
        tmp_path / "venv" / "bin" / "activate": "",
    }.items():
        path.parent.mkdir(parents=True)
        path.write_text(text)
        path.chmod(0o755)
    path = os.pathsep.join([str(tmp_path / "bin"), os.path.dirname(sys.executable), os.environ["PATH"]])
    own = {"PATH": path, "HOME": str(tmp_path), "PAUSE": "0", "CLOUD": str(tmp_path), "PYTHONPATH": str(ROOT)}
    return tmp_path, {**os.environ, **own}


def run(script, folder, environment):
    return subprocess.run(
        ["bash", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=HANGS, check=False
    )


def asked_for(folder):
    return [re.search(r"create|ssh|delete", call)[0] for call in (folder / "calls").read_text().splitlines()
            if "describe" not in call]  # fmt: skip


def test_a_run_whose_slice_is_taken_goes_on_on_the_next_one(cloud):
    folder, _ = cloud
    done = run("keep.sh", *cloud)
    assert done.returncode == 0, done.stderr
    assert "stopped and saved; go on with" in done.stdout and "final val loss" in done.stdout
    assert asked_for(folder) == ["create", "ssh", "ssh", "delete"] * 2
    steps = [line["step"] for line in metrics_of(folder / "run") if line["split"] == "train"]
    assert steps == [0, 100, 200]  # each once, in order
    again = run("begin.sh", *cloud)
    assert (again.returncode, again.stderr) == (0, "")
    assert "is finished, at iteration 300" in again.stdout


def test_the_large_run_of_the_page_would_begin(tmp_path):
    command = BEGINS.search(SCRIPTS["begin.sh"])[1].replace("\\\n", " ")
    for there, here in {"/mnt/shared/data": ROOT / "data", '"$OUT"': tmp_path / "run"}.items():
        assert there in command
        command = command.replace(there, shlex.quote(str(here)))
    require_meaning(command, tmp_path)


def test_a_run_that_fails_on_a_slice_that_is_there_is_not_tried_for_ever(cloud):
    folder, _ = cloud
    (folder / "worker.sh").write_text("false\n")
    done = run("keep.sh", *cloud)
    assert done.returncode == 1
    assert done.stdout == "five tries on one slice have failed; it is still there, and costs\n"
    assert asked_for(folder) == ["create", *["ssh"] * 5]
