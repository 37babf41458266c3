"""Going on with a run: which settings may be others than they were, and whether its data are the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data.addresses import at_hand
from nanogpt_jax.run.recipe import FREE
from nanogpt_jax.weights.checkpoint import RunDocument, how_to_go_on
from nanogpt_jax.weights.loading import SHAPE, stored_settings


def resumed_settings(run: RunDocument, out_dir: str, given: Mapping[str, Any]) -> Settings:
    """The settings of the run in `out_dir`, with those that are given anew.

    Raises `UserError` for a change to the model's shape, and for one that makes other updates unless
    ``allow_changes`` is given.
    """
    before = stored_settings(run)
    once = {"allow_changes": False, "eval_only": False, "which": "best"}  # these are of a process and not of the run
    after = stored_settings(run, {**once, **given, "out_dir": out_dir, "init_from": "resume"})
    changed = [name for name in vars(before) if getattr(before, name) != getattr(after, name)]
    for name in changed:
        old, new = getattr(before, name), getattr(after, name)
        if name in SHAPE or name in ("vocab_size", "lora_rank", "lora_alpha", "lora_targets"):
            raise UserError(f"{name}={new} does not fit the run in {out_dir}, which has {name}={old}; leave it out")
        if name not in FREE:
            _require_allowed(f"{name}={new} where the run in {out_dir} has {name}={old}", after.allow_changes)
    if run.step > after.max_iters:
        raise UserError(
            f"max_iters={after.max_iters} lies behind the run in {out_dir}, at iteration {run.step}; raise it"
        )
    return after


def require_same_data(run: RunDocument, data: str, settings: Settings) -> None:
    """Raise `UserError` if `data`, the digest of the data set, is not the run's, unless changes are allowed."""
    if run.data is not None and run.data != data:
        name = f"{settings.data_dir}/{settings.dataset}"
        _require_allowed(
            f"the tokens of {name} are not those that the run in {settings.out_dir} was trained on",
            settings.allow_changes,
        )


def at_a_lower_rate(settings: Settings) -> str:
    """The same for a run whose figures are no longer finite: with half the learning rate, which is a change to it."""
    rates = ("learning_rate", "muon_learning_rate") if settings.optimizer == "muon" else ("learning_rate",)
    lower = {name: getattr(settings, name) / 2 for name in rates}
    return how_to_go_on(at_hand(settings.out_dir), **lower, allow_changes=True)


def _require_allowed(what: str, allow_changes: bool) -> None:
    if not allow_changes:
        raise UserError(
            f"{what}; that makes another run of it: leave it as it was, or add --allow_changes to go on all the same"
        )
    print(f"changed: {what}", flush=True)
