"""Processes that torchrun starts join each other or are refused; one that waits for others says for whom."""

import subprocess
import sys
import threading

import pytest

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.run import job
from nanogpt_jax.run.job import of_torchrun, told_if_it_waits, whom_it_waits_for
from tests.helpers.commands import ROOT
from tests.helpers.jobs import finish, free_port, virtual_devices
from tests.helpers.tiny import TINY, prepare_tiny

TORCHRUNS = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"}


def test_torchruns_variables_are_a_job():
    assert of_torchrun(TORCHRUNS) == {
        "coordinator_address": "10.0.0.1:1235", "num_processes": 2, "process_id": 1, "local_device_ids": [1],
    }  # fmt: skip
    assert of_torchrun({}) is None and of_torchrun({"RANK": "0"}) is None
    assert of_torchrun({**TORCHRUNS, "RANK": "0", "WORLD_SIZE": "1"}) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("MASTER_ADDR", ""), ("MASTER_PORT", "http"), ("MASTER_PORT", "65535"), ("RANK", "2"), ("WORLD_SIZE", "")],
)
def test_variables_that_torchrun_does_not_set_so_are_refused_by_one_line(name, value):
    mend = "start all processes by torchrun, or unset RANK and WORLD_SIZE"
    with pytest.raises(UserError, match=rf"^[^\n]*{name}={value}[^\n]*; {mend} to train alone$"):
        of_torchrun({**TORCHRUNS, name: value})


def test_two_processes_with_torchruns_variables_train_together(tmp_path):
    data_dir, port = prepare_tiny(tmp_path), free_port() - 1
    flags = (*TINY, "--max_iters=1", f"--data_dir={data_dir}", f"--out_dir={tmp_path / 'run'}", "--connect_timeout=120")
    done = finish(
        [
            subprocess.Popen(
                [sys.executable, ROOT / "train.py", *flags],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
                env={**virtual_devices(1), **TORCHRUNS, "RANK": str(rank), "LOCAL_RANK": str(rank),
                     "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
            )
            for rank in range(2)
        ]
    )  # fmt: skip
    assert [each.status for each in done] == [0, 0], done
    assert "2 x cpu, 2 hosts, mesh data:2" in done[0].out and "step 1" not in done[1].out


def test_one_that_waits_says_for_whom(monkeypatch, capsys):
    monkeypatch.setattr(job, "PATIENCE", 0.0)
    said = threading.Event()
    monkeypatch.setattr("builtins.print", lambda line, **options: (sys.stderr.write(line), said.set()))
    with told_if_it_waits(whom_it_waits_for({}, 300, {"SLURM_NTASKS": "4"})):
        assert said.wait(60)
    line = capsys.readouterr().err
    assert line.startswith("SLURM_NTASKS=4 in the environment: waiting for the other processes of the job, for 300 s")
    named = whom_it_waits_for(of_torchrun(TORCHRUNS), 9, {})
    assert named == "process 1 of 2 waits for the others at 10.0.0.1:1235, for 9 s at most (--connect_timeout)"


def test_one_that_need_not_wait_says_nothing(capsys):
    with told_if_it_waits("waiting"):
        pass
    assert capsys.readouterr().err == ""
