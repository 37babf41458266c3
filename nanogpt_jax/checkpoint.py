"""A run's checkpoints: folders that hold the weights, the optimizer, the settings and the tokenizer.

`OUT_DIR/checkpoints/STEP/` is there whole or not at all: Orbax writes it under another name, in the background, and
renames it. Small arrays lie in ``files/params.safetensors`` and ``files/rest.safetensors`` (the other fields of the
`TrainState`), since Orbax takes milliseconds for each array however small; large ones, and those that no process has
whole, are Orbax's own in ``params/`` and ``rest/``. ``files/run.json`` says what run it is, and ``files/sums.json`` the
CRC-32 of every file. Nothing in them is ever executed. The two latest are kept, and the best.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import types
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies
from orbax.checkpoint.future import CommitFutureAwaitingContractedSignals
from orbax.checkpoint.handlers import AsyncCheckpointHandler
from safetensors import numpy as safetensors

from nanogpt_jax.errors import RunFailed, UserError, in_short
from nanogpt_jax.training import Params, TrainState

FOLDER = "checkpoints"
FORMAT = 2
LARGE = 1 << 20  # bytes; from here on Orbax's time for one array is small beside that for its bytes
_FILES, _SUMS, _RUN = "files", "sums.json", "run.json"
_LATEST = 2
# Orbax reports routine matters as warnings; what a user must know reaches them as an exception.
logging.getLogger("absl").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class RunDocument:
    """What a checkpoint says of its run, besides the tensors.

    Attributes:
        settings: the run's `Settings`, as a dictionary.
        tokenizer: the tokenizer, as its own JSON.
        vocab_size: rows of the token table.
        step: updates made, those included that were skipped.
        evaluated: whether the evaluation due at `step` has been made.
        val_loss: the estimate of the validation loss at `step`; None where none was made.
        best_val_loss: the lowest estimate of the validation loss so far; None before the first.
        seconds: time spent in training so far, in all the processes of the run.
        skipped: updates that were skipped because their loss or gradient was not finite.
        data: what tells the data set from another; None where that is not known.
    """

    settings: dict[str, Any]
    tokenizer: dict[str, Any]
    vocab_size: int
    step: int
    evaluated: bool = False
    val_loss: float | None = None
    best_val_loss: float | None = None
    seconds: float = 0.0
    skipped: int = 0
    data: str | None = None

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            kinds = get_args(hint) if isinstance(hint, types.UnionType) else (get_origin(hint) or hint,)
            if not isinstance(getattr(self, name), kinds):
                raise TypeError(f"{name} is a {type(getattr(self, name)).__name__}")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are what was saved; its tensors are read when asked for."""

    folder: Path
    run: RunDocument

    def params(self, like: Params) -> Params:
        """The parameters, which must have the names and shapes of `like` (arrays or their abstract twins)."""
        return self._read("params", like)

    def state(self, like: TrainState) -> TrainState:
        """The whole training state, which must have the names and shapes of `like`."""
        params, rest = _split(like)
        return TrainState(params=self._read("params", params), **self._read("rest", rest))

    def _read(self, item: str, like: Any) -> Any:
        """The tensors of an item, each where its twin in `like` lies. Raises `UserError` if they do not fit `like`."""
        wanted = _named(like)
        try:
            small = safetensors.load_file(self.folder / _FILES / f"{item}.safetensors")
            large = {}
            if (self.folder / item).is_dir():
                with contextlib.closing(ocp.StandardCheckpointer()) as orbax:
                    there = _named(dict(orbax.metadata(self.folder / item).item_metadata.tree))
                    self._require_same_shapes(small | there, wanted)
                    abstract = {name: _abstract(wanted[name]) for name in there}
                    large = orbax.restore(self.folder / item, abstract)
            self._require_same_shapes(small | large, wanted)
        except UserError:
            raise
        except Exception as error:  # Orbax and TensorStore raise many kinds; to a user they all mean this
            raise UserError(
                f"checkpoint {self.folder} cannot be read ({in_short(error)}); it is damaged or of another program: "
                "remove it, or name another folder"
            ) from error
        placed = {name: jax.device_put(value, getattr(wanted[name], "sharding", None)) for name, value in small.items()}
        return jax.tree.unflatten(jax.tree.structure(like), [(placed | large)[name] for name in wanted])

    def _require_same_shapes(self, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        for name in sorted(found.keys() | wanted.keys()):
            there, here = (_form(tree.get(name)) for tree in (found, wanted))
            if there != here:
                raise UserError(
                    f"checkpoint {self.folder}: tensor {name} has shape {there} where the model has {here}; "
                    "it belongs to other settings"
                )


def newest(out_dir: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a run, from which training goes on; None where it has none yet.

    A damaged one is reported, and the one before it taken. Raises `UserError` if all are damaged.
    """
    return _first_whole(out_dir, sorted(_steps(out_dir), reverse=True), ("params", "rest"))


def best(out_dir: Path) -> Checkpoint | None:
    """The whole checkpoint with the lowest validation loss, or the newest where none was evaluated; see `newest`."""

    def rank(step: int) -> tuple[float, int]:
        with contextlib.suppress(_Damaged):
            loss = _run_document(out_dir / FOLDER / str(step)).val_loss
            return (float("inf") if loss is None else loss, -step)
        return (float("inf"), -step)

    return _first_whole(out_dir, sorted(_steps(out_dir), key=rank), ("params",))


class CheckpointWriter:
    """Saves the checkpoints of the run in `out_dir`, in the background; `close` waits for it.

    Every method raises `RunFailed` if what was being saved could not be; the checkpoints before it stay.
    """

    def __init__(self, out_dir: Path, since: Checkpoint | None = None, *, large: int = LARGE) -> None:
        """Open for a run that goes on from `since`; what lies beyond it is damaged and is set aside."""
        folder = (out_dir / FOLDER).absolute()
        if jax.process_index() == 0:
            _set_damaged_aside(out_dir, 0 if since is None else since.run.step)
        runs = [] if since is None else list(_undamaged_runs(out_dir))
        self._kept = _Kept([(run.val_loss, run.step) for run in runs if run.val_loss is not None])
        self._large, self._is_open = large, True
        self._saving = self._latest = None if since is None else since.run.step
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._kept,
            cleanup_tmp_directories=True,
            save_root_metadata=False,
            lightweight_initialize=True,  # else it reads the notes it makes of each checkpoint, which may be damaged
        )
        handlers = {  # in the order in which they are finished: the sums are of all files
            "params": ocp.StandardCheckpointHandler(),
            "rest": ocp.StandardCheckpointHandler(),
            _FILES: _FilesHandler(),
        }
        self._manager = ocp.CheckpointManager(folder, options=options, item_handlers=handlers)

    def save(self, state: TrainState, run: RunDocument) -> None:
        """Save the state after `run.step` updates; a step that has been saved is not saved again.

        Returns once `state` may be donated.
        """
        if run.step == self._latest:
            return
        with self._one_line():
            self._manager.wait_until_finished()
            self._latest, self._saving = run.step, run.step
            files, items = {}, {}
            for item, tree in zip(("params", "rest"), _split(state), strict=True):
                arrays = _named(tree)
                small = {name: np.asarray(x) for name, x in arrays.items() if _is_small(x, self._large)}
                files[f"{item}.safetensors"] = safetensors.save(small)
                if len(small) < len(arrays):
                    large = {name: x for name, x in arrays.items() if name not in small}
                    items[item] = ocp.args.StandardSave(large)
            files[_RUN] = json.dumps({"format": FORMAT, **vars(run)}).encode()
            if run.val_loss is not None:
                self._kept.evaluated.append((run.val_loss, run.step))
            self._manager.save(run.step, args=ocp.args.Composite(**items, **{_FILES: _FilesArgs(files)}), force=True)

    def check(self) -> None:
        """Raise if saving has failed in the meantime; does not wait."""
        with self._one_line():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Return once what was saved is on the disk."""
        with self._one_line():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish what is under way and let go of the folder; what has been closed may be closed again."""
        if self._is_open:
            self._is_open = False
            try:
                self.wait()
            finally:
                with contextlib.suppress(Exception):  # said by `wait`
                    self._manager.close()

    @contextlib.contextmanager
    def _one_line(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise many kinds; to a user they all mean this
            raise RunFailed(
                f"the checkpoint of iteration {self._saving} could not be saved in {self._manager.directory} "
                f"({_reason(error)}); those before it are whole: make room or mend the folder, then go on with "
                "--init_from=resume"
            ) from error


@dataclass
class _Kept(policies.PreservationPolicy):
    """Keeps the latest checkpoints, and the one with the lowest validation loss."""

    evaluated: list[tuple[float, int]] = field(default_factory=list)  # validation loss and step

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-_LATEST:], *(step for _, step in sorted(self.evaluated)[:1])}
        return [step in kept for step in steps]


class _FilesHandler(AsyncCheckpointHandler):
    """Writes plain files, and at the end the sums of all files of the checkpoint."""

    async def async_save(self, directory: Path, args: _FilesArgs) -> list[Any]:
        return [CommitFutureAwaitingContractedSignals(self._write(directory, args.files), name="files")]

    def save(self, directory: Path, args: _FilesArgs) -> None:
        raise NotImplementedError("checkpoints are saved in the background")

    def restore(self, directory: Path, args: Any = None) -> None:
        raise NotImplementedError("files are read as files")

    async def _write(self, directory: Path, files: dict[str, bytes]) -> None:
        if jax.process_index() == 0:
            for name, data in files.items():
                _write(Path(directory) / name, data)

    def finalize(self, directory: Path) -> None:
        here = Path(directory)
        files = sorted(path for path in here.parent.glob("*/**/*") if path.is_file())
        sums = {Path(os.path.relpath(path, here)).as_posix(): _sum_of(path) for path in files}
        _write(here / _SUMS, json.dumps(sums, indent=1).encode())


@ocp.args.register_with_handler(_FilesHandler, for_save=True, for_restore=True)
@dataclass
class _FilesArgs(ocp.args.CheckpointArgs):
    files: dict[str, bytes]


class _Damaged(Exception):
    """What is wrong with a checkpoint's files."""


def _steps(out_dir: Path) -> list[int]:
    """The checkpoints that have been finished; Orbax gives a folder its plain number when it is whole."""
    folder = out_dir / FOLDER
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isascii() and name.isdigit() and str(int(name)) == name)


def _undamaged_runs(out_dir: Path) -> Iterator[RunDocument]:
    """The documents of those of them that have a whole one."""
    for step in _steps(out_dir):
        with contextlib.suppress(_Damaged):
            yield _run_document(out_dir / FOLDER / str(step))


def _first_whole(out_dir: Path, steps: Sequence[int], items: Collection[str]) -> Checkpoint | None:
    """The first checkpoint of `steps` in which the files of `items` are what was saved; others are reported."""
    for step in steps:
        folder = out_dir / FOLDER / str(step)
        try:
            run = _run_document(folder)
            _verify(folder, items)
        except _Damaged as damage:
            print(f"warning: checkpoint {folder} is damaged ({damage}); taking another", file=sys.stderr, flush=True)
        else:
            return Checkpoint(folder, run)
    if steps:
        raise UserError(f"{out_dir / FOLDER} holds no checkpoint that is whole; train again, or name another folder")
    return None


def _run_document(folder: Path) -> RunDocument:
    """The JSON side of a checkpoint. Raises `_Damaged`, or `UserError` if another version wrote it."""
    _verify(folder, (), (_RUN,))
    document = json.loads((folder / _FILES / _RUN).read_bytes())
    if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
        raise UserError(f"{folder} is not a checkpoint this version reads (format {FORMAT}); use the one it is of")
    try:
        return RunDocument(**document)
    except TypeError as error:
        raise UserError(f"{folder} has a run document of another program ({in_short(error)}); use that one") from None


def _verify(folder: Path, items: Collection[str], files: Collection[str] = ()) -> None:
    """Raise `_Damaged` unless the files of `items`, and those named, are there and have the sums they had."""
    try:
        sums = dict(json.loads((folder / _FILES / _SUMS).read_bytes()))
    except (OSError, TypeError, ValueError, RecursionError):
        raise _Damaged(f"{_FILES}/{_SUMS} is missing or cannot be read") from None
    wanted = {*files, *(f"{item}.safetensors" for item in items)}
    of_orbax = tuple(f"../{item}/" for item in items)
    for name in sorted(wanted | {name for name in sums if name.startswith(of_orbax)}):
        try:
            is_same = _sum_of(folder / _FILES / name) == sums.get(name)
        except (OSError, ValueError) as error:
            raise _Damaged(f"{_FILES}/{name}: {getattr(error, 'strerror', error)}") from None
        if not is_same:
            raise _Damaged(f"{_FILES}/{name} is not what was saved")


def _set_damaged_aside(out_dir: Path, step: int) -> None:
    """Move checkpoints beyond `step` to `out_dir/damaged`: the run is about to write its own under their names."""
    for beyond in (each for each in _steps(out_dir) if each > step):
        aside = out_dir / "damaged"
        aside.mkdir(exist_ok=True)
        number = 1 + max((int(path.name.partition(".")[2]) for path in aside.glob(f"{beyond}.*")), default=0)
        (out_dir / FOLDER / str(beyond)).rename(aside / f"{beyond}.{number}")


def _split(state: TrainState) -> tuple[Params, dict[str, Any]]:
    """The parameters, and the rest of the state: sampling reads the first without the second."""
    return state.params, {"step": state.step, "opt_state": state.opt_state, "seed": state.seed}


def _abstract(like: Any) -> jax.ShapeDtypeStruct:
    """What to restore, and where to: where `like` lies, or on this process's first device, wherever it was saved."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(like.shape, like.dtype, sharding=getattr(like, "sharding", None) or here)


def _named(tree: Any) -> dict[str, Any]:
    """The leaves by their path, in the order of the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _is_small(array: jax.Array, large: int) -> bool:
    """Whether an array goes into a safetensors file, which takes numpy's own types only."""
    return array.nbytes < large and array.is_fully_replicated and array.dtype.kind in "biuf"


def _form(array: Any) -> str:
    """Shape and type of an array, in words."""
    return "none at all" if array is None else f"{tuple(np.shape(array))} of {np.dtype(array.dtype)}"


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sum_of(path: Path) -> str:
    """The CRC-32 of a file: enough against accidents, and a cryptographic hash takes as long as all else of a save."""
    crc = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            crc = zlib.crc32(chunk, crc)
    return f"{crc:08x}"


def _reason(error: BaseException) -> str:
    """The operating system's words where it has any: Orbax wraps them in its own."""
    chain: Iterable[BaseException] = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain = [*chain, inner]
    for each in reversed(chain):
        if isinstance(each, OSError) and each.strerror:
            return each.strerror
    return in_short(error)
