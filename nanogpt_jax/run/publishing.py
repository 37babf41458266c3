"""A run whose `out_dir` is in a bucket: written in a folder of this machine, and put into the bucket as it grows.

Each finished checkpoint goes there in the background, and with it what `metrics.jsonl` has grown by, as one more part:
first the metrics, then the checkpoint's files, and its sums last, with which it is there. So whatever instant the
process is killed at, the bucket holds a run as a disk would, from which another machine goes on. What is in the bucket
is the run: what this machine has beyond it is let go when the run goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from nanogpt_jax.core.errors import RunFailed, UserError, in_short
from nanogpt_jax.core.train_step import TrainState
from nanogpt_jax.data.addresses import at_hand, is_address
from nanogpt_jax.data.bucket import Bucket
from nanogpt_jax.data.commands import flags_to_resume, pasteable
from nanogpt_jax.data.files import is_file, names_in
from nanogpt_jax.run.faults import only_run_in, unwritable
from nanogpt_jax.run.metrics_parts import fetched_parts, part
from nanogpt_jax.run.one_writer import Writer, only_writer_in
from nanogpt_jax.run.recipe import CONFIG_FILE
from nanogpt_jax.run.sinks import FIGURE_FILE, METRICS_FILE, TENSORBOARD_FOLDER, WANDB_FOLDER, WANDB_ID
from nanogpt_jax.weights.checkpoint import FOLDER, Checkpoint, RunDocument, steps_in
from nanogpt_jax.weights.checkpoint_files import FILES, SUMS
from nanogpt_jax.weights.run_in_bucket import (
    fetch_checkpoints,
    folder_of,
    marker_of,
    remove,
    require_checkpoint,
    whole_steps,
)
from nanogpt_jax.weights.saving import CheckpointWriter

_LOOK = 0.2  # seconds between two looks for a checkpoint that has been finished
_TAKEN_ALONG = (CONFIG_FILE, FIGURE_FILE, f"{TENSORBOARD_FOLDER}/", f"{WANDB_FOLDER}/{WANDB_ID}")
_SET_ASIDE = "damaged/"  # which goes into the bucket, and is not fetched again


class Publisher:
    """Puts what the run's folder holds into its bucket, whenever a checkpoint is there that the bucket has not.

    Attributes:
        address: of the run.
    """

    def __init__(self, writer: Writer, parts: list[bytes]) -> None:
        """Open for a run that nobody else writes; `parts` are those of its metrics, as they are in the bucket now.

        `begin` says when the folder is what the run goes on from.
        """
        self._writer, self._bucket, self._found = writer, writer.bucket, parts
        self.address = self._bucket.address
        self._folder = at_hand(self.address)
        self._there: set[int] = set()  # checkpoints that the bucket has
        self._parts: list[int] = []  # bytes of the parts of the metrics that it has, which the file begins with
        self._others: dict[str, tuple[int, int]] = {}  # size and time of the other files, as they were put
        self._at_work = threading.Lock()
        self._failed: RunFailed | None = None
        self._begun, self._ended = False, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def begin(self) -> None:
        """Take away from the bucket what is beyond the folder, and publish from now on.

        That is half a checkpoint of a process that was killed, a damaged one, and lines of metrics past the newest.
        Raises `OSError` if the store refuses that.
        """
        self._writer.require()
        objects = self._bucket.objects()
        self._there = {step for step in whole_steps(objects) if self._is_the_same(step)}
        metrics = self._metrics()
        for data in self._found:
            begins = sum(self._parts)
            if data != metrics[begins : begins + len(data)]:
                break
            self._parts.append(len(data))
        self._put_metrics()  # over the first part that is another, before those after it go: no line is ever missing
        self._bucket.delete([part(number) for number in reversed(range(len(self._parts), len(self._found)))])
        self._put_others()  # a checkpoint set aside is in `damaged` before it is taken away
        whole = tuple(folder_of(step) for step in self._there)
        stale = [name for name in objects if name.startswith(f"{FOLDER}/") and not name.startswith(whole)]
        stale += [name for name in objects if name.startswith(_TAKEN_ALONG) and name not in self._others]
        self._delete(stale)
        self._begun = True
        self._thread.start()

    def publish(self, *, all_of_it: bool = False) -> None:
        """Bring the bucket up to the newest checkpoint in the folder, or to all that is there; nothing before `begin`.

        Raises `RunFailed` if that cannot be, now or before.
        """
        if not self._begun:
            return
        with self._at_work:
            self.check()
            try:
                self._publish(all_of_it)
            except (OSError, UserError) as error:
                reason = error.strerror if isinstance(error, OSError) and error.strerror else in_short(error)
                self._failed = RunFailed(
                    f"the run could not be put into {self.address} ({reason}); mend that, then go on from the newest "
                    f"checkpoint there with {flags_to_resume(self.address)}"
                )
                raise self._failed from error
            except RunFailed as error:
                self._failed = error
                raise

    def check(self) -> None:
        """Raise if publishing has failed in the meantime; does not wait."""
        if self._failed is not None:
            raise self._failed

    def close(self) -> None:
        """Publish no more; what is being put at this moment is finished."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(_LOOK):
            with contextlib.suppress(RunFailed):  # which the run asks for by `check`
                self.publish()
            if self._failed is not None:
                return

    def _publish(self, all_of_it: bool) -> None:
        here = set(steps_in(self._folder))
        new, gone = sorted(here - self._there), sorted(self._there - here)
        if not (new or gone or all_of_it):
            return
        self._writer.require()
        self._put_metrics()
        self._put_others()
        for step in new:
            marker = marker_of(step)
            paths = (path for path in (self._folder / folder_of(step)).rglob("*") if is_file(path))
            files = {path.relative_to(self._folder).as_posix(): path for path in paths}
            last = files.pop(marker)
            self._bucket.upload(files)
            self._writer.require()
            self._bucket.upload({marker: last})
            self._there.add(step)
        for step in gone:
            self._delete(self._bucket.objects(f"{FOLDER}/{step}"))
            self._there.remove(step)

    def _metrics(self) -> bytes:
        """The whole lines of the run's metrics."""
        with contextlib.suppress(FileNotFoundError):
            data = (self._folder / METRICS_FILE).read_bytes()
            return data[: data.rfind(b"\n") + 1]
        return b""

    def _put_metrics(self) -> None:
        """Put what the metrics have grown by as the next part."""
        if rest := self._metrics()[sum(self._parts) :]:
            self._bucket.write(part(len(self._parts)), rest)
            self._parts.append(len(rest))

    def _put_others(self) -> None:
        """Put the other files of the run that have changed."""
        changed = {}
        for path in self._folder.rglob("*"):
            name = path.relative_to(self._folder).as_posix()
            if name.startswith((*_TAKEN_ALONG, _SET_ASIDE)) and is_file(path):
                now = path.stat().st_size, path.stat().st_mtime_ns
                if self._others.get(name) != now:
                    changed[name], self._others[name] = path, now
        if changed:
            self._bucket.upload(changed)

    def _is_the_same(self, step: int) -> bool:
        here = self._folder / marker_of(step)
        return is_file(here) and here.read_bytes() == self._bucket.read(marker_of(step))

    def _delete(self, names: Iterable[str]) -> None:
        """Take objects away, the markers of checkpoints first: what is left of one is none then."""
        self._bucket.delete(sorted(names, key=lambda name: (not name.endswith(f"/{FILES}/{SUMS}"), name)))


class PublishedCheckpoints(CheckpointWriter):
    """Saves the checkpoints of a run in a bucket: one is saved when it is there, and the next one waits for that.

    Of several processes, which need no disk in common, the first one saves what all of them give it.
    """

    def __init__(self, out_dir: Path, since: Checkpoint | None, publisher: Publisher) -> None:
        """Open for a run that goes on from `since`, whose folder is `out_dir` on this machine."""
        super().__init__(out_dir, since, alone=jax.process_count() > 1)
        self._publisher = publisher
        publisher.begin()

    def save(self, state: TrainState, run: RunDocument) -> None:
        whole = state if jax.process_count() == 1 else jax.tree.map(_whole, _saved(state))
        self.wait()
        super().save(whole, run)

    def check(self) -> None:
        super().check()
        self._publisher.check()

    def wait(self) -> None:
        super().wait()
        self._publisher.publish()


class GivenAway(CheckpointWriter):
    """The other processes' side of `PublishedCheckpoints`: they give what they hold, and save nothing."""

    def __init__(self) -> None:
        """Open; there is nothing here."""

    def save(self, state: TrainState, run: RunDocument) -> None:
        for array in jax.tree.leaves(_saved(state)):
            _whole(array)

    def check(self) -> None:
        pass

    def wait(self) -> None:
        pass

    def close(self) -> None:
        pass


def _saved(state: TrainState) -> TrainState:
    """What is saved of a state: all but a base, which lies elsewhere."""
    return dataclasses.replace(state, base=None)


def _whole(array: jax.Array) -> np.ndarray:
    """An array of which each process of the job has a share, in the memory of each; one at a time."""
    return np.asarray(array if array.is_fully_replicated else multihost_utils.process_allgather(array, tiled=True))


def require_new(address: str) -> None:
    """Raise `UserError` unless a new run can begin at an address: there is such a bucket, and no run in it."""
    with unwritable(address):
        steps = whole_steps(Bucket(address).objects(FOLDER))
    if steps:
        on = pasteable("train", init_from="resume", out_dir=address)
        raise UserError(
            f"out_dir={address} holds a run, of {steps[-1]} iterations; go on with it: {on}, or name another"
        )


@contextlib.contextmanager
def only_run_at(out_dir: str, *, resuming: bool) -> Iterator[Publisher | None]:
    """Keep other runs out of `out_dir` while the block runs; what puts the run into its bucket, if that is in one.

    Its folder is made, or is there when it goes on: of a run in a bucket that which is fetched. Raises `UserError` if
    another run is at work there, or the system or the store refuses it.
    """
    folder = at_hand(out_dir)
    if not is_address(out_dir):
        with unwritable(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with only_run_in(folder):
            yield None
        return
    bucket = Bucket(out_dir)
    _require(bucket, resuming)  # before anything is put there
    with unwritable(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with only_run_in(folder), contextlib.ExitStack() as held:
        with unwritable(folder):
            writer = held.enter_context(only_writer_in(bucket))
            _require(bucket, resuming)
            publisher = Publisher(writer, _fetch(bucket, folder, resuming))
        held.callback(publisher.close)
        yield publisher


def _require(bucket: Bucket, resuming: bool) -> None:
    if resuming:
        with unwritable(bucket.address):
            require_checkpoint(bucket.address, whole_steps(bucket.objects(FOLDER)))
    else:
        require_new(bucket.address)


def _fetch(bucket: Bucket, folder: Path, resuming: bool) -> list[bytes]:
    """Make of `folder` what the run in the bucket is, or nothing for a new one; the parts of the metrics there."""
    names = list(bucket.objects())
    parts = fetched_parts(bucket, names)
    for name in names_in(folder):
        if not name.startswith(".") and not (resuming and name == FOLDER):
            remove(folder / name)
    if resuming:
        fetch_checkpoints(bucket, names, folder)
        bucket.download([name for name in names if name.startswith(_TAKEN_ALONG)], folder)
        (folder / METRICS_FILE).write_bytes(b"".join(parts))
    return parts
