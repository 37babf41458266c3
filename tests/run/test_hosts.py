"""Several processes on this machine train as one does, agree before they start, and end together."""

import json
import re
import resource
import signal
import subprocess
import sys
from functools import partial

import pytest

from nanogpt_jax.cli import train
from nanogpt_jax.run import hosts
from tests.helpers.commands import HANGS, ROOT, awaited, command, metrics_of
from tests.helpers.jobs import finish, free_port, virtual_devices
from tests.helpers.tiny import prepare_tiny

TINY = (
    "gpt_dev", "--dataset=tiny", "--n_layer=1", "--n_embd=32", "--block_size=16", "--batch_size=8", "--dropout=0.1",
    "--max_iters=20", "--eval_interval=10", "--eval_iters=2", "--log_interval=1", "--connect_timeout=600",
)  # fmt: skip
SIMPLE = (*TINY, "--model=bigram")  # whose start takes half the time, where the model is no matter
FOREVER = (*SIMPLE, "--max_iters=1000000000", "--eval_interval=1000000000", "--save_interval=50")

# What Gloo prints of every connection, which nobody can silence. It does so piece by piece, and a job has several
# connections at a time: on a busy machine their lines lie in each other.
GLOO = re.compile(
    r"\[Gloo\] Rank |\d| is connected to | peer ranks\. |Expected number of connected peer ranks is : |\n"
)


def start(count, *flags, devices=1, changed=()):
    """So many processes of one job; `changed` are flags of the last one alone."""
    flags = (*flags, f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={count}")
    own = [(f"--process_id={i}", *(changed if i == count - 1 else ())) for i in range(count)]
    return [
        subprocess.Popen(
            [sys.executable, ROOT / "train.py", *flags, *own[i]],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=virtual_devices(devices),
        )
        for i in range(count)
    ]  # fmt: skip


def losses(out_dir):
    return {(line["step"], line["split"]): line["loss"] for line in metrics_of(out_dir)}


def last_line(done):
    return done.err.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return prepare_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def alone(data_dir, tmp_path_factory):
    """The run of one process with one device."""
    out_dir = tmp_path_factory.mktemp("alone")
    assert train.main([*TINY, "--accelerator=cpu", f"--data_dir={data_dir}", f"--out_dir={out_dir}"]) == 0
    return out_dir


def test_processes_train_as_one(alone, data_dir, tmp_path):
    mesh = "data:2,tensor:2"
    flags = (*TINY, f"--mesh={mesh}", f"--data_dir={data_dir}", f"--out_dir={tmp_path}")
    done = finish(start(2, *flags, devices=2))
    assert [each.status for each in done] == [0, 0], done
    assert f"4 x cpu, 2 hosts, mesh {mesh}; float32 matrix products, xla attention" in done[0].out
    assert GLOO.sub("", done[1].out) == "", done[1].out
    assert losses(tmp_path) == pytest.approx(losses(alone), rel=0, abs=1e-5)


def test_a_checkpoint_of_eight_devices_goes_on_on_one_and_in_two_processes(alone, data_dir, tmp_path):
    out_dir, copy = tmp_path / "eight", tmp_path / "copy"
    flags = (*TINY, "--mesh=data:2,fsdp:2,tensor:2", f"--data_dir={data_dir}", f"--out_dir={out_dir}", "--max_iters=10")
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", *flags], env=virtual_devices(8), cwd=ROOT, capture_output=True, text=True,
        timeout=HANGS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    subprocess.run(["cp", "-r", out_dir, copy], check=True)
    assert train.main(["--init_from=resume", "--max_iters=20", f"--out_dir={out_dir}"]) == 0
    in_two = finish(start(2, "--init_from=resume", "--max_iters=20", "--mesh=fsdp:2", f"--out_dir={copy}"))
    assert [each.status for each in in_two] == [0, 0], in_two
    for run in (out_dir, copy):
        resumed, whole = losses(run), losses(alone)
        for key in whole:
            if key != (10, "val_whole"):
                assert resumed[key] == pytest.approx(whole[key], rel=0, abs=1e-5), key


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (("--learning_rate=0.5",), "the processes disagree on learning_rate: it is 0.001 in process 0 and 0.5 in pr"),
        (("--dataset=missing",), "the processes disagree on dataset"),
    ],
)
def test_processes_with_other_settings_do_not_start(data_dir, tmp_path, changed, message):
    done = finish(start(2, *SIMPLE, f"--data_dir={data_dir}", f"--out_dir={tmp_path / 'run'}", changed=changed))
    assert [each.status for each in done] == [2, 2], done
    assert message in last_line(done[1]) and "disagree on" in last_line(done[0])
    assert not (tmp_path / "run").exists()


def test_processes_with_other_data_do_not_start(data_dir, tmp_path):
    other = tmp_path / "tiny"
    subprocess.run(["cp", "-r", data_dir / "tiny", other], check=True)
    with open(other / "val.bin", "r+b") as file:
        file.write(b"\x05\x00\x06\x00")
    port = free_port()
    job = (f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--out_dir={tmp_path / 'run'}", "--data_dir=here")
    homes = [tmp_path / "home0", tmp_path / "home1"]
    for home, data in zip(homes, (data_dir, tmp_path), strict=True):
        home.mkdir()
        (home / "here").symlink_to(data)
    done = finish(
        [
            subprocess.Popen(
                [sys.executable, ROOT / "train.py", *SIMPLE, *job, f"--process_id={i}"],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=home, env=virtual_devices(1),
            )
            for i, home in enumerate(homes)
        ]
    )  # fmt: skip
    assert [each.status for each in done] == [2, 2], done
    assert all("disagree on the tokens of the data set" in last_line(each) for each in done)


def test_a_coordinator_out_of_reach_is_one_line(data_dir, tmp_path):
    job = (f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2", "--process_id=1", "--connect_timeout=2")
    done = command("train.py", *TINY, *job, f"--data_dir={data_dir}", f"--out_dir={tmp_path / 'run'}")
    assert done.status == 2
    assert re.search(
        r"did not find each other at coordinator=127\.0\.0\.1:\d+ within connect_timeout=2 s", last_line(done)
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--coordinator=here",), "num_processes is missing"),
        (("--coordinator=here", "--num_processes=2", "--process_id=0"), "coordinator='here' is not HOST:PORT"),
        (("--coordinator=here:1", "--num_processes=2", "--process_id=2"), "process_id=2 is larger than 1"),
        (("--mesh=data:3",), "mesh=data:3 is of 3 devices where there are 1"),
    ],
)
def test_a_job_that_cannot_be_is_one_line(data_dir, tmp_path, flags, message):
    done = command("train.py", "gpt_dev", *flags, f"--data_dir={data_dir}", f"--out_dir={tmp_path / 'run'}")
    assert (done.status, len(done.err.splitlines())) == (2, 1)
    assert message in done.err
    assert not (tmp_path / "run").exists()


def trained_until(out_dir, step, processes):
    """Wait until the job has trained so far."""
    file = out_dir / "metrics.jsonl"
    awaited(lambda: file.exists() and len(file.read_text().splitlines()) >= step, *processes)


def test_one_that_dies_ends_the_others_within_a_minute(data_dir, tmp_path):
    """Two jobs at once, of which one loses its first process and the other its second: most of it is waiting."""
    assert hosts.SILENCE + 10 * hosts.BEAT < 60  # which is all that a process waits for
    folders = [tmp_path / "first", tmp_path / "second"]
    jobs = [start(2, *FOREVER, f"--data_dir={data_dir}", f"--out_dir={folder}") for folder in folders]
    try:
        for dies in (1, 0):
            trained_until(folders[dies], 60, jobs[dies])
            jobs[dies][dies].kill()
        said = [job[1 - dies].communicate(timeout=HANGS)[1] for dies, job in enumerate(jobs)]
    finally:
        finish([process for job in jobs for process in job])
    for dies, (job, folder) in enumerate(zip(jobs, folders, strict=True)):
        line = said[dies].strip().splitlines()[-1]
        assert job[1 - dies].returncode == 1
        assert f"error: process {dies}" in line and f"--init_from=resume --out_dir={folder}" in line


JOINED = """
import os, signal, sys, time
from nanogpt_jax.core.config import Settings
from nanogpt_jax.run import hosts
port, process = map(int, sys.argv[1:])
hosts.join(Settings(coordinator=f"127.0.0.1:{port}", num_processes=2, process_id=process, connect_timeout=600))
if process == 0:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(600)
"""


def test_one_that_dies_before_training_ends_the_others_by_one_line():
    port = str(free_port())
    argv = [[sys.executable, "-c", JOINED, port, process] for process in ("0", "1")]
    pipe = subprocess.PIPE
    done = finish([subprocess.Popen(each, stdout=pipe, stderr=pipe, text=True, cwd=ROOT) for each in argv])
    assert [each.status for each in done] == [-signal.SIGKILL, 1], done
    assert "error: another process of the job is gone" in done[1].err and "start all of them again" in done[1].err


def saved(out_dir):
    """Whether the job has saved after its start; the oldest checkpoints go as newer ones come."""
    folder = out_dir / "checkpoints"
    return folder.is_dir() and any(path.name.isdigit() and path.name != "0" for path in folder.iterdir())


def test_one_that_cannot_write_says_why_and_ends_the_others(data_dir, tmp_path):
    """Two jobs at once: one that cannot write a line, one that writes none and cannot write a checkpoint."""
    folders = [tmp_path / "lines", tmp_path / "checkpoint"]
    own = [(), ("--log_interval=1000000000",)]  # saving needs both processes, and one has failed in it
    why = [f"the run in {folders[0]} could not go on (File too large); mend that", "the checkpoint of iteration"]
    places = [(f"--data_dir={data_dir}", f"--out_dir={folder}") for folder in folders]
    jobs = [start(2, *FOREVER, *flags, *place) for flags, place in zip(own, places, strict=True)]
    try:
        for folder, job in zip(folders, jobs, strict=True):
            awaited(partial(saved, folder), *job)
            resource.prlimit(job[0].pid, resource.RLIMIT_FSIZE, (1, 1))  # no file can grow: as on a full disk
    finally:
        done = finish([process for job in jobs for process in job])
    assert [each.status for each in done] == [1, 1, 1, 1], done
    for first, other, line in zip(done[::2], done[1::2], why, strict=True):
        assert last_line(first).startswith("error: " + line)
        assert "error: process 0 of 2 has failed: the " in last_line(other)


def test_a_loss_that_is_not_finite_ends_all_by_the_same_words(data_dir, tmp_path):
    huge = ("--learning_rate=1e30", "--decay_lr=False", "--grad_clip=0")
    done = finish(start(2, *SIMPLE, *huge, f"--data_dir={data_dir}", f"--out_dir={tmp_path}"))
    assert [each.status for each in done] == [1, 1], done
    assert all("not finite" in last_line(each) or "nan" in last_line(each) for each in done)


def test_ctrl_c_in_an_evaluation_stops_all_between_two_batches(data_dir, tmp_path):
    flags = (*FOREVER, "--eval_iters=1000000000", f"--data_dir={data_dir}", f"--out_dir={tmp_path}")
    processes = start(2, *flags)
    try:
        awaited((tmp_path / "checkpoints").is_dir, *processes)  # made once signals are listened to
        processes[0].send_signal(signal.SIGINT)
    finally:
        done = finish(processes)
    assert [each.status for each in done] == [130, 143], done
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["0"]


def test_sigterm_to_one_stops_all_at_the_same_step(data_dir, tmp_path):
    processes = start(2, *FOREVER, f"--data_dir={data_dir}", f"--out_dir={tmp_path}")
    try:
        trained_until(tmp_path, 60, processes)
        processes[1].send_signal(signal.SIGTERM)
    finally:
        done = finish(processes)
    assert [each.status for each in done] == [143, 143], done
    assert "stopped and saved" in done[0].out
    steps = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit())
    document = json.loads((tmp_path / "checkpoints" / str(steps[-1]) / "files" / "run.json").read_text())
    assert document["step"] == steps[-1] == max(line["step"] for line in metrics_of(tmp_path)) + 1
