"""How results are told: tables in Markdown, JSON, figures, and words for shapes."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import math
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data.commands import to_install
from nanogpt_jax.data.files import is_dir, refusals, replace_when_whole

PLOT_FORMATS = (".png", ".svg", ".pdf")
# Of Okabe and Ito (2008), whom colour-blind readers can tell apart.
OURS, THEIRS, ALARM, THIRD = "#0072B2", "#E69F00", "#D55E00", "#009E73"
_EXTRAS = {"torch": "torch", "transformers": "torch", "tensorboardX": "tensorboard", "wandb": "wandb"}
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers")


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, aligned for the terminal."""
    widths = [max(len(line[column]) for line in (head, *lines)) for column in range(len(head))]
    rows = [head, ["-" * width for width in widths], *lines]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    )


def require_installed(package: str, purpose: str) -> None:
    """Raise `UserError` with the command that installs it if `package`, of an extra, is not there."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{purpose} needs {package}, which is not installed; {to_install(_EXTRAS[package])}")


def require_writable(**files: Path | None) -> None:
    """Refuse at once what would fail only when all is computed: files by the names of their flags, figures but json."""
    for name, path in files.items():
        if path is not None:
            if name != "json" and path.suffix not in PLOT_FORMATS:
                raise UserError(f"{name}={path} is of no known format; end its name in {', '.join(PLOT_FORMATS)}")
            with refusals(f"{name}={path}", "written"):
                path.parent.mkdir(parents=True, exist_ok=True)
            if is_dir(path):
                raise UserError(f"{name}={path} is a folder; name a file")


def write_where_asked(name: str, path: Path | None, write: Callable[[Path], None]) -> None:
    """`write(path)` if a path was given with `--name`; `UserError` if the system refuses it."""
    if path is not None:
        with refusals(f"{name}={path}", "written"):
            write(path)


def write_json(path: Path, document: Any) -> None:
    """Write `document`, whole or not at all; numbers that are not finite become null."""
    with replace_when_whole(path, "w") as file:
        json.dump(_finite(document), file, indent=2, allow_nan=False)
        file.write("\n")


def blank_figure(**options: Any) -> Any:
    """A matplotlib figure that belongs to no window and needs no backend.

    So the one that MPLBACKEND names does not matter: a notebook's, which is not there outside it, or none that exists.
    """
    named = os.environ.pop("MPLBACKEND", None)  # which matplotlib would look for, and fail
    try:
        from matplotlib.figure import Figure
    finally:
        if named is not None:
            os.environ["MPLBACKEND"] = named
    return Figure(**options)


def tidied(axes: Any) -> None:
    """Give axes a light grid, and no frame above and at the right."""
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def write_figure(path: Path, figure: Any) -> None:
    """Write a matplotlib figure, whole or not at all, in the format that the name ends in."""
    with replace_when_whole(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=150)


def versions() -> dict[str, str]:
    """The versions of Python and of what computes here, without importing it."""
    installed = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def model_in_words(settings: Settings) -> str:
    """The shape of the model that the settings name."""
    heads = "1 head" if settings.n_head == 1 else f"{settings.n_head} heads"
    layers = "1 layer" if settings.n_layer == 1 else f"{settings.n_layer} layers"
    return f"{layers}, {heads}, {settings.n_embd} wide, block {settings.block_size}"


def batch_in_words(settings: Settings) -> str:
    """The shape of a training batch."""
    steps = settings.gradient_accumulation_steps
    return ("" if steps == 1 else f"{steps} x ") + f"{settings.batch_size} x {settings.block_size} tokens"


def _finite(value: Any) -> Any:
    """`value` with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
