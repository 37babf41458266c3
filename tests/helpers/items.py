"""Items of evaluations, drawn from an invented language: sentences of any number, and files of them as others have."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

_WORDS = """
the a one every king queen fool ghost river crown naïve señor café garden sings walks weeps forgets keeps finds slowly
gladly never again beneath beside without over moon 日本 stone and but
"""


def sentence(draw: np.random.Generator, least: int, most: int) -> str:
    """From `least` to `most` words."""
    return " ".join(draw.choice(_WORDS.split(), draw.integers(least, most + 1)))


def text(seed: int, sentences: int) -> str:
    draw = np.random.default_rng(seed)
    return "".join(f"{sentence(draw, 3, 12)}.\n" for _ in range(sentences))


def hellaswag(seed: int, count: int, longest: int) -> list[dict[str, Any]]:
    """Contexts of up to `longest` words, each with four endings."""
    draw = np.random.default_rng(seed)
    return [
        {
            "ind": i,
            "ctx": sentence(draw, 1, longest),
            "endings": [f"{sentence(draw, 1, 6)}." for _ in range(4)],
            "label": int(draw.integers(4)),
        }
        for i in range(count)
    ]


def lambada(seed: int, count: int, longest: int) -> list[dict[str, Any]]:
    draw = np.random.default_rng(seed)
    return [{"text": sentence(draw, 2, longest)} for _ in range(count)]


def pairs(seed: int, count: int, longest: int) -> list[dict[str, Any]]:
    draw = np.random.default_rng(seed)
    return [
        {"prompt": f"{sentence(draw, 1, longest)}:", "completion": f" {sentence(draw, 1, 3)}"} for _ in range(count)
    ]


def write_lines(path: Path, items: Iterable[Any]) -> Path:
    """The items as JSON lines."""
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8")
    return path
