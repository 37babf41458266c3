"""A tokenizer out of the JSON document that it wrote, whichever kind it is of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data.tokenizer import BPETokenizer, CharTokenizer, GPT2Tokenizer, Tokenizer, shown


def tokenizer_from_json(document: Any, gpt2_ranks: Callable[[], dict[bytes, int]]) -> Tokenizer:
    """The tokenizer that wrote `document` with `to_json`; `gpt2_ranks` is called only if GPT-2's ranks are needed.

    Raises `UserError` for any other document.
    """
    match document:
        case {"type": "char", "characters": str(characters), **others} if not others:
            return CharTokenizer(characters)
        case {"type": "gpt2", **others} if not others:
            return GPT2Tokenizer(gpt2_ranks())
        case {"type": "bpe", "merges": list(merges), **others} if not others:
            return BPETokenizer(merges)
        case {"type": "hf", "tokenizer": dict(theirs), "end_of_text": str() | None as end_of_text, **others} if (
            not others
        ):
            from nanogpt_jax.data.hf_tokenizer import HFTokenizer  # which brings a library

            return HFTokenizer(theirs, end_of_text)
    raise UserError(
        f"the tokenizer {shown(document)} is of no known form (char with its characters, gpt2, bpe with its merges, hf "
        "with its tokenizer.json); prepare the data set again"
    )
