"""Saving checkpoints while training goes on; `checkpoint.py` says what they are, and reads them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import numpy as safetensors

from nanogpt_jax.core.errors import RunFailed, in_short
from nanogpt_jax.core.train_step import TrainState
from nanogpt_jax.data.files import system_error
from nanogpt_jax.weights.checkpoint import (
    FOLDER,
    FORMAT,
    Checkpoint,
    RunDocument,
    how_to_go_on,
    steps_in,
    undamaged_runs,
)
from nanogpt_jax.weights.checkpoint_files import RUN, named, split

LARGE = 1 << 20  # bytes; from here on Orbax's time for one array is small beside that for its bytes


class CheckpointWriter:
    """Saves the checkpoints of the run in `out_dir`, in the background; `close` waits for it.

    Every method raises `RunFailed` if what was being saved could not be; the checkpoints before it stay.
    """

    def __init__(
        self, out_dir: Path, since: Checkpoint | None = None, *, large: int = LARGE, alone: bool = False
    ) -> None:
        """Open for a run that goes on from `since`; what lies beyond it is damaged and is set aside.

        `alone` says that process 0 of a job saves, in a folder of its own, what it is given whole. Raises `OSError` if
        the folder cannot be made.
        """
        self._out_dir, self._folder = out_dir, (out_dir / FOLDER).absolute()
        if jax.process_index() == 0:
            self._folder.mkdir(parents=True, exist_ok=True)
            _set_damaged_aside(out_dir, 0 if since is None else since.run.step)
        runs = [] if since is None else list(undamaged_runs(out_dir))
        self._evaluated = [(run.val_loss, run.step) for run in runs if run.val_loss is not None]
        self._large, self._alone = large, alone
        self._saving = self._latest = None if since is None else since.run.step
        self._manager: Any = None  # Orbax's, from the first save on: no update waits for its import
        self._unmute = contextlib.ExitStack()

    def save(self, state: TrainState, run: RunDocument) -> None:
        """Save the state after `run.step` updates; a step that has been saved is not saved again.

        Returns once `state` may be donated.
        """
        if run.step == self._latest:
            return
        from nanogpt_jax.weights import orbax_files

        with self._one_line():
            if self._manager is None:
                self._unmute.callback(orbax_files.mute_echoes())
                self._manager = orbax_files.open_manager(self._folder, self._evaluated, alone=self._alone)
            self._manager.wait_until_finished()
            self._latest, self._saving = run.step, run.step
            files, large = {}, {}
            for item, tree in zip(("params", "rest"), split(state), strict=True):
                arrays = named(tree)
                small = {name: np.asarray(x) for name, x in arrays.items() if _is_small(x, self._large)}
                files[f"{item}.safetensors"] = safetensors.save(small)
                if len(small) < len(arrays):
                    large[item] = {name: x for name, x in arrays.items() if name not in small}
            files[RUN] = json.dumps({"format": FORMAT, **vars(run)}).encode()
            if run.val_loss is not None:
                self._evaluated.append((run.val_loss, run.step))
            orbax_files.save(self._manager, run.step, large, files)

    def check(self) -> None:
        """Raise if saving has failed in the meantime; does not wait."""
        if self._manager is not None:
            with self._one_line():
                self._manager.check_for_errors()

    def wait(self) -> None:
        """Return once what was saved is on the disk."""
        if self._manager is not None:
            with self._one_line():
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish what is under way and let go of the folder; what has been closed may be closed again."""
        try:
            self.wait()
        finally:
            if self._manager is not None:
                with contextlib.suppress(Exception):  # said by `wait`
                    self._manager.close()
            self._manager = None
            self._unmute.close()

    @contextlib.contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise many kinds; to a user they all mean this
            self._unmute.pop_all()  # for good: writes that nobody waits for may go on complaining
            raise RunFailed(
                f"the checkpoint of iteration {self._saving} could not be saved in {self._folder} "
                f"({_reason(error)}); make room or mend the folder, then {how_to_go_on(self._out_dir)}"
            ) from error


def _set_damaged_aside(out_dir: Path, step: int) -> None:
    """Move checkpoints beyond `step` to `out_dir/damaged`: the run is about to write its own under their names."""
    for beyond in (each for each in steps_in(out_dir) if each > step):
        aside = out_dir / "damaged"
        aside.mkdir(exist_ok=True)
        number = 1 + max((int(path.name.partition(".")[2]) for path in aside.glob(f"{beyond}.*")), default=0)
        (out_dir / FOLDER / str(beyond)).rename(aside / f"{beyond}.{number}")


def _is_small(array: jax.Array | np.ndarray, large: int) -> bool:
    """Whether an array goes into a safetensors file, which takes numpy's own types only."""
    is_whole = isinstance(array, np.ndarray) or array.is_fully_replicated
    return array.nbytes < large and is_whole and array.dtype.kind in "biuf"


def _reason(error: Exception) -> str:
    """The operating system's words where it has any: Orbax wraps them in its own."""
    refusal = system_error(error)
    return in_short(error) if refusal is None else refusal.strerror or in_short(refusal)
