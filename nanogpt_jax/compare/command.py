"""`python -m nanogpt_jax.compare`: the same numbers as PyTorch, or a table that says where they are not.

One model is built twice, here and in Hugging Face's or nanoGPT's PyTorch, from the same weights, and trained on the
same batches; `parity.py` compares. The table goes to the terminal, all there is to know to a JSON file and a plot.
"""

from __future__ import annotations

import dataclasses
import math
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from nanogpt_jax.cli import entry
from nanogpt_jax.cli.flags import tell
from nanogpt_jax.cli.settings import chosen, settings_parser
from nanogpt_jax.compare.parity import LOSSES, Comparison, Ours, Row, Side, compare
from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.limits import MAX_INT, require_at_least, require_at_most
from nanogpt_jax.core.train_step import Batch
from nanogpt_jax.data.dataset import TokenFile, open_tokens, random_batch
from nanogpt_jax.data.files import is_file
from nanogpt_jax.data.prepared import load_meta
from nanogpt_jax.data.tokenizer import token_type
from nanogpt_jax.run import reports
from nanogpt_jax.run.accelerator import describe, use_accelerator
from nanogpt_jax.run.build import build_model
from nanogpt_jax.run.presets import PRESETS
from nanogpt_jax.run.reports import batch_in_words, model_in_words
from nanogpt_jax.run.start import with_shape_of
from nanogpt_jax.weights.hf_format import hf_config_of
from nanogpt_jax.weights.loading import SHAPE, Weights, open_weights
from nanogpt_jax.weights.nanogpt_format import nanogpt_model_args_of

MISSED = 1  # exit status
DEFAULT_PRESET = "shakespeare_char_cpu"
_PURPOSE = "the comparison"
_SMALLEST_GAP = 1e-8  # drawn for none, which a logarithmic axis cannot show

_DESCRIPTION = f"""\
Compare this project's numbers with PyTorch's: logits, loss, gradients, AdamW, schedule, greedy text, loss curves.

  {{compare}}                                the model of {DEFAULT_PRESET}, with Hugging Face's GPT-2
  {{compare}} --position=rope --n_kv_head=2   its twin with rotary positions, with Llama; --qk_norm=True: Qwen3
  {{compare}} --reference=../nanoGPT         with the model.py of a nanoGPT checkout
  {{compare}} gpt2 --block_size=128 --batch_size=1 --gradient_accumulation_steps=1 --steps=2
  {{compare}} --dtype=bfloat16 --all --json=compare.json --plot=compare.png

Exit status: 0 if all tolerances hold, 1 if one is missed, 2 for wrong use."""


class Data(NamedTuple):
    """Where batches come from, and how to say so."""

    tokens: TokenFile
    source: str


def main(argv: Sequence[str]) -> int:
    """The command: parse, build both sides, compare, and tell."""
    parser = settings_parser("compare", "[PRESET | FILE] [--name=value ...]", _DESCRIPTION)
    group = parser.add_argument_group("comparison")
    group.add_argument(
        "--reference", metavar="hf|DIR", help="Hugging Face's model of these settings, or a nanoGPT checkout ('hf')"
    )
    group.add_argument("--steps", type=int, metavar="INT", help="updates to compare (200)")
    group.add_argument("--json", type=Path, metavar="FILE", help="write all numbers, versions and settings here")
    group.add_argument("--plot", type=Path, metavar="FILE.png", help="draw both loss curves and their difference")
    parser.add_switch(group, "all", help="a line for every tensor's gradient, not for every kind of tensor")
    given = parser.parse(argv)
    own = {name: given.pop(name, None) for name in ("reference", "steps", "json", "plot", "all")}
    base, explicit, notes = chosen(given)
    tell(notes)
    reference_name, steps = own["reference"] or "hf", 200 if own["steps"] is None else own["steps"]
    require_at_least("steps", steps, 1)
    require_at_most("steps", steps, MAX_INT, "it is kept in 32 bits")
    base = PRESETS[DEFAULT_PRESET] if base is None else base
    weights, explicit = _named_weights(base, explicit)
    settings, changed = fitting_settings(base, explicit, reference_name)
    reports.require_writable(json=own["json"], plot=own["plot"])

    # Else idle threads of PyTorch spin where ours could run: this, read at its import, saves most of the time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # PyTorch computes on the CPU, and its float32 is what ours is held to: another device must be asked for.
    use_accelerator(explicit.get("accelerator", "cpu"))
    data = open_data(settings)
    model = build_model(settings, data.tokens.vocab_size, jax.default_backend())
    reference = _reference_side(reference_name, model.config, settings)
    ours = Ours(model, settings)
    if weights is not None:
        ours.load(weights.load(model, None))
    size = sum(p.size for p in jax.tree.leaves(ours.parameters()))
    print(f"reference  {reference.name}")
    print(
        f"model      {model_in_words(settings)}, {size:,} parameters, {settings.dtype}"
        + (f"; {changed}" if changed else "")
    )
    print(f"batches    {batch_in_words(settings)} from {data.source}, seed {settings.seed}", flush=True)

    def batch_of(step: int) -> Batch:
        shape = (settings.gradient_accumulation_steps, settings.batch_size)
        sizes = shape[shape[0] == 1 :], settings.block_size
        return Batch(*random_batch(data.tokens, "train", settings.seed, step, *sizes)[:2])

    comparison = compare(ours, reference, batch_of, steps, settings)
    print(f"\n{table(comparison.rows if own['all'] else folded(comparison.rows))}\n")
    told = (comparison, settings, reference.name, data.source)
    reports.write_where_asked("json", own["json"], lambda path: write_json(path, *told))
    reports.write_where_asked("plot", own["plot"], lambda path: write_plot(path, *told))
    missed = sum(row.verdict == "MISSED" for row in comparison.rows)
    if not own["all"]:
        print("of each kind of tensor, the layer whose gradient differs most is shown; --all shows every tensor")
    print(f"{missed} of {len(comparison.rows)} tolerances MISSED" if missed else "all tolerances hold")
    return MISSED if missed else entry.OK


def _named_weights(base: Mapping[str, Any], explicit: dict[str, Any]) -> tuple[Weights | None, dict[str, Any]]:
    """The weights that both sides begin with where ``init_from`` names some, and what is asked for with their shape.

    Of a run that LoRA tuned they are merged. Raises `UserError` for another shape than they have.
    """
    if explicit.get("init_from", "scratch") == "scratch":
        return None, explicit
    asked = Settings(**{**base, **explicit})
    weights = open_weights(asked.init_from, asked.data_dir, asked.which)
    shaped = with_shape_of(asked, weights, explicit)
    shape = {name: getattr(shaped, name) for name in (*SHAPE, "vocab_size")}
    return weights, {**explicit, **shape, "init_from": "scratch"}


def fitting_settings(base: Mapping[str, Any], explicit: Mapping[str, Any], reference: str) -> tuple[Settings, str]:
    """The settings to compare with, and in words how they differ from `base` of our own accord.

    What the reference cannot express is set right where the user said nothing. Raises `UserError` where they did, or
    where another model would come of it.
    """
    plain = Settings(**{**base, "dtype": "float32", **explicit})
    program, its_own = hf_counterpart(plain) if reference == "hf" else Counterpart("nanoGPT", {})
    # Dropout draws other numbers there than here.
    alike: dict[str, Any] = {"dropout": 0.0, "init_from": "scratch", "optimizer": "adamw", "schedule": "cosine"}
    adapted = {**alike, **its_own}
    settings = Settings(**{**vars(plain), **adapted, **explicit})
    if settings.dtype == "auto":
        settings = dataclasses.replace(settings, dtype="float32")
    config = settings.gpt_config(settings.vocab_size or 1)
    needed = {"model": "gpt", **alike}
    if its_own.get("bias"):
        needed["bias"] = True  # a file lets zeros stand for biases that are not there, but they would learn
    if "position" in its_own:
        needed["position"] = its_own["position"]
    if config.has_qkv_bias != config.bias:
        needed["qkv_bias"] = None
    for name, value in needed.items():
        if (found := getattr(settings, name)) != value:
            raise UserError(f"{name}={found} cannot be compared with {program}; add --{name}={value}")
    (hf_config_of if reference == "hf" else nanogpt_model_args_of)(config)  # refuses what the other has not
    changes = [f"{name}={value}" for name, value in adapted.items() if getattr(plain, name) != getattr(settings, name)]
    return settings, f"{', '.join(changes)} to agree with {program}" if changes else ""


class Counterpart(NamedTuple):
    """A model that ours is held against: its name, and settings that it has where nothing else is asked for."""

    name: str
    its_own: dict[str, Any]


def hf_counterpart(settings: Settings) -> Counterpart:
    """The model of Hugging Face's with the positions and the norm of queries and keys that the settings ask for."""
    llama = {"position": "rope", "norm": "rms", "bias": False, "activation": "swiglu"}
    if settings.qk_norm:
        return Counterpart("Hugging Face's Qwen3", llama)
    if settings.position == "rope":
        return Counterpart("Hugging Face's Llama", llama)
    return Counterpart("Hugging Face's GPT-2", {"bias": True, "activation": "gelu_new"})


def open_data(settings: Settings) -> Data:
    """The training split of the data set the settings name, or random tokens where it is not prepared."""
    folder = Path(settings.data_dir) / settings.dataset
    if is_file(folder / "meta.json"):
        meta = load_meta(folder)
        path, sizes = folder / "train.bin", (meta.vocab_size, settings.block_size, meta.train_tokens)
        file = open_tokens(path, *sizes, meta.shards("train"), meta.dtype)
        return Data(file, str(folder))
    vocab_size = settings.vocab_size or 65
    tokens = random_tokens(vocab_size, max(1 << 18, 2 * settings.block_size), settings.seed)
    file = TokenFile(tokens.astype(token_type(vocab_size)), Path("random tokens"), vocab_size)
    return Data(file, f"random tokens ({folder} is not prepared)")


def random_tokens(vocab_size: int, n: int, seed: int) -> np.ndarray:
    """`n` tokens with something to learn for more than a few updates: half are drawn by Zipf's law, half count on.

    Where frequencies are all there is, they are soon known; what is left of the gradient is noise, which Adam makes
    updates of, and within 200 of them two runs that rounding alone tells apart have parted.
    """
    chances = 1 / np.arange(1, vocab_size + 1)
    draw = np.random.Generator(np.random.Philox(seed))
    drawn, at = draw.choice(vocab_size, size=n, p=chances / chances.sum()), np.arange(n)
    start = np.maximum.accumulate(np.where(draw.random(n) < 0.5, at, 0))  # of the run that each belongs to
    return (drawn[start] + at - start) % vocab_size


def folded(rows: Sequence[Row]) -> list[Row]:
    """The rows with the gradients of one kind of tensor in one: the worst of all layers."""
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        kind = re.sub(r"^h_\d+/", "h_*/", row.at) if row.quantity == "gradient" else row.quantity
        kinds.setdefault(kind, []).append(row)
    return [max(same, key=lambda row: (math.isnan(row.relative), row.relative)) for same in kinds.values()]


def table(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown."""
    head = ("quantity", "largest difference at", "absolute", "relative", "tolerance", "verdict")
    return reports.markdown(head, [_cells(row) for row in rows])


def _cells(row: Row) -> tuple[str, ...]:
    tolerance = (
        "none" if row.tolerance is None else f"{row.tolerance:.0e} {row.measure}" if row.tolerance else "identical"
    )
    absolute = str(row.absolute) if isinstance(row.absolute, int) else f"{row.absolute:.1e}"
    return row.quantity, row.at, absolute, f"{row.relative:.1e}", tolerance, row.verdict


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


def write_json(path: Path, comparison: Comparison, settings: Settings, reference: str, source: str) -> None:
    """Everything about a comparison; differences that are not finite are null."""
    document = {
        "command": sys.argv,
        "reference": reference,
        "batches": source,
        "settings": vars(settings),
        "device": {"platform": jax.default_backend(), "kind": describe(), "processor": platform.machine()},
        "versions": reports.versions(),
        "missed": comparison.missed,
        "rows": [row._asdict() | {"verdict": row.verdict} for row in comparison.rows],
        "losses": {"here": comparison.our_losses.tolist(), "reference": comparison.reference_losses.tolist()},
    }
    reports.write_json(path, document)


def write_plot(path: Path, comparison: Comparison, settings: Settings, reference: str, source: str) -> None:
    """Both loss curves over each other, and under them how far they are apart."""
    program = re.sub(r" \(.*\)$", "", reference)
    theirs, ours = comparison.reference_losses, comparison.our_losses
    gaps = np.abs(ours - theirs)
    bound = next(row.tolerance for row in comparison.rows if row.quantity == LOSSES)
    figure = reports.blank_figure(figsize=(8, 6), layout="constrained")
    curves, difference = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    # Told apart by width and dashes as well as by colour.
    curves.plot(theirs, color=reports.THEIRS, linewidth=5, alpha=0.7, label=program)
    curves.plot(ours, color=reports.OURS, linewidth=1.5, linestyle=(0, (4, 2)), label="nanogpt_jax")
    curves.set_ylabel("training loss (nats per token)")
    curves.set_title(
        f"{model_in_words(settings)}\n{batch_in_words(settings)} from {source}, {settings.dtype}", fontsize=10
    )
    curves.legend()
    difference.semilogy(
        np.maximum(gaps, _SMALLEST_GAP), ".", color=reports.OURS, label="|difference|, none at the bottom"
    )
    difference.axhline(bound, color=reports.ALARM, linestyle="--", label=f"tolerance {bound:g}")
    difference.set(xlabel="updates made", ylabel="difference (nats)", ylim=(_SMALLEST_GAP / 2, None))
    difference.xaxis.get_major_locator().set_params(integer=True)
    difference.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    for axes in (curves, difference):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    reports.write_figure(path, figure)
