"""A run's checkpoints: Orbax folders that hold the weights, the optimizer, the settings and the tokenizer.

`OUT_DIR/checkpoints/STEP/` has three items: ``params``; ``rest``, which is everything else of the `TrainState`; and
``run``, a JSON document. Nothing in them is ever executed. The two latest are kept, and the best.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from nanogpt_jax.errors import UserError
from nanogpt_jax.training import Params, TrainState

FOLDER = "checkpoints"
FORMAT = 1
_METRIC = "val_loss"
# Orbax reports routine matters as warnings; what a user must know reaches them as an exception.
logging.getLogger("absl").setLevel(logging.ERROR)


@dataclass(frozen=True)
class RunDocument:
    """What a checkpoint says of its run, besides the tensors.

    Attributes:
        settings: the run's `Settings`, as a dictionary.
        tokenizer: the tokenizer, as its own JSON.
        vocab_size: rows of the token table.
        step: updates made.
        evaluated: whether the evaluation due at `step` has been made.
        best_val_loss: the lowest estimate of the validation loss so far; None before the first.
        seconds: time spent in training so far, in all the processes of the run.
    """

    settings: dict[str, Any]
    tokenizer: dict[str, Any]
    vocab_size: int
    step: int
    evaluated: bool = False
    best_val_loss: float | None = None
    seconds: float = 0.0


class Checkpoints:
    """The checkpoints of the run in `out_dir`. Saving goes on in the background; `close` waits for it."""

    def __init__(self, out_dir: Path, *, read_only: bool = False) -> None:
        self.folder = (out_dir / FOLDER).absolute()
        keep = policies.AnyPreservationPolicy(
            [
                policies.LatestN(n=2),
                policies.BestN(
                    get_metric_fn=lambda m: m[_METRIC], reverse=True, n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep,
            best_fn=lambda metrics: metrics[_METRIC],
            best_mode="min",
            create=not read_only,
            read_only=read_only,
        )
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=options,
            item_handlers={
                "params": ocp.StandardCheckpointHandler(),
                "rest": ocp.StandardCheckpointHandler(),
                "run": ocp.JsonCheckpointHandler(),
            },
        )

    def save(self, state: TrainState, run: RunDocument, val_loss: float | None) -> None:
        """Save the state after `run.step` updates; `val_loss` decides whether it is the best."""
        params, rest = _split(state)
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params),
            rest=ocp.args.StandardSave(rest),
            run=ocp.args.JsonSave({"format": FORMAT, **vars(run)}),
        )
        metrics = None if val_loss is None else {_METRIC: val_loss}
        self._manager.save(run.step, args=items, metrics=metrics, force=True)

    def latest(self) -> int | None:
        """Step of the newest checkpoint, None if there is none."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """Step of the checkpoint with the lowest validation loss, or the newest where none was evaluated."""
        best = self._manager.best_step()
        return self.latest() if best is None else best

    def run_document(self, step: int) -> RunDocument:
        """The JSON side of a checkpoint. Raises `UserError` if it is damaged or of another program."""
        document = self._restore(step, run=ocp.args.JsonRestore())["run"]
        if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
            raise UserError(f"{self.folder / str(step)} is not a checkpoint this version reads (format {FORMAT})")
        try:
            return RunDocument(**document)
        except TypeError as error:
            raise UserError(f"{self.folder / str(step)} has a damaged run document ({error})") from error

    def params(self, step: int, like: Params) -> Params:
        """The parameters, which must have the names and shapes of `like` (arrays or their abstract twins)."""
        self._check_shapes(step, "params", like)
        return self._restore(step, params=ocp.args.StandardRestore(_abstract(like)))["params"]

    def state(self, step: int, like: TrainState) -> TrainState:
        """The whole training state, which must have the names and shapes of `like`."""
        params, rest = _split(like)
        self._check_shapes(step, "params", params)
        self._check_shapes(step, "rest", rest)
        restored = self._restore(
            step,
            params=ocp.args.StandardRestore(_abstract(params)),
            rest=ocp.args.StandardRestore(_abstract(rest)),
        )
        return TrainState(params=restored["params"], **restored["rest"])

    def wait(self) -> None:
        """Return once what was saved is on the disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish what is under way and let go of the folder."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _restore(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax and TensorStore raise many kinds; to a user they all mean this
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise UserError(
                f"checkpoint {self.folder / str(step)} cannot be read ({reason}); "
                "it is damaged or of another program: remove it, or name another folder"
            ) from error

    def _check_shapes(self, step: int, item: str, like: Any) -> None:
        """Compare the names and shapes in a checkpoint with the expected ones before any tensor is read."""
        try:
            there = self._manager.item_metadata(step)[item].tree
        except Exception as error:
            raise UserError(f"checkpoint {self.folder / str(step)} has no readable {item}; it is damaged") from error
        found, wanted = _shapes(there), _shapes(like)
        for name in sorted(found.keys() | wanted.keys()):
            if found.get(name) != wanted.get(name):
                raise UserError(
                    f"checkpoint {self.folder / str(step)}: tensor {name} has shape {found.get(name, 'none at all')} "
                    f"where the model has {wanted.get(name, 'none at all')}; it belongs to other settings"
                )


def _split(state: TrainState) -> tuple[Params, dict[str, Any]]:
    """The parameters, and the rest of the state: sampling reads the first without the second."""
    return state.params, {"step": state.step, "opt_state": state.opt_state, "seed": state.seed}


def _abstract(tree: Any) -> Any:
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Path -> shape, the same for Orbax's metadata (dictionaries) and for optax's named tuples."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): tuple(np.shape(leaf)) for path, leaf in leaves}
