"""What a run came to: the loss of its best weights beside that of its last ones, and whether it overfitted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.train_step import Params
from nanogpt_jax.data.addresses import address_of
from nanogpt_jax.run import hosts
from nanogpt_jax.run.sinks import read_metrics
from nanogpt_jax.weights.checkpoint import Checkpoint, best
from nanogpt_jax.weights.run_in_bucket import fetched_checkpoint


def best_beside_last(
    out_dir: Path, step: int, params: Params, last: float, loss_of: Callable[[Params], float]
) -> dict[str, float]:
    """Say which weights of the run in `out_dir` are its best, and their loss; the figures ``best_step``, ``best_loss``.

    `params` are those after `step` updates, and `last` their loss by `loss_of`, over the whole validation split. The
    best are of the checkpoint with the lowest estimate: over the whole split they may have the higher loss. Nothing is
    said of a run that has saved none, or whose best can't be read, since nothing else depends on it.
    """
    try:
        hosts.wait_for_all("saved")
        found = hosts.together(
            lambda: best(_seen_from_here(out_dir)), lambda found: {"the best checkpoint": found and found.run.step}
        )
    except UserError:
        return {}
    if found is None:
        return {}
    if found.run.step == step:
        print(f"the last weights, of iteration {step}, are the best: {last:.4f}", flush=True)
        return {"best_step": step, "best_loss": last}
    loss = loss_of(_beside(found, params))
    print(
        f"the last weights, of iteration {step}: {last:.4f}; the best by the estimates, of iteration "
        f"{found.run.step}: {loss:.4f}; --which=last or best chooses, and best is taken without it",
        flush=True,
    )
    if hosts.is_first() and loss < last:
        _tell_if_overfitted(out_dir, found.run.step, step)
    return {"best_step": found.run.step, "best_loss": loss}


def _seen_from_here(out_dir: Path) -> Path:
    """The folder of a run that has saved: of one in a bucket, whose folder is the first process's, what is there."""
    address = address_of(out_dir)
    return out_dir if hosts.is_first() or address is out_dir else fetched_checkpoint(str(address), "best")


def _beside(checkpoint: Checkpoint, params: Params) -> Params:
    """The checkpoint's parameters, placed as `params` are."""
    like = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=p.sharding), params)
    return checkpoint.params(like)


def _tell_if_overfitted(out_dir: Path, since: int, until: int) -> None:
    """Say so if the estimate of the validation loss rose between two evaluations while that of training fell."""
    losses = {(entry["split"], entry["step"]): entry.get("loss") for entry in read_metrics(out_dir)}
    figures = [losses.get((split, step)) for split in ("train_eval", "val") for step in (since, until)]
    known = [loss for loss in figures if loss is not None]
    if len(known) < len(figures):
        return
    train, val = known[:2], known[2:]
    if train[1] < train[0] and val[1] > val[0]:
        print(
            f"from iteration {since} to {until} the validation loss rose from {val[0]:.4f} to {val[1]:.4f} while the "
            f"training loss fell from {train[0]:.4f} to {train[1]:.4f}: the model learns its text by heart; stop "
            "earlier (--patience=N evaluations), or give it more text or more dropout",
            flush=True,
        )
