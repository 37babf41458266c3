"""`python -m nanogpt_jax.compare`: the same numbers as PyTorch, or a table that says where they are not.

One model is built twice, here and in Hugging Face's or nanoGPT's PyTorch, from the same weights, and trained on the
same batches; `parity.py` compares. The table goes to the terminal, all there is to know to a JSON file and a plot.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import json
import math
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np

from nanogpt_jax import cli, interop
from nanogpt_jax.accelerator import describe, use_accelerator
from nanogpt_jax.config import PRESETS, Settings, require_at_least
from nanogpt_jax.dataset import TokenFile, open_tokens, random_batch
from nanogpt_jax.errors import UserError
from nanogpt_jax.files import replace_when_whole
from nanogpt_jax.loading import build_model
from nanogpt_jax.parity import LOSSES, Comparison, Ours, Row, Side, compare
from nanogpt_jax.prepare import load_meta
from nanogpt_jax.training import Batch

MISSED = 1  # exit status
DEFAULT_PRESET = "shakespeare_char_cpu"
PLOT_FORMATS = (".png", ".svg", ".pdf")
_INSTALL = "pip install -e '.[torch]'"
_SMALLEST_GAP = 1e-8  # drawn for none, which a logarithmic axis cannot show
_EXTRAS = ("torch", "transformers", "matplotlib")

_DESCRIPTION = f"""\
Compare this project's numbers with PyTorch's: logits, loss, gradients, AdamW, schedule, greedy text, loss curves.

  python -m nanogpt_jax.compare                                the model of {DEFAULT_PRESET}, with Hugging Face's GPT-2
  python -m nanogpt_jax.compare --reference=../nanoGPT         with the model.py of a nanoGPT checkout
  python -m nanogpt_jax.compare gpt2 --block_size=128 --batch_size=1 --gradient_accumulation_steps=1 --steps=2
  python -m nanogpt_jax.compare --dtype=bfloat16 --all --json=compare.json --plot=compare.png

Exit status: 0 if all tolerances hold, 1 if one is missed, 2 for wrong use."""


class Data(NamedTuple):
    """Where batches come from, and how to say so."""

    tokens: TokenFile
    source: str


def main(argv: Sequence[str]) -> int:
    """The command: parse, build both sides, compare, and tell."""
    parser = cli.settings_parser("python -m nanogpt_jax.compare [PRESET | FILE.toml] [--name=value ...]", _DESCRIPTION)
    group = parser.add_argument_group("comparison")
    group.add_argument("--reference", metavar="hf|DIR", help="Hugging Face's GPT-2, or a nanoGPT checkout ('hf')")
    group.add_argument("--steps", type=int, metavar="INT", help="updates to compare (200)")
    group.add_argument("--json", type=Path, metavar="FILE", help="write all numbers, versions and settings here")
    group.add_argument("--plot", type=Path, metavar="FILE.png", help="draw both loss curves and their difference")
    parser.add_switch(group, "all", help="a line for every tensor's gradient, not for every kind of tensor")
    given = parser.parse(argv)
    own = {name: given.pop(name, None) for name in ("reference", "steps", "json", "plot", "all")}
    base, explicit = cli.chosen(given)
    reference_name, steps = own["reference"] or "hf", 200 if own["steps"] is None else own["steps"]
    require_at_least("steps", steps, 1)
    settings, changed = fitting_settings(PRESETS[DEFAULT_PRESET] if base is None else base, explicit, reference_name)
    _require_writable(own["json"], own["plot"])

    # Else idle threads of PyTorch spin where ours could run: this, read at its import, saves most of the time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # PyTorch computes on the CPU, and its float32 is what ours is held to: another device must be asked for.
    use_accelerator(explicit.get("accelerator", "cpu"))
    data = open_data(settings)
    model = build_model(settings, data.tokens.vocab_size, jax.default_backend())
    reference = _reference_side(reference_name, model.config, settings)
    ours = Ours(model, settings)
    size = sum(p.size for p in jax.tree.leaves(ours.parameters()))
    print(f"reference  {reference.name}")
    print(f"model      {_shape(settings)}, {size:,} parameters, {settings.dtype}" + (f"; {changed}" if changed else ""))
    print(f"batches    {_batch_shape(settings)} from {data.source}, seed {settings.seed}", flush=True)

    def batch_of(step: int) -> Batch:
        shape = (settings.gradient_accumulation_steps, settings.batch_size)
        return random_batch(data.tokens, "train", settings.seed, step, shape[shape[0] == 1 :], settings.block_size)

    comparison = compare(ours, reference, batch_of, steps, settings)
    print(f"\n{table(comparison.rows if own['all'] else folded(comparison.rows))}\n")
    for name, write in (("json", write_json), ("plot", write_plot)):
        if own[name] is not None:
            try:
                write(own[name], comparison, settings, reference.name, data.source)
            except OSError as error:
                raise _unwritable(name, own[name], error) from error
    missed = sum(row.verdict == "MISSED" for row in comparison.rows)
    if not own["all"]:
        print("of each kind of tensor, the layer whose gradient differs most is shown; --all shows every tensor")
    print(f"{missed} of {len(comparison.rows)} tolerances MISSED" if missed else "all tolerances hold")
    return MISSED if missed else cli.OK


def fitting_settings(base: Mapping[str, Any], explicit: Mapping[str, Any], reference: str) -> tuple[Settings, str]:
    """The settings to compare with, and in words how they differ from `base` of our own accord.

    What the reference cannot express is set right where the user said nothing. Raises `UserError` where they did, or
    where another model would come of it.
    """
    program = "Hugging Face's GPT-2" if reference == "hf" else "nanoGPT"
    adapted: dict[str, Any] = {"dropout": 0.0, "init_from": "scratch"}  # dropout draws other numbers there than here
    if reference == "hf":
        adapted |= {"bias": True, "activation": "gelu_new"}
    plain = Settings(**{**base, "dtype": "float32", **explicit})
    settings = Settings(**{**vars(plain), **adapted, **explicit})
    if settings.dtype == "auto":
        settings = dataclasses.replace(settings, dtype="float32")
    config = settings.gpt_config(settings.vocab_size or 1)
    needed = {"model": "gpt", "dropout": 0.0, "init_from": "scratch"} | ({"bias": True} if reference == "hf" else {})
    if config.has_qkv_bias != config.bias:
        needed["qkv_bias"] = None
    for name, value in needed.items():
        if (found := getattr(settings, name)) != value:
            raise UserError(f"{name}={found} cannot be compared with {program}; add --{name}={value}")
    interop.require_expressible(config, "hf" if reference == "hf" else "nanogpt")
    changes = [f"{name}={value}" for name, value in adapted.items() if getattr(plain, name) != getattr(settings, name)]
    return settings, f"{', '.join(changes)} to agree with {program}" if changes else ""


def open_data(settings: Settings) -> Data:
    """The training split of the data set the settings name, or random tokens where it is not prepared."""
    folder = Path(settings.data_dir) / settings.dataset
    if (folder / "meta.json").is_file():
        meta = load_meta(folder)
        path, sizes = folder / "train.bin", (meta.vocab_size, settings.block_size, meta.train_tokens)
        file = open_tokens(path, *sizes, meta.shards("train"))
        return Data(file, str(folder))
    vocab_size = settings.vocab_size or 65
    chances = 1 / np.arange(1, vocab_size + 1)  # Zipf's law, so that there is something to learn
    draw = np.random.Generator(np.random.Philox(settings.seed))
    tokens = draw.choice(vocab_size, size=max(1 << 18, 2 * settings.block_size), p=chances / chances.sum())
    file = TokenFile(tokens.astype("<u2"), Path("random tokens"), vocab_size)
    return Data(file, f"random tokens ({folder} is not prepared)")


def folded(rows: Sequence[Row]) -> list[Row]:
    """The rows with the gradients of one kind of tensor in one: the worst of all layers."""
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        kind = re.sub(r"^h_\d+/", "h_*/", row.at) if row.quantity == "gradient" else row.quantity
        kinds.setdefault(kind, []).append(row)
    return [max(same, key=lambda row: (math.isnan(row.relative), row.relative)) for same in kinds.values()]


def table(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown, aligned for the terminal."""
    head = ("quantity", "largest difference at", "absolute", "relative", "tolerance", "verdict")
    lines = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def _cells(row: Row) -> tuple[str, ...]:
    tolerance = (
        "none" if row.tolerance is None else f"{row.tolerance:.0e} {row.measure}" if row.tolerance else "identical"
    )
    absolute = str(row.absolute) if isinstance(row.absolute, int) else f"{row.absolute:.1e}"
    return row.quantity, row.at, absolute, f"{row.relative:.1e}", tolerance, row.verdict


def _reference_side(reference: str, config: Any, settings: Settings) -> Side:
    torch_side = _extra("nanogpt_jax.compare_torch")
    if reference == "hf":
        _extra("transformers")
        return torch_side.hugging_face(config, settings)
    checkout = Path(reference)
    if not (checkout / "model.py").is_file():
        raise UserError(f"reference={reference} is neither hf nor a folder with nanoGPT's model.py; name one of them")
    return torch_side.nanogpt(checkout, config, settings)


def _extra(module: str) -> ModuleType:
    """The module, which needs what the `torch` extra brings; `UserError` with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in _EXTRAS:
            raise
        raise UserError(f"the comparison needs {error.name}, which is not installed; {_INSTALL}") from None


def _require_writable(json_file: Path | None, plot: Path | None) -> None:
    """Refuse at once what would fail only when all is computed."""
    if plot is not None:
        if plot.suffix not in PLOT_FORMATS:
            raise UserError(f"plot={plot} is of no known format; end its name in {', '.join(PLOT_FORMATS)}")
        _extra("matplotlib")
    for name, path in (("json", json_file), ("plot", plot)):
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise _unwritable(name, path, error) from error
            if path.is_dir():
                raise UserError(f"{name}={path} is a folder; name a file")


def _unwritable(name: str, path: Path, error: OSError) -> UserError:
    return UserError(f"{name}={path} cannot be written ({error.strerror or error}); name another file")


def write_json(path: Path, comparison: Comparison, settings: Settings, reference: str, source: str) -> None:
    """Everything about a comparison; differences that are not finite are null."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers")
    versions = {name: version for name in packages if (version := _version(name)) is not None}
    document = {
        "command": sys.argv,
        "reference": reference,
        "batches": source,
        "settings": vars(settings),
        "device": {"platform": jax.default_backend(), "kind": describe(), "processor": platform.machine()},
        "versions": {"python": platform.python_version(), **versions},
        "missed": comparison.missed,
        "rows": [row._asdict() | {"verdict": row.verdict} for row in comparison.rows],
        "losses": {"here": comparison.our_losses.tolist(), "reference": comparison.reference_losses.tolist()},
    }
    with replace_when_whole(path, "w") as file:
        json.dump(_finite(document), file, indent=2, allow_nan=False)
        file.write("\n")


def write_plot(path: Path, comparison: Comparison, settings: Settings, reference: str, source: str) -> None:
    """Both loss curves over each other, and under them how far they are apart."""
    from matplotlib.figure import Figure

    program = re.sub(r" \(.*\)$", "", reference)
    theirs, ours = comparison.reference_losses, comparison.our_losses
    gaps = np.abs(ours - theirs)
    bound = next(row.tolerance for row in comparison.rows if row.quantity == LOSSES)
    figure = Figure(figsize=(8, 6), layout="constrained")
    curves, difference = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    # Orange and blue of Okabe and Ito (2008), told apart by width and dashes as well.
    curves.plot(theirs, color="#E69F00", linewidth=5, alpha=0.7, label=program)
    curves.plot(ours, color="#0072B2", linewidth=1.5, linestyle=(0, (4, 2)), label="nanogpt_jax")
    curves.set_ylabel("training loss (nats per token)")
    curves.set_title(f"{_shape(settings)}\n{_batch_shape(settings)} from {source}, {settings.dtype}", fontsize=10)
    curves.legend()
    difference.semilogy(np.maximum(gaps, _SMALLEST_GAP), ".", color="#0072B2", label="|difference|, none at the bottom")
    difference.axhline(bound, color="#D55E00", linestyle="--", label=f"tolerance {bound:g}")
    difference.set(xlabel="updates made", ylabel="difference (nats)", ylim=(_SMALLEST_GAP / 2, None))
    difference.xaxis.get_major_locator().set_params(integer=True)
    difference.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    for axes in (curves, difference):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    with replace_when_whole(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=150)


def _shape(settings: Settings) -> str:
    heads = "1 head" if settings.n_head == 1 else f"{settings.n_head} heads"
    layers = "1 layer" if settings.n_layer == 1 else f"{settings.n_layer} layers"
    return f"{layers}, {heads}, {settings.n_embd} wide, block {settings.block_size}"


def _batch_shape(settings: Settings) -> str:
    steps = settings.gradient_accumulation_steps
    return ("" if steps == 1 else f"{steps} x ") + f"{settings.batch_size} x {settings.block_size} tokens"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _finite(value: Any) -> Any:
    """`value` with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    raise SystemExit(cli.run(main))
