"""A run in a bucket is what it would be on a disk: killed at any instant it goes on, and one process writes it."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest

from nanogpt_jax import plot, sweep
from nanogpt_jax.cli import prepare, sample, train
from nanogpt_jax.core.errors import RunFailed
from nanogpt_jax.data import bucket as buckets
from nanogpt_jax.data.addresses import at_hand
from nanogpt_jax.data.bucket import Bucket
from nanogpt_jax.run import one_writer, publishing
from nanogpt_jax.run.conversion import convert
from nanogpt_jax.run.metrics_parts import curves_at_hand
from nanogpt_jax.run.one_writer import only_writer_in
from nanogpt_jax.weights.checkpoint import FOLDER, steps_in
from nanogpt_jax.weights.checkpoint_files import RUN, SUMS, sum_of
from nanogpt_jax.weights.run_in_bucket import fetched_checkpoint, whole_steps
from tests.helpers.buckets import Killed, Remembered, gs_store, on_a_machine, s3_store
from tests.helpers.commands import HANGS, ROOT, command, metrics_of
from tests.helpers.jobs import finish, free_port, virtual_devices
from tests.helpers.refusals import refusal
from tests.helpers.states import assert_same_bits, state_of, tree_of
from tests.helpers.tiny import TINY, prepare_tiny

OFTEN = ("--save_interval=10", "--max_iters=40")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return prepare_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def local(data_dir, tmp_path_factory):
    """A run on a disk, which nothing befell."""
    out_dir = tmp_path_factory.mktemp("local") / "run"
    assert train.main([*TINY, *OFTEN, f"--data_dir={data_dir}", f"--out_dir={out_dir}"]) == 0
    return out_dir


@pytest.fixture(scope="module")
def store():
    with s3_store() as store:
        yield store


@pytest.fixture
def machine(store, tmp_path, monkeypatch):
    on_a_machine(monkeypatch, tmp_path / "cache", s3=store.address)


@pytest.fixture(scope="module")
def made(store, data_dir, tmp_path_factory):
    """The same run in a bucket."""
    with pytest.MonkeyPatch.context() as patch:
        on_a_machine(patch, tmp_path_factory.mktemp("made") / "cache", s3=store.address)
        assert train.main([*TINY, *OFTEN, f"--data_dir={data_dir}", "--out_dir=s3://bkt/made"]) == 0
    return "s3://bkt/made"


def resume(address, *flags):
    return train.main(["--init_from=resume", f"--out_dir={address}", "--accelerator=cpu", *flags])


def losses_of(folder):
    return [(line["step"], line["split"], line["loss"]) for line in metrics_of(folder)]


def assert_same_run(address, local):
    assert_same_bits(state_of(fetched_checkpoint(address, "last")), state_of(local))
    assert losses_of(curves_at_hand(address)) == losses_of(local)
    assert whole_steps(Bucket(address).objects()) == steps_in(local)


def test_a_run_in_a_bucket_is_that_of_a_disk(machine, made, local):
    assert_same_run(made, local)
    names = {path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file()}
    of_a_bucket = {"writer/1", *(name for name in Bucket(made).objects() if name.startswith("metrics/"))}
    assert set(Bucket(made).objects()) == (names - {".lock", "metrics.jsonl"}) | of_a_bucket


def test_what_reads_runs_reads_those_in_buckets(machine, made, local, tmp_path, capsys):
    told = []
    for run in (local, made):
        flags = ("--num_samples=2", "--max_new_tokens=30", "--accelerator=cpu")
        assert sample.main([f"--out_dir={run}", *flags]) == 0
        assert train.main([*TINY, "--init_from=resume", f"--out_dir={run}", "--eval_only", "--which=best"]) == 0
        told.append(capsys.readouterr().out)
    for run in (local, made):
        convert(str(run), str(tmp_path / "hf" / Path(run).parent.name), "hf")
    assert told[0] == told[1]
    converted = [path.read_bytes() for path in (tmp_path / "hf").glob("*/model.safetensors")]
    assert len(converted) == 2 and converted[0] == converted[1]
    assert plot.main([made, str(local), f"--png={tmp_path / 'both.png'}"]) == 0
    assert (tmp_path / "both.png").stat().st_size > 1000


LAST_OBJECT = (("PUT", "20/files/sums.json"), True)
OTHERS = (
    (("PUT", "10/files/run.json"), False),
    (("PUT", "10/files/sums.json"), False),
    (("PUT", "20/files/params.safetensors"), True),
    (("DELETE", "10/files/sums.json"), False),
    (("DELETE", "10/files/params.safetensors"), True),
)


@pytest.mark.parametrize("instants", [[LAST_OBJECT], pytest.param([*OTHERS], marks=pytest.mark.release)])
def test_processes_that_are_killed_cost_no_bit_and_no_line(store, machine, data_dir, local, instants):
    """Each dies by SIGKILL when an object of a checkpoint has arrived, to be put or taken away, or lost."""
    address, flags = f"s3://bkt/killed{len(instants)}", [*TINY, *OFTEN, f"--data_dir={data_dir}"]
    for instant, is_lost in instants:
        argv = [sys.executable, str(ROOT / "train.py"), *flags, f"--out_dir={address}"]
        with subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL) as life:

            def kill(asked, life=life, instant=instant, is_lost=is_lost):
                is_it = asked == (instant[0], f"/{address.removeprefix('s3://')}/{FOLDER}/{instant[1]}")
                if is_it:
                    life.kill()
                    life.wait()
                return is_it and is_lost

            store.before = kill
            try:
                assert life.wait(timeout=HANGS) == -signal.SIGKILL
            finally:
                store.before = lambda asked: False
                life.kill()
        if whole_steps(Bucket(address).objects()):
            flags = ["--init_from=resume", "--accelerator=cpu"]
    begun = {name.split("/")[1] for name in Bucket(address).objects(FOLDER)}
    assert len(begun) == len(whole_steps(Bucket(address).objects())) + 1  # half a checkpoint, which is none
    assert resume(address) == 0
    assert_same_run(address, local)
    assert {name.split("/")[1] for name in Bucket(address).objects(FOLDER)} == {"30", "40"}


@pytest.fixture
def checkpoints(local, tmp_path):
    """Whole checkpoints of 20, 30 and 40 iterations, which differ in no more than that."""
    made = {step: shutil.copytree(local / FOLDER / "40", tmp_path / str(step)) / "files" for step in (20, 30, 40)}
    for step, files in made.items():
        document = json.loads((files / RUN).read_text()) | {"step": step}
        (files / RUN).write_text(json.dumps(document))
        sums = json.loads((files / SUMS).read_text()) | {RUN: sum_of(files / RUN)}
        (files / SUMS).write_text(json.dumps(sums))
    return {step: files.parent for step, files in made.items()}


def test_killed_before_any_change_of_the_bucket_a_run_is_whole_and_goes_on(local, checkpoints, tmp_path, monkeypatch):
    """A run is saved after 20, 30 and 40 iterations, of which the last two stay."""
    on_a_machine(monkeypatch, tmp_path / "cache")
    lines = (local / "metrics.jsonl").read_bytes().splitlines(keepends=True)

    def metrics_before(step):
        return b"".join(line for line in lines if json.loads(line)["step"] < step)

    def live(store, since):
        """Begin, or go on from a checkpoint, and save the later ones; `Killed` where the store says so."""
        monkeypatch.setattr(fsspec, "filesystem", lambda *_, **__: store)
        with publishing.only_run_at("s3://bkt/run", resuming=since > 0) as publisher:
            folder = at_hand("s3://bkt/run")
            (folder / "metrics.jsonl").write_bytes(metrics_before(since))
            monkeypatch.setattr(publisher._thread, "start", lambda: None)  # all is done here, and in order
            publisher.begin()
            for step in (step for step in checkpoints if step > since):
                (folder / "metrics.jsonl").write_bytes(metrics_before(step))
                shutil.copytree(checkpoints[step], folder / FOLDER / str(step))
                shutil.rmtree(folder / FOLDER / str(step - 20), ignore_errors=True)
                publisher.publish()
            publisher.publish(all_of_it=True)

    def run_in(objects):
        """What the bucket holds of the run, with its metrics as one, and but for an older checkpoint that is whole."""
        older = "bkt/run/checkpoints/20/"  # which the next save would let go, on a disk too
        left_out = ("bkt/run/writer/", older) if f"{older}files/sums.json" in objects else ("bkt/run/writer/",)
        kept = {name: data for name, data in sorted(objects.items()) if not name.startswith(left_out)}
        parts = [kept.pop(name) for name in list(kept) if name.startswith("bkt/run/metrics/")]
        return kept, b"".join(parts)

    peaceful, seen = {}, set()
    live(Remembered(peaceful), 0)
    for lives in itertools.count():
        objects = {}
        try:
            live(Remembered(objects, lives), 0)
        except Killed:
            steps = whole_steps(name.removeprefix("bkt/run/") for name in objects)
            seen.add(tuple(steps))
            if steps:
                newest = fetched_checkpoint("s3://bkt/run", "last") / FOLDER / str(steps[-1])
                assert [*tree_of(newest).values()] == [*tree_of(checkpoints[steps[-1]]).values()]
            live(Remembered(objects), steps[-1] if steps else 0)
        assert run_in(objects) == run_in(peaceful)
        if lives > len(objects) + 20:
            break
    assert seen == {(), (20,), (20, 30), (20, 30, 40), (30, 40)}


def test_one_process_writes(store, machine, made, tmp_path, monkeypatch):
    monkeypatch.setattr(one_writer, "BEAT", 0.05)
    busy = "another run is writing into out_dir=s3://bkt/{}; wait for it, stop it, or name another folder"
    with only_writer_in(Bucket("s3://bkt/one")), pytest.MonkeyPatch.context() as patch:
        on_a_machine(patch, tmp_path / "other", s3=store.address)  # whose kernel knows nothing of this process
        before = list(Bucket("s3://bkt/one").objects())
        assert refusal(only_writer_in(Bucket("s3://bkt/one")).__enter__) == busy.format("one")
        assert list(Bucket("s3://bkt/one").objects()) == before
    with publishing.only_run_at(made, resuming=True):  # and on one machine nobody waits
        assert refusal(resume, made) == busy.format("made")


def test_a_dead_writer_is_followed_and_one_that_wakes_up_ends(store, machine, tmp_path, monkeypatch):
    monkeypatch.setattr(one_writer, "SILENCE", 0.3)
    monkeypatch.setattr(one_writer, "BEAT", 60)  # it gives no sign of life
    with only_writer_in(Bucket("s3://bkt/dead")) as asleep, pytest.MonkeyPatch.context() as patch:
        on_a_machine(patch, tmp_path / "other", s3=store.address)
        with only_writer_in(Bucket("s3://bkt/dead")) as follower:
            follower.require()
            with pytest.raises(RunFailed, match="leave it to that one, or stop it and go on from its newest"):
                asleep.require()
    assert "writer/2" in Bucket("s3://bkt/dead").objects()


def test_a_store_that_cannot_keep_others_out_is_refused(tmp_path, monkeypatch):
    on_a_machine(monkeypatch, tmp_path / "cache")
    store = Remembered({})
    monkeypatch.setattr(fsspec, "filesystem", lambda *_, **__: store)
    monkeypatch.setattr(store, "pipe_file", lambda path, data, mode=None: store.objects.update({path: data}))
    assert "name a bucket of a store that does as told" in refusal(only_writer_in(Bucket("s3://bkt/x")).__enter__)


def test_data_lies_in_a_bucket(store, machine, data_dir, made, local, tmp_path):
    for path in (data_dir / "tiny").iterdir():
        store.put(f"bkt/data/tiny/{path.name}", path.read_bytes())
    flags = [*TINY, *OFTEN, "--data_dir=s3://bkt/data", f"--out_dir={tmp_path / 'run'}"]
    assert train.main(flags) == 0
    assert_same_bits(state_of(tmp_path / "run"), state_of(local))
    asked = len(store.asked)
    assert train.main([*flags, "--eval_only"]) == 0
    assert not any("train.bin" in path for _, path in store.asked[asked:])  # which is here
    tokens = (data_dir / "tiny" / "train.bin").read_bytes()
    store.put("bkt/data/tiny/train.bin", tokens[2:] + tokens[:2])
    resuming = ("--init_from=resume", f"--out_dir={tmp_path / 'run'}", "--max_iters=50", "--accelerator=cpu")
    assert "the tokens of s3://bkt/data/tiny are not those" in refusal(train.main, resuming)


def test_a_run_ended_by_the_store_goes_on_in_processes_without_a_disk_in_common(
    store, machine, data_dir, local, tmp_path
):
    address = "s3://bkt/job"

    def refuse_from_here(asked):
        store.refuses |= asked == ("PUT", "/bkt/job/checkpoints/20/files/run.json")
        return False

    store.before = refuse_from_here
    try:
        with pytest.raises(RunFailed) as failed:
            train.main([*TINY, *OFTEN, f"--data_dir={data_dir}", f"--out_dir={address}"])
    finally:
        store.before, store.refuses = lambda asked: False, False
    assert str(failed.value) == (
        f"the run could not be put into {address} (Access Denied); mend that, then go on from the newest checkpoint "
        f"there with --init_from=resume --out_dir={address}"
    )
    assert whole_steps(Bucket(address).objects()) == [10]
    resuming = ("--init_from=resume", f"--out_dir={address}", "--mesh=fsdp:2", "--accelerator=cpu")
    job = (*resuming, f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2", "--connect_timeout=600")
    started = [
        subprocess.Popen(
            [sys.executable, ROOT / "train.py", *job, f"--process_id={i}"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**virtual_devices(1), "XDG_CACHE_HOME": str(tmp_path / cache)},
        )
        for i, cache in enumerate(("cache", "another"))
    ]  # fmt: skip
    for done in finish(started):
        assert done.status == 0, done.err
    assert whole_steps(Bucket(address).objects()) == steps_in(local)
    here, there = losses_of(curves_at_hand(address)), losses_of(local)
    assert [line[:2] for line in here] == [line[:2] for line in there]
    np.testing.assert_allclose([line[2] for line in here], [line[2] for line in there], rtol=1e-5)
    same = partial(jax.tree.map, partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5))
    same(state_of(fetched_checkpoint(address, "last")), state_of(local))


def test_what_cannot_be_is_refused_in_a_line_and_nothing_is_written(store, machine, data_dir, made, monkeypatch):
    begun = [*TINY, "--max_iters=10", f"--data_dir={data_dir}"]
    before = [request for request in store.asked if request[0] in ("PUT", "POST", "DELETE")]
    absent = "cannot be written (there is no such bucket); check the name"
    assert refusal(train.main, [*begun, "--out_dir=s3://absent/run"]) == f"out_dir=s3://absent/run {absent}"
    reads = "cannot be read (there is no such bucket); check the name"
    done = command("sample.py", "--out_dir=s3://absent/run")
    assert (done.status, done.err) == (2, f"error: s3://absent/run {reads}\n")
    assert refusal(train.main, [*TINY, "--data_dir=s3://absent"]) == f"s3://absent/tiny {reads}"
    assert "s3:///run names no bucket" in refusal(train.main, [*begun, "--out_dir=s3:///run"])
    assert "s3://bkt/none holds no finished checkpoint" in refusal(resume, "s3://bkt/none")
    assert "s3://bkt/none is not a prepared data set" in refusal(buckets.fetched_data_set, "s3://bkt/none")
    assert refusal(train.main, [*begun, f"--out_dir={made}"]).startswith(
        f"out_dir={made} holds a run, of 40 iterations"
    )
    for refused in (
        lambda: prepare.main_known("shakespeare_char", ["--data_dir=s3://bkt/data"]),
        lambda: sweep.main(["gpt_dev", "--seed=0..1", "--out_dir=s3://bkt/sweep", "--accelerator=cpu"]),
        lambda: convert(made, "s3://bkt/converted"),
    ):
        assert "is in a bucket, where only runs are written; name a folder, and copy it there" in refusal(refused)
    monkeypatch.setattr(store, "refuses", True)
    assert "(Access Denied); get the permission for it" in refusal(train.main, [*begun, "--out_dir=s3://bkt/new"])
    monkeypatch.setattr(store, "refuses", False)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert "(Unable to locate credentials); check the network, and the credentials" in refusal(
        train.main, [*begun, "--out_dir=s3://bkt/new"]
    )
    monkeypatch.setattr(buckets.importlib.util, "find_spec", lambda name: None)
    assert refusal(train.main, [*begun, "--out_dir=gs://bkt/new"]) == (
        "gs://bkt/new needs gcsfs, which is not installed; pip install -e '.[bucket]'"
    )
    assert [request for request in store.asked if request[0] in ("PUT", "POST", "DELETE")] == before


def test_google_s_store_keeps_the_same_promises(data_dir, local, tmp_path, monkeypatch):
    with gs_store() as address:
        on_a_machine(monkeypatch, tmp_path / "cache", gs=address)
        run = "gs://bkt/run"
        assert (
            train.main([*TINY, "--save_interval=10", "--max_iters=20", f"--data_dir={data_dir}", f"--out_dir={run}"])
            == 0
        )
        assert resume(run, "--max_iters=40") == 0
        assert_same_run(run, local)
        assert not Bucket(run).create("writer/2", b"another")
        absent = refusal(train.main, [*TINY, f"--data_dir={data_dir}", "--out_dir=gs://absent/run"])
        assert absent == "out_dir=gs://absent/run cannot be written (there is no such bucket); check the name"
