"""Characters that a tokenizer has no token for: named, dropped, or a space in their place."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data.tokenizer import CharTokenizer, Tokenizer


def unknown_characters(tokenizer: Tokenizer, characters: Iterable[str]) -> list[str]:
    """Those of `characters` that `tokenizer` refuses, as one of characters does all that are not in its vocabulary."""
    if isinstance(tokenizer, CharTokenizer):
        return [character for character in characters if character not in tokenizer.stoi]

    def is_refused(character: str) -> bool:
        try:
            tokenizer.encode_ordinary(character)
        except UserError:
            return True
        return False

    return [character for character in characters if is_refused(character)]


def rescue(tokenizer: Tokenizer, characters: Iterable[str], unknown: str) -> dict[int, str]:
    """What `str.translate` takes to `drop` the `characters` that have no token, or make each a `space`.

    Raises `UserError` where the space has no token either.
    """
    strangers = unknown_characters(tokenizer, characters)
    if unknown == "space" and strangers and unknown_characters(tokenizer, " "):
        raise UserError("unknown=space needs a space, which the vocabulary lacks too; choose unknown=drop")
    return {ord(character): " " if unknown == "space" else "" for character in strangers}


def rescued(text: str, tokenizer: Tokenizer, unknown: str) -> str:
    """A prompt made fit for `tokenizer` as far as `unknown` says; `refuse` leaves that to the tokenizer."""
    return text if unknown == "refuse" else text.translate(rescue(tokenizer, set(text), unknown))


def listed(characters: Sequence[str]) -> str:
    """Characters as part of one line, the first few of them."""
    shown = ", ".join(f"{character!r} (U+{ord(character):04X})" for character in characters[:5])
    return shown if len(characters) <= 5 else f"{shown} and {len(characters) - 5:,} more"
