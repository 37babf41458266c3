"""A `Reading` of a text as one HTML page that needs nothing else: no network, no server, no other file.

The page is `page/lens.html`, `.css` and `.js`; here the numbers are laid into it, as JSON that it takes for data
whatever the text says. Its policy forbids every request, and every script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from nanogpt_jax.core.ops import AnyArray
from nanogpt_jax.data.tokenizer import CharTokenizer, Tokenizer
from nanogpt_jax.lens.activations import Predictions

_DECIMALS = 6


class Findings(NamedTuple):
    """All that the page shows of T tokens, the first `given` of which were the prompt.

    `layers` are predictions with an axis for the streams in front; it is None for a model without layers.
    """

    tokens: Int[np.ndarray, " T"]
    given: int
    predicted: Predictions
    layers: Predictions | None
    attention: Float[np.ndarray, "L H T T"]


def page(findings: Findings, tokenizer: Tokenizer, model: str, facts: Sequence[str]) -> str:
    """The whole page; `model` is the name it goes by, and `facts` say what there is to know of it."""
    style, script = _file("lens.css"), _file("lens.js")
    parts = {
        "policy": f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; base-uri 'none'",
        "style": style,
        "script": script,
        "data": _json({"model": model, "facts": list(facts), **document(findings, tokenizer)}),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], _file("lens.html"))


def document(findings: Findings, tokenizer: Tokenizer) -> dict[str, Any]:
    """The numbers of the page, as `lens.js` reads them."""
    predicted, layers = findings.predicted, findings.layers
    shown = [findings.tokens, predicted.candidates, *([] if layers is None else [layers.candidates])]
    ids = np.unique(np.concatenate([np.asarray(tokens).ravel() for tokens in shown]))
    n_layer, heads = findings.attention.shape[:2]
    return {
        "unit": "character" if isinstance(tokenizer, CharTokenizer) else "token",
        "vocab_size": tokenizer.vocab_size,
        "evenly": math.log(max(tokenizer.vocab_size, 2)),
        "tokens": findings.tokens.tolist(),
        "given": findings.given,
        "pieces": {int(token): _piece(tokenizer.decode_bytes([token])) for token in ids},
        **_numbers(predicted),
        "ranks": predicted.ranks.tolist(),
        "layers": [
            {"name": f"layer {index}" if index else "embedding", **_numbers(Predictions(*of_stream))}
            for index, of_stream in enumerate(() if layers is None else zip(*layers, strict=True))
        ],
        "heads": heads,
        "attention": {"layers": n_layer, "bytes": base64.b64encode(packed(findings.attention)).decode()},
    }


def packed(attention: Float[np.ndarray, "L H T T"]) -> bytes:
    """Each map's rows up to the diagonal, one after the other: a byte for a weight, 255 times its square root.

    So small weights, of which a long row is full, keep their digits; none is off by more than 1/255.
    """
    rows, columns = np.tril_indices(attention.shape[-1])
    return np.rint(255 * np.sqrt(attention[..., rows, columns])).astype(np.uint8).tobytes()


def _numbers(predicted: Predictions) -> dict[str, Any]:
    return {
        "candidates": predicted.candidates.tolist(),
        "probabilities": _rounded(predicted.probabilities),
        "losses": _rounded(predicted.losses),
    }


def _rounded(numbers: Float[AnyArray, "*shape"]) -> list[Any]:
    return np.round(np.asarray(numbers, np.float64), _DECIMALS).tolist()


def _piece(data: bytes) -> str | list[int]:
    """A token's text, or its bytes where they are only part of a character."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return list(data)


def _json(document: Any) -> str:
    """JSON that cannot end the element it stands in: the only way out of one begins with <."""
    return json.dumps(document, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def _file(name: str) -> str:
    return (resources.files("nanogpt_jax.lens") / "template" / name).read_text(encoding="utf-8")
