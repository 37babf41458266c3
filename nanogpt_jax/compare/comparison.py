"""A comparison from its settings to its table: both sides are built, `parity.py` trains them, and what came is told."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from nanogpt_jax.compare.inputs import fitting_settings, named_weights, open_data
from nanogpt_jax.compare.parity import Ours, Side, compare
from nanogpt_jax.compare.report import folded, table, write_json, write_plot
from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.train_step import Batch
from nanogpt_jax.data.dataset import random_batch
from nanogpt_jax.data.files import is_file
from nanogpt_jax.run import reports
from nanogpt_jax.run.accelerator import use_accelerator
from nanogpt_jax.run.build import build_model
from nanogpt_jax.run.reports import batch_in_words, model_in_words

_PURPOSE = "the comparison"


def compared(
    base: Mapping[str, Any],
    explicit: dict[str, Any],
    reference: str,
    steps: int,
    *,
    every_tensor: bool = False,
    json: Path | None = None,
    plot: Path | None = None,
) -> int:
    """Compare with `reference`, hf or a nanoGPT checkout, over `steps` updates, and tell: the tolerances missed.

    `base` and `explicit` are the settings as `chosen` has them. The table has a line for every tensor, or for every
    kind of them; all numbers go to `json` and the curves to `plot`, where those are named. Raises `UserError` for what
    cannot be compared.
    """
    weights, explicit = named_weights(base, explicit)
    settings, changed = fitting_settings(base, explicit, reference)
    reports.require_writable(json=json, plot=plot)

    # Else idle threads of PyTorch spin where ours could run: this, read at its import, saves most of the time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # PyTorch computes on the CPU, and its float32 is what ours is held to: another device must be asked for.
    use_accelerator(explicit.get("accelerator", "cpu"))
    data = open_data(settings)
    model = build_model(settings, data.tokens.vocab_size, jax.default_backend())
    theirs = _reference_side(reference, model.config, settings)
    ours = Ours(model, settings)
    if weights is not None:
        ours.load(weights.load(model, None))
    size = sum(p.size for p in jax.tree.leaves(ours.parameters()))
    print(f"reference  {theirs.name}")
    print(
        f"model      {model_in_words(settings)}, {size:,} parameters, {settings.dtype}"
        + (f"; {changed}" if changed else "")
    )
    print(f"batches    {batch_in_words(settings)} from {data.source}, seed {settings.seed}", flush=True)

    def batch_of(step: int) -> Batch:
        shape = (settings.gradient_accumulation_steps, settings.batch_size)
        sizes = shape[shape[0] == 1 :], settings.block_size
        return Batch(*random_batch(data.tokens, "train", settings.seed, step, *sizes)[:2])

    comparison = compare(ours, theirs, batch_of, steps, settings)
    print(f"\n{table(comparison.rows if every_tensor else folded(comparison.rows))}\n")
    told = (comparison, settings, theirs.name, data.source)
    reports.write_where_asked("json", json, lambda path: write_json(path, *told))
    reports.write_where_asked("plot", plot, lambda path: write_plot(path, *told))
    missed = sum(row.verdict == "MISSED" for row in comparison.rows)
    if not every_tensor:
        print("of each kind of tensor, the layer whose gradient differs most is shown; --all shows every tensor")
    print(f"{missed} of {len(comparison.rows)} tolerances MISSED" if missed else "all tolerances hold")
    return missed


def _reference_side(reference: str, config: Any, settings: Settings) -> Side:
    reports.require_installed("torch", _PURPOSE)
    from nanogpt_jax.compare import torch_side

    if reference == "hf":
        reports.require_installed("transformers", _PURPOSE)
        return torch_side.hugging_face(config, settings)
    checkout = Path(reference)
    if not is_file(checkout / "model.py"):
        raise UserError(f"reference={reference} is neither hf nor a folder with nanoGPT's model.py; name one of them")
    return torch_side.nanogpt(checkout, config, settings)
