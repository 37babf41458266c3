"""The torture in short; `python -m tests.torture --kills=200` is the long form, `.ci/release` the longest."""

import subprocess
import sys

import pytest

from tests.helpers.commands import ROOT


@pytest.mark.parametrize(("kills", "processes"), [(4, 1), pytest.param(3, 2, marks=pytest.mark.release)])
def test_kills_lose_nothing_and_change_no_bit(kills, processes):
    argv = [sys.executable, "-m", "tests.torture", f"--kills={kills}", f"--processes={processes}", "--seed=1"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"| kills | {kills} |" in done.stdout
