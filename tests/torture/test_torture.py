"""The torture in short; `python -m tests.torture --kills=200` is the long form."""

import subprocess
import sys

from ..conftest import ROOT


def test_ten_kills_lose_nothing_and_change_no_bit():
    argv = [sys.executable, "-m", "tests.torture", "--kills=10", "--seed=1"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| kills | 10 |" in done.stdout
