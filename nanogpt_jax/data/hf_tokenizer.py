"""Any tokenizer of Hugging Face's `tokenizers`, by the document it keeps in `tokenizer.json`.

The library does the encoding. What is ours is the bytes of each token, so that a text can be shown as it is made.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from nanogpt_jax.core.errors import UserError, in_short
from nanogpt_jax.core.limits import MAX_VOCAB_SIZE
from nanogpt_jax.data.tokenizer import (
    TokenIds,
    byte_alphabet,
    checked_ids,
    require_unicode,
    shown,
    token_type,
    word_cut,
)

GPT2_WORDS = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


class HFTokenizer:
    """A tokenizer as `tokenizer.json` describes it, whatever its kind; `encode` gives the ids that transformers gives.

    So a prompt begins with a token of its own where the document asks for one.
    """

    def __init__(self, document: Any, end_of_text: str | None = None) -> None:
        """`document` is what `tokenizer.json` holds; `end_of_text` names the token that stands between documents.

        Raises `UserError` for a document that the library cannot read, or whose tokens have no bytes of their own.
        """
        self._library = opened(document)
        self._document = document_of(self._library)
        ids = self._library.get_vocab(with_added_tokens=True)
        self.vocab_size = max(ids.values(), default=-1) + 1
        if not 1 <= self.vocab_size <= MAX_VOCAB_SIZE:
            raise UserError(
                f"tokenizer.json has {self.vocab_size:,} tokens, outside 1 to {MAX_VOCAB_SIZE:,}; get it anew"
            )
        if end_of_text is not None and end_of_text not in ids:
            raise UserError(f"the end of text {shown(end_of_text)} is no token of tokenizer.json; get it anew")
        self._end_of_text = end_of_text
        self.eot_token = None if end_of_text is None else ids[end_of_text]
        self._bytes_of = _bytes_of(self._document["decoder"])

    def encode(self, text: str) -> TokenIds:
        return self._encode(self._library, text, add_special_tokens=True)

    def encode_ordinary(self, text: str) -> TokenIds:
        return self._encode(self._ordinary, text, add_special_tokens=False)

    def decode(self, ids: npt.ArrayLike) -> str:
        return self._library.decode(checked_ids(ids, self.vocab_size).tolist(), skip_special_tokens=False)

    def decode_bytes(self, ids: npt.ArrayLike) -> bytes:
        return b"".join([self._pieces[i] for i in checked_ids(ids, self.vocab_size).tolist()])

    def cut(self, text: str) -> int:
        return self._cut(text)

    def to_json(self) -> dict[str, Any]:
        return {"type": "hf", "tokenizer": self._document, "end_of_text": self._end_of_text}

    def _encode(self, library: Any, text: str, add_special_tokens: bool) -> TokenIds:
        require_unicode(text)
        with _plainly("the text cannot be encoded"):
            ids = np.array(library.encode(text, add_special_tokens=add_special_tokens).ids, np.int64)
            if self._may_drop:
                self._require_whole(text, library.encode(text, add_special_tokens=False).ids)
        return checked_ids(ids, self.vocab_size).astype(token_type(self.vocab_size))

    def _require_whole(self, text: str, ids: list[int]) -> None:
        made = self.decode_bytes(ids)
        if made != text.encode():
            there = next((c for c in sorted(set(text)) if c not in made.decode(errors="replace")), text[-1:])
            raise UserError(
                f"the character {there!r} (U+{ord(there):04X}) has no token among the {self.vocab_size:,} of the "
                "vocabulary; leave it out"
            )

    @functools.cached_property
    def _ordinary(self) -> Any:
        """The library's tokenizer to which a special token in a text is text like any other."""
        library = opened(self._document)
        library.encode_special_tokens = True
        return library

    @functools.cached_property
    def _pieces(self) -> list[bytes]:
        """The bytes of each token; none for an id that no token has."""
        pieces = [b""] * self.vocab_size
        for token, i in self._library.get_vocab(with_added_tokens=False).items():
            pieces[i] = self._bytes_of(token)
        for added in self._document["added_tokens"]:
            pieces[added["id"]] = added["content"].encode()
        return pieces

    @functools.cached_property
    def _may_drop(self) -> bool:
        """Whether the library leaves out in silence the bytes it has no token for, and leaves texts alone otherwise."""
        model, words = self._document["model"], self._document["pre_tokenizer"] or {}
        changes = self._document["normalizer"] is not None or words.get("add_prefix_space", True)
        if model["type"] != "BPE" or model["unk_token"] is not None or words.get("type") != "ByteLevel" or changes:
            return False
        return any(self._library.token_to_id(character) is None for character in byte_alphabet())

    @functools.cached_property
    def _cut(self) -> Callable[[str], int]:
        """What finds a place to cut; where none is known to be safe it finds none.

        No added token may hold or take the white space after a word.
        """
        found = [added for added in self._document["added_tokens"] if not added["special"]]
        if any(added["lstrip"] or added["rstrip"] or word_cut(added["content"]) for added in found):
            return lambda text: 0
        normalizer, words = self._document["normalizer"], self._document["pre_tokenizer"]
        if normalizer is None and cuts_as_gpt2(words):
            return word_cut
        return _space_cut if normalizer in (None, {"type": "NFC"}) and _parts_at_spaces(words) else lambda text: 0


def cuts_as_gpt2(pre_tokenizer: dict[str, Any] | None) -> bool:
    """Whether a `pre_tokenizer` cuts every text into GPT-2's words; `trim_offsets` has no say in that."""
    return pre_tokenizer is not None and {**pre_tokenizer, "trim_offsets": True} == GPT2_WORDS


def _parts_at_spaces(pre_tokenizer: dict[str, Any] | None) -> bool:
    """Whether every text is cut before a space or a tab that follows another character, whatever stands around."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer])
    parts = False
    for step in steps:
        match step:
            case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
                if pattern not in _WORDS:
                    return False
                parts = True
            case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": bool(has_gpt2_words)}:
                parts |= has_gpt2_words
            case {"type": "Digits"}:
                pass
            case _:
                return False
    return parts


def _space_cut(text: str) -> int:
    """The last place in `text` where a space or a tab follows another character; 0 if there is none."""
    found = _LAST_SPACE.match(text)
    return found.end() if found else 0


_LAST_SPACE = re.compile(r".*\S(?=[ \t])", re.DOTALL)
# How Qwen, and with up to three digits together Llama 3 and GPT-4, part a text into words: no alternative holds a space
# or a tab after another character, and none looks back.
_WORDS = tuple(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in ("", "{1,3}")
)


def opened(document: Any) -> Any:
    """The library's `Tokenizer` of what `tokenizer.json` holds, which never pads and never cuts a text short.

    Raises `UserError` for what the library cannot read.
    """
    from tokenizers import Tokenizer  # not wanted by those who train on characters

    with _plainly("tokenizer.json is none that the tokenizers library reads"):
        library = Tokenizer.from_str(json.dumps(document))
        library.no_padding()
        library.no_truncation()
        return library


def document_of(library: Any) -> dict[str, Any]:
    """What the library would write into `tokenizer.json`: one form for all documents that mean the same to it."""
    return json.loads(library.to_str())


@contextlib.contextmanager
def _plainly(what: str) -> Iterator[None]:
    """One line for what the library raises: it has no types of its own, and its panics are no `Exception`."""
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        short = in_short(error) if isinstance(error, Exception) else type(error).__name__
        raise UserError(f"{what} ({short}); get the files of the model anew") from None


def _bytes_of(decoder: dict[str, Any] | None) -> Callable[[str], bytes]:
    """A function from a token as the vocabulary has it to its bytes inside a text.

    Raises `UserError` for a decoder that gives tokens no bytes of their own. What it does to the beginning and the end
    of a whole text is left out: it is for `decode`.
    """
    if decoder is None:
        return lambda token: f" {token}".encode()
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    made = []
    for step in steps:
        if step["type"] == "Fuse":
            break  # from here on it is about the whole
        made.append(_STEPS.get(step["type"], lambda step: None)(step))
        if made[-1] is None:
            known = ", ".join(("Fuse", *_STEPS))
            raise UserError(f"the decoder {shown(step)} of tokenizer.json is none of {known}; take another model")

    def bytes_of(token: str) -> bytes:
        value: str | bytes = token
        for change in made:
            if isinstance(value, str):
                value = change(value)
        return value.encode() if isinstance(value, str) else value

    return bytes_of


def _replacing(old: str, new: str) -> Callable[[str], str]:
    return lambda token: token.replace(old, new)


def _byte_level(token: str) -> bytes:
    byte_of = _bytes_by_character()
    return bytes(map(byte_of.__getitem__, token)) if all(c in byte_of for c in token) else token.encode()


def _byte_fallback(token: str) -> str | bytes:
    found = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token)
    return bytes([int(found[1], 16)]) if found else token


@functools.cache
def _bytes_by_character() -> dict[str, int]:
    return {character: byte for byte, character in enumerate(byte_alphabet())}


# By the type of the library's decoder: what it makes of a token, or None where that hangs on the tokens beside it.
_STEPS: dict[str, Callable[[dict[str, Any]], Callable[[str], str | bytes] | None]] = {
    "ByteLevel": lambda step: _byte_level,
    "ByteFallback": lambda step: _byte_fallback,
    "Metaspace": lambda step: _replacing(step["replacement"], " "),
    "BPEDecoder": lambda step: _replacing(step["suffix"], " "),
    "Replace": lambda step: (
        _replacing(step["pattern"]["String"], step["content"]) if "String" in step["pattern"] else None
    ),
    "WordPiece": lambda step: (
        lambda token: token.removeprefix(step["prefix"]) if token.startswith(step["prefix"]) else f" {token}"
    ),
}
