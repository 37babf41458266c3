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
import shlex
import sys
import types
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import jax
import numpy as np
from safetensors import numpy as safetensors

from nanogpt_jax.core.errors import RunFailed, UserError, in_short
from nanogpt_jax.core.train_step import Params, TrainState
from nanogpt_jax.data.commands import flags_of, flags_to_resume
from nanogpt_jax.data.files import is_dir, names_in, refused
from nanogpt_jax.weights.checkpoint_files import FILES, RUN, SUMS, named, split, sum_of

FOLDER = "checkpoints"
FORMAT = 2


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
        since_best: evaluations since the one of `best_val_loss`.
        seconds: time spent in training so far, in all the processes of the run.
        skipped: updates that were skipped because their loss or gradient was not finite.
        data: what tells the data set from another; None where that is not known.
        base: of a run whose parameters are a delta (LoRA), what `bases.described` says of the weights it belongs to.
        end: the token that ended each example it learnt from; None where it learnt from plain text.
        template: how the conversations it learnt from became text, as `chat.Template` has it; None without them.
    """

    settings: dict[str, Any]
    tokenizer: dict[str, Any]
    vocab_size: int
    step: int
    evaluated: bool = False
    val_loss: float | None = None
    best_val_loss: float | None = None
    since_best: int = 0
    seconds: float = 0.0
    skipped: int = 0
    data: str | None = None
    base: dict[str, Any] | None = None
    end: int | None = None
    template: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            kinds = get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
            if not isinstance(getattr(self, name), tuple(get_origin(kind) or kind for kind in kinds)):
                raise TypeError(f"{name} is a {type(getattr(self, name)).__name__}")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are what was saved; its tensors are read when asked for."""

    folder: Path
    run: RunDocument

    def __post_init__(self) -> None:
        # Orbax finds nothing under a relative path, and the working directory may change before the tensors are read.
        object.__setattr__(self, "folder", self.folder.absolute())

    def params(self, like: Params) -> Params:
        """The parameters, which must have the names and shapes of `like` (arrays or their abstract twins)."""
        return self._read("params", like)

    def state(self, like: TrainState) -> TrainState:
        """The whole training state, which must have the names and shapes of `like`."""
        params, rest = split(like)
        return TrainState(params=self._read("params", params), **self._read("rest", rest))

    def _read(self, item: str, like: Any) -> Any:
        """The tensors of an item, each where its twin in `like` lies. Raises `UserError` if they do not fit `like`."""
        wanted = named(like)
        try:
            small = safetensors.load_file(self.folder / FILES / f"{item}.safetensors")
            large = {}
            if is_dir(self.folder / item):
                from nanogpt_jax.weights.orbax_files import large_arrays  # slow to import: small models do without

                with large_arrays(self.folder / item) as (there, restore):
                    self._require_same_shapes(small | there, wanted)
                    large = restore({name: wanted[name] for name in there})
            self._require_same_shapes(small | large, wanted)
        except (UserError, MemoryError):
            raise
        except Exception as error:  # Orbax and TensorStore raise many kinds, and few of them name a cause
            raise self._unreadable(item, error) from error
        placed = {name: jax.device_put(value, getattr(wanted[name], "sharding", None)) for name, value in small.items()}
        return jax.tree.unflatten(jax.tree.structure(like), [(placed | large)[name] for name in wanted])

    def _unreadable(self, item: str, error: Exception) -> Exception:
        """What it means that `item` could not be read: the sums tell damaged files from a reader that is at fault."""
        try:
            _verify(self.folder, (item,))
        except _Damaged as damage:
            return UserError(
                f"checkpoint {self.folder} is damaged ({damage}); the same command again takes the one before it"
            )
        return RunFailed(
            f"checkpoint {self.folder} is whole, its sums are right, and yet it could not be read ({in_short(error)}): "
            "that is a fault of nanogpt-jax or of a library below it and not of your files; keep them, and report this "
            "line"
        )

    def _require_same_shapes(self, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        for name in sorted(found.keys() | wanted.keys()):
            there, here = (_form(tree.get(name)) for tree in (found, wanted))
            if there != here:
                raise UserError(
                    f"checkpoint {self.folder}: tensor {name} has shape {there} where the model has {here}; "
                    "its run.json is of other settings, take the one that was saved with it"
                )


def newest(out_dir: Path) -> Checkpoint | None:
    """The newest whole checkpoint of a run, from which training goes on; None where it has none yet.

    A damaged one is reported, and the one before it taken. Raises `UserError` if all are damaged.
    """
    return _first_whole(out_dir, sorted(steps_in(out_dir), reverse=True), ("params", "rest"))


def best(out_dir: Path) -> Checkpoint | None:
    """The whole checkpoint with the lowest validation loss, or the newest where none was evaluated; see `newest`."""

    def rank(step: int) -> tuple[float, int]:
        with contextlib.suppress(_Damaged):
            loss = _run_document(out_dir / FOLDER / str(step)).val_loss
            return (float("inf") if loss is None else loss, -step)
        return (float("inf"), -step)

    return _first_whole(out_dir, sorted(steps_in(out_dir), key=rank), ("params",))


class _Damaged(Exception):
    """What is wrong with a checkpoint's files."""


def damage_in(folder: Path, items: Collection[str]) -> str | None:
    """What is wrong with the files of a checkpoint's `items`, in words; None where they are what was saved."""
    try:
        _verify(folder, items, (RUN,))
    except _Damaged as damage:
        return str(damage)
    return None


def steps_in(out_dir: Path) -> list[int]:
    """The checkpoints that have been finished; Orbax gives a folder its plain number when it is whole."""
    folder = out_dir / FOLDER
    numbers = [name for name in names_in(folder) if name.isascii() and name.isdigit() and str(int(name)) == name]
    return sorted(int(name) for name in numbers if is_dir(folder / name))


def undamaged_runs(out_dir: Path) -> Iterator[RunDocument]:
    """The documents of those of them that have a whole one."""
    for step in steps_in(out_dir):
        with contextlib.suppress(_Damaged):
            yield _run_document(out_dir / FOLDER / str(step))


def how_to_go_on(out_dir: Path, **flags: object) -> str:
    """How to go on with the run in `out_dir`, as it stands on the disk, once what ended it is mended."""
    try:
        steps = steps_in(out_dir)
    except UserError:  # it cannot be looked at; whoever mends that can go on
        return f"go on with {flags_to_resume(out_dir, **flags)}"
    if not steps:
        changed = f" with {shlex.join(flags_of(flags))}" if flags else ""
        return f"train again{changed}, for it has no checkpoint yet"
    return f"go on from its checkpoint of iteration {steps[-1]} with {flags_to_resume(out_dir, **flags)}"


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
    _verify(folder, (), (RUN,))
    document = json.loads((folder / FILES / RUN).read_bytes())
    if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
        raise UserError(f"{folder} is not a checkpoint this version reads (format {FORMAT}); use the one it is of")
    try:
        return RunDocument(**document)
    except TypeError as error:
        raise UserError(f"{folder} has a run document of another program ({in_short(error)}); use that one") from None


def _verify(folder: Path, items: Collection[str], files: Collection[str] = ()) -> None:
    """Raise `_Damaged` unless the files of `items`, and those named, are there and have the sums they had."""
    try:
        sums = dict(json.loads((folder / FILES / SUMS).read_bytes()))
    except PermissionError as error:  # which is no damage: whoever may read it goes on with it
        raise refused(folder / FILES / SUMS, error, "read") from error
    except (OSError, TypeError, ValueError, RecursionError):
        raise _Damaged(f"{FILES}/{SUMS} is missing or cannot be read") from None
    wanted = {*files, *(f"{item}.safetensors" for item in items)}
    of_orbax = tuple(f"../{item}/" for item in items)
    for name in sorted(wanted | {name for name in sums if name.startswith(of_orbax)}):
        try:
            is_same = sum_of(folder / FILES / name) == sums.get(name)
        except PermissionError as error:
            raise refused(folder / FILES / name, error, "read") from error
        except (OSError, ValueError) as error:
            raise _Damaged(f"{FILES}/{name}: {getattr(error, 'strerror', error)}") from None
        if not is_same:
            raise _Damaged(f"{FILES}/{name} is not what was saved")


def _form(array: Any) -> str:
    """Shape and type of an array, in words."""
    return "none at all" if array is None else f"{tuple(np.shape(array))} of {np.dtype(array.dtype)}"
