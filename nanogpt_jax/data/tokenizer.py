"""Text to tokens and back: characters, GPT-2's BPE, and a BPE trained on the user's own text, behind one protocol.

Nothing here touches a file or the network: GPT-2's ranks are handed in, and a tokenizer is written to and read from a
JSON document that may come from anyone.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
import reprlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.limits import MAX_VOCAB_SIZE

END_OF_TEXT = "<|endoftext|>"

# How GPT-2 cuts text before merging bytes (Radford et al., 2019): contractions, words, numbers, the rest, white space.
# A word takes one space before it along, so a run of white space leaves its last character to the word that follows.
# All but white space is one alternative: what needs no look ahead, tiktoken's regex matches in a single run of its own.
GPT2_PATTERN = r"(?:'(?:[sdmt]|ll|ve|re)| ?(?:\p{L}+|\p{N}+|[^\s\p{L}\p{N}]+))|\s+(?!\S)|\s+"

TokenIds = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
"""Of the type that `token_type` names for the vocabulary."""

TokenType = Literal["uint16", "uint32"]
"""How token files hold a token: little-endian in any case."""


def token_type(vocab_size: int) -> TokenType:
    """The type that holds the tokens of a vocabulary: nanoGPT's two bytes, or four where they can't tell all apart."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


@runtime_checkable
class Tokenizer(Protocol):
    """What the rest of the project knows of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens; their ids are 0 to `vocab_size` - 1."""

    @property
    def eot_token(self) -> int | None:
        """The id of `<|endoftext|>`, which stands between documents; None where there is no such token."""

    def encode(self, text: str) -> TokenIds:
        """Token ids (N,) of a prompt, in which `<|endoftext|>` is that token wherever the vocabulary has it.

        Raises `UserError` for a character that cannot be encoded.
        """

    def encode_ordinary(self, text: str) -> TokenIds:
        """Token ids (N,) of a document, in which `<|endoftext|>` is text like any other."""

    def decode(self, ids: npt.ArrayLike) -> str:
        """The text of token ids (N,), with U+FFFD for bytes that are not UTF-8.

        Raises `UserError` for an id outside the vocabulary.
        """

    def decode_bytes(self, ids: npt.ArrayLike) -> bytes:
        """The UTF-8 bytes of token ids (N,), which may begin or end inside a character.

        Raises `UserError` for an id outside the vocabulary.
        """

    def cut(self, text: str) -> int:
        """The last place where the beginning of a longer text can be cut without changing its tokens; 0 if none.

        `encode_ordinary(text[:cut])` followed by the tokens of what comes after equals the tokens of the whole.
        """

    def to_json(self) -> dict[str, Any]:
        """The document from which `tokenizer_from_json` makes an equal tokenizer."""


class CharTokenizer:
    """One token for each character, in the order given; `from_text` sorts them, as nanoGPT does.

    `itos` lists the characters by id, `stoi` gives the id of each.
    """

    eot_token = None

    def __init__(self, characters: Iterable[str]) -> None:
        """Raises `UserError` unless there is at least one character, and all are different."""
        self.itos = list(characters)
        self.stoi = {character: i for i, character in enumerate(self.itos)}
        _require_distinct_characters(self.itos)
        _require_vocab_size(len(self.itos))
        self._codepoints = np.array([ord(character) for character in self.itos], "<u4")
        # A table from code point to id; what is not in the vocabulary, and what lies beyond the table, reads as -1.
        self._ids = np.full(int(self._codepoints.max()) + 2, -1, np.int32)
        self._ids[self._codepoints] = np.arange(len(self.itos))

    @classmethod
    def from_text(cls, text: str) -> CharTokenizer:
        """The tokenizer of a text: its different characters, sorted."""
        return cls(sorted(set(text)))

    @property
    def vocab_size(self) -> int:
        return len(self.itos)

    def encode(self, text: str) -> TokenIds:
        ids = self._ids[np.minimum(codepoints(text), len(self._ids) - 1)]
        if ids.size and ids.min() < 0:
            position = int(np.argmin(ids))
            raise UserError(
                f"the character {text[position]!r} (U+{ord(text[position]):04X}) at position {position:,} is not among "
                f"the {self.vocab_size:,} of the vocabulary; leave it out (--unknown=drop or --unknown=space)"
            )
        return ids.astype(token_type(self.vocab_size))

    encode_ordinary = encode

    def decode(self, ids: npt.ArrayLike) -> str:
        return self._codepoints[checked_ids(ids, self.vocab_size)].tobytes().decode("utf-32-le")

    def decode_bytes(self, ids: npt.ArrayLike) -> bytes:
        return self.decode(ids).encode()

    def cut(self, text: str) -> int:
        return len(text)

    def to_json(self) -> dict[str, Any]:
        return {"type": "char", "characters": "".join(self.itos)}


class _OfThread(threading.local):
    """tiktoken's encoding, made anew in each thread that asks for it, which takes some hundredths of a second.

    Threads that share one slow each other down: all write to the place where its regex keeps what it works with.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self.encoding = make()


class ByteBPE:
    """Byte-level BPE by tiktoken: byte sequences with their `ranks` for ids, and `<|endoftext|>` as the last token."""

    def __init__(self, name: str, ranks: dict[bytes, int]) -> None:
        import tiktoken  # not wanted by those who train on characters

        self.ranks = ranks
        self.eot_token = len(ranks)
        self.vocab_size = len(ranks) + 1
        self._own = _OfThread(
            lambda: tiktoken.Encoding(
                name,
                pat_str=GPT2_PATTERN,
                mergeable_ranks=ranks,
                special_tokens={END_OF_TEXT: self.eot_token},
                explicit_n_vocab=self.vocab_size,
            )
        )

    def encode(self, text: str) -> TokenIds:
        return self._encode(text, special={END_OF_TEXT})

    def encode_ordinary(self, text: str) -> TokenIds:
        return self._encode(text, special=set())

    def _encode(self, text: str, special: set[str]) -> TokenIds:
        require_unicode(text)
        try:
            ids = self._own.encoding.encode_to_numpy(text, allowed_special=special, disallowed_special=())
        except ValueError:  # its regex gives up after a million steps back, which only white space can ask for
            raise UserError("the text has a million characters of white space in a row; shorten them") from None
        return ids.astype(token_type(self.vocab_size))

    def decode(self, ids: npt.ArrayLike) -> str:
        return self.decode_bytes(ids).decode(errors="replace")

    def decode_bytes(self, ids: npt.ArrayLike) -> bytes:
        return self._own.encoding.decode_bytes(checked_ids(ids, self.vocab_size).tolist())

    def cut(self, text: str) -> int:
        return word_cut(text)


class GPT2Tokenizer(ByteBPE):
    """GPT-2's own BPE: 50,256 byte sequences, and `<|endoftext|>` as token 50256."""

    def __init__(self, ranks: dict[bytes, int]) -> None:
        """`ranks` gives the id of each byte sequence."""
        super().__init__("gpt2", ranks)

    def to_json(self) -> dict[str, Any]:
        return {"type": "gpt2"}


class BPETokenizer(ByteBPE):
    """A BPE learned from some text by Hugging Face's tokenizers, in words as GPT-2 cuts them.

    Token ids 0 to 255 are the bytes, then come the merged pieces in the order they were learned, then `<|endoftext|>`.
    Its merges are all there is to know of it: the vocabulary follows from them. tiktoken encodes with it, several times
    as fast as tokenizers would; where pieces can be joined in more than one way, it may take another than was learned.
    """

    MIN_VOCAB_SIZE = 257  # the bytes and <|endoftext|>

    def __init__(self, merges: Iterable[object]) -> None:
        """`merges` are pairs of pieces with a space between them, in GPT-2's alphabet, the first learned first.

        Raises `UserError` for a merge that is no such pair or joins pieces not made before it.
        """
        self._merges = list(merges)
        byte_of = {character: byte for byte, character in enumerate(byte_alphabet())}
        pieces = _pieces(self._merges)
        super().__init__("bpe", {bytes(byte_of[c] for c in piece): rank for rank, piece in enumerate(pieces)})

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> BPETokenizer:
        """Learn up to `vocab_size` tokens (257 to `MAX_VOCAB_SIZE`) from pieces of text cut where `word_cut` says.

        A pair must occur twice to be merged, so a short text gives fewer tokens. tokenizers reads 256 pieces ahead and
        takes time quadratic in the longest word: keep the pieces to some thousand characters.
        """
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers

        if not cls.MIN_VOCAB_SIZE <= vocab_size <= MAX_VOCAB_SIZE:
            raise UserError(
                f"a BPE of {vocab_size} tokens is outside {cls.MIN_VOCAB_SIZE} (the bytes and {END_OF_TEXT}) "
                f"to {MAX_VOCAB_SIZE}; choose a size between them"
            )
        learner = Tokenizer(models.BPE())
        learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1,  # <|endoftext|> is added by us
            min_frequency=2,
            initial_alphabet=list(byte_alphabet()),
            show_progress=False,
        )
        learner.train_from_iterator(texts, trainer)
        return cls(" ".join(pair) for pair in json.loads(learner.to_str())["model"]["merges"])

    def to_json(self) -> dict[str, Any]:
        return {"type": "bpe", "merges": list(self._merges)}


def word_cut(text: str) -> int:
    """The end of the last word in `text` that is followed by white space; 0 if there is none.

    `GPT2_PATTERN` can be cut there: none of its alternatives holds a white space character after another character,
    and none looks back. Only white space that every library agrees on counts.
    """
    found = _LAST_WORD_END.match(text)
    return found.end() if found else 0


_LAST_WORD_END = re.compile(r".*\S(?=[ \t\r\n])", re.DOTALL)


def codepoints(text: str) -> npt.NDArray[np.uint32]:
    """The Unicode code points (N,) of a text, lone surrogates included."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def shown(value: Any) -> str:
    """An untrusted value as part of one line: its `repr`, at most 80 characters of it."""
    text = reprlib.repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _require_distinct_characters(characters: Sequence[str]) -> None:
    for character in characters:
        if len(character) != 1 or "\ud800" <= character <= "\udfff":
            raise UserError(f"the vocabulary has {shown(character)}, not a character; prepare the data set again")
    if len(set(characters)) < len(characters):
        [(twice, _)] = Counter(characters).most_common(1)
        raise UserError(f"the vocabulary has the character {twice!r} twice; prepare the data set again")


def _require_vocab_size(size: int) -> None:
    if not 1 <= size <= MAX_VOCAB_SIZE:
        raise UserError(
            f"a vocabulary of {size:,} tokens is outside 1 to {MAX_VOCAB_SIZE:,}; "
            "use text with fewer different characters, or --tokenizer=bpe:SIZE"
        )


def require_unicode(text: str) -> None:
    """Refuse lone surrogates, which UTF-8 cannot hold and each library treats in its own way."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = text[error.start]
        raise UserError(
            f"the text has {found!r} (U+{ord(found):04X}) at position {error.start:,}, "
            "half of a UTF-16 pair and not a character; leave it out (--unknown=drop)"
        ) from None


def checked_ids(ids: npt.ArrayLike, vocab_size: int) -> npt.NDArray[np.integer]:
    """`ids` as an array (N,), once all are inside the vocabulary."""
    ids = np.asarray(ids)
    if not ids.size:
        return np.zeros(0, np.uint16)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(f"token ids must be a row of integers, not {ids.dtype}{list(ids.shape)}")
    outside = (ids < 0) | (ids >= vocab_size)
    if outside.any():
        position = int(np.argmax(outside))
        raise UserError(
            f"token {ids[position]} at position {position:,} is outside the vocabulary of {vocab_size:,} tokens; "
            "decode it with the tokenizer it was made with"
        )
    return ids


@functools.cache  # asked for once for every piece of a vocabulary
def byte_alphabet() -> tuple[str, ...]:
    """GPT-2's printable stand-in for each byte: the Latin-1 character, or the next from U+0100 on where it is blank."""
    blank = itertools.count(0x100)
    return tuple(chr(b) if chr(b).isprintable() and chr(b) != " " else chr(next(blank)) for b in range(256))


def _pieces(merges: Sequence[object]) -> list[str]:
    """All pieces that `merges` make, the 256 single bytes first. Two merges may make the same piece."""
    pieces = dict.fromkeys(byte_alphabet())
    for merge in merges:
        halves = merge.split(" ") if isinstance(merge, str) else []
        if len(halves) != 2 or not all(half in pieces for half in halves) or "".join(halves) == END_OF_TEXT:
            raise UserError(
                f"the BPE merge {shown(merge)} does not join two pieces made before it; prepare the data set again"
            )
        pieces["".join(halves)] = None
    _require_vocab_size(len(pieces) + 1)
    if len(set(merges)) < len(merges):
        raise UserError("the BPE has a merge twice; prepare the data set again")
    return list(pieces)
