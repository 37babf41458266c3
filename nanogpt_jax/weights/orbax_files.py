"""What Orbax does for checkpoints: large arrays in its own format, saving in the background, letting old ones go.

Importing Orbax takes most of a second, so this is imported where the first checkpoint is written, or a large one read.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies
from orbax.checkpoint.future import CommitFutureAwaitingContractedSignals
from orbax.checkpoint.handlers import AsyncCheckpointHandler

from nanogpt_jax.weights.checkpoint_files import FILES, SUMS, named, sum_of

_LATEST = 2
# Orbax reports routine matters as warnings; what a user must know reaches them as an exception.
logging.getLogger("absl").setLevel(logging.CRITICAL)

Arrays = dict[str, Any]


def open_manager(folder: Path, evaluated: list[tuple[float, int]], *, alone: bool = False) -> ocp.CheckpointManager:
    """The manager of the checkpoints in `folder`: it keeps the latest, and the best of `evaluated` as it grows.

    `evaluated` are pairs of a validation loss and its step. `alone` says that process 0 saves, and no other one of its
    job: they do not see the folder.
    """
    of_process_0 = ocp.options.MultiprocessingOptions(active_processes={0}, barrier_sync_key_prefix="alone")
    options = ocp.CheckpointManagerOptions(
        preservation_policy=_Kept(evaluated),
        cleanup_tmp_directories=True,
        save_root_metadata=False,
        create=not alone,
        multiprocessing_options=of_process_0 if alone else ocp.options.MultiprocessingOptions(),
        lightweight_initialize=True,  # else it reads the notes it makes of each checkpoint, which may be damaged
    )
    handlers = {  # in the order in which they are finished: the sums are of all files
        "params": ocp.StandardCheckpointHandler(),
        "rest": ocp.StandardCheckpointHandler(),
        FILES: _FilesHandler(),
    }
    return ocp.CheckpointManager(folder, options=options, item_handlers=handlers)


def save(manager: ocp.CheckpointManager, step: int, large: Mapping[str, Arrays], files: Mapping[str, bytes]) -> None:
    """Start to save a checkpoint of `large` arrays by item, and of `files` as they are.

    Returns once the arrays may be donated.
    """
    items = {item: ocp.args.StandardSave(arrays) for item, arrays in large.items()}
    manager.save(step, args=ocp.args.Composite(**items, **{FILES: _FilesArgs(files)}), force=True)


def mute_echoes() -> Callable[[], None]:
    """Let `sys.unraisablehook` pass over what follows a write that failed; returns what puts the usual one back.

    Orbax closes its event loop at the first failure, and each write that was under way then complains of that.
    """
    usual = sys.unraisablehook

    def hook(told: sys.UnraisableHookArgs) -> None:
        if str(told.exc_value) != "Event loop is closed":
            usual(told)

    sys.unraisablehook = hook
    return lambda: setattr(sys, "unraisablehook", usual)


@contextlib.contextmanager
def large_arrays(folder: Path) -> Iterator[tuple[Arrays, Callable[[Arrays], Arrays]]]:
    """What is known of the arrays in `folder`, and a function that reads them, each to where its twin lies."""
    with contextlib.closing(ocp.StandardCheckpointer()) as orbax:
        there = named(dict(orbax.metadata(folder).item_metadata.tree))
        yield there, lambda wanted: orbax.restore(folder, jax.tree.map(_abstract, wanted))


def _abstract(like: Any) -> jax.ShapeDtypeStruct:
    """What to restore, and where to: where `like` lies, or on this process's first device, wherever it was saved."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=getattr(like, "sharding", None) or here)


@dataclass
class _Kept(policies.PreservationPolicy):
    """Keeps the latest checkpoints, and the one with the lowest validation loss."""

    evaluated: list[tuple[float, int]]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-_LATEST:], *(step for _, step in sorted(self.evaluated)[:1])}
        return [step in kept for step in steps]


class _FilesHandler(AsyncCheckpointHandler):
    """Writes plain files, and at the end the sums of all files of the checkpoint."""

    async def async_save(self, directory: os.PathLike[str], args: _FilesArgs) -> list[Any]:
        return [CommitFutureAwaitingContractedSignals(self._write(directory, args.files), name="files")]

    def save(self, directory: os.PathLike[str], args: _FilesArgs) -> None:
        raise NotImplementedError("checkpoints are saved in the background")

    def restore(self, directory: os.PathLike[str], args: Any = None) -> None:
        raise NotImplementedError("files are read as files")

    async def _write(self, directory: os.PathLike[str], files: Mapping[str, bytes]) -> None:
        if jax.process_index() == 0:
            for name, data in files.items():
                _write(Path(directory) / name, data)

    def finalize(self, directory: os.PathLike[str]) -> None:
        here = Path(directory)
        files = sorted(path for path in here.parent.glob("*/**/*") if path.is_file())
        sums = {Path(os.path.relpath(path, here)).as_posix(): sum_of(path) for path in files}
        _write(here / SUMS, json.dumps(sums, indent=1).encode())


@ocp.args.register_with_handler(_FilesHandler, for_save=True, for_restore=True)
@dataclass
class _FilesArgs(ocp.args.CheckpointArgs):
    files: Mapping[str, bytes]


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
