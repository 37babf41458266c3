"""Data sets out of token files: another program's taken over, or the text of a data set in other tokens."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data.encode import Part, encode, require_tokenizer
from nanogpt_jax.data.files import exists, replace_when_whole
from nanogpt_jax.data.pieces import Split, recut
from nanogpt_jax.data.prepare import Summary
from nanogpt_jax.data.prepared import Meta, Piece, load_meta, load_tokenizer, token_chunks, token_files, write_data_set
from nanogpt_jax.data.sources import plain_os_errors, progress
from nanogpt_jax.data.tokenizer import Tokenizer, TokenType, token_type

SPLITS: tuple[Split, Split] = ("train", "val")
_SHOWN = 60  # characters of the beginning


@plain_os_errors("taking over a data set")
def adopt(
    source: Path,
    tokenizer: Tokenizer,
    folder: Path | None = None,
    *,
    all_occur: bool = False,
    shard_tokens: int | None = None,
) -> Summary:
    """Take over `train.bin` and `val.bin` in `source`, nanoGPT's, as tokens of `tokenizer`; its `meta.pkl` is not read.

    Tokens are uint16, or uint32 where the vocabulary needs it. The files stay where they are and get a `meta.json`
    beside them, or are copied into `folder`. `all_occur`: the vocabulary was made of this text, so that its last token
    must be in it. Raises `UserError` where a file is missing, empty or damaged, holds a token outside the vocabulary or
    of the other type, or belongs to a data set already.
    """
    if exists(source / "meta.json"):
        raise UserError(f"{source} is a data set already (it has a meta.json); train on it, or take that file away")
    if folder is None and shard_tokens is not None:
        raise UserError("shard_tokens makes other files, and --adopt leaves them as they are; add --name=NAME to copy")
    sizes, largest = dict.fromkeys(SPLITS, 0), 0
    dtype = token_type(tokenizer.vocab_size)
    each = np.dtype(dtype).itemsize

    def checked() -> Iterator[Piece]:
        nonlocal largest
        total = sum((source / f"{split}.bin").stat().st_size // each for split in SPLITS)
        with progress("reading tokens", total) as advance:
            for split in SPLITS:
                path = source / f"{split}.bin"
                _require_type(path, dtype)
                for ids in token_chunks([path], dtype):
                    largest = max(largest, int(ids.max()))
                    if largest >= tokenizer.vocab_size:
                        position = sizes[split] + int(np.argmax(ids >= tokenizer.vocab_size))
                        raise UserError(
                            f"{path} holds token {ids[position - sizes[split]]} at position {position:,}, outside the "
                            f"{tokenizer.vocab_size:,} of that tokenizer (read as {dtype}); name the one it was made "
                            "with"
                        )
                    sizes[split] += len(ids)
                    advance(len(ids))
                    yield Piece(split, ids)
                if not sizes[split]:
                    raise UserError(f"{path} is empty; copy it again, or prepare the text anew")
        if all_occur and largest != tokenizer.vocab_size - 1:
            raise UserError(
                f"the tokens in {source} are those of {largest + 1:,} characters, and the text that is named has "
                f"{tokenizer.vocab_size:,} different ones; name the text that they were made of"
            )

    if folder is None:
        for _ in checked():
            pass
        meta = Meta(tokenizer.vocab_size, dtype, sizes["train"], sizes["val"], tokenizer.to_json())
        with replace_when_whole(source / "meta.json") as file:
            file.write(meta.to_bytes())
    else:
        meta = write_data_set(folder, tokenizer, checked(), shard_tokens)
    beginning = next(token_chunks([source / "train.bin"], dtype))[:_SHOWN]
    remarks = [f"the training text begins: {tokenizer.decode(beginning)[:_SHOWN]!r}"]
    if 2 * largest < tokenizer.vocab_size:
        remarks.append(
            f"no token above {largest:,} occurs, and the tokenizer has {tokenizer.vocab_size:,}: is it theirs?"
        )
    return Summary(folder or source, "tokens", sum(sizes.values()), meta, tuple(remarks))


@plain_os_errors("preparing a data set")
def prepare_data_set(
    source: Path,
    folder: Path,
    tokenizer: str | Tokenizer,
    *,
    unknown: str = "refuse",
    shard_tokens: int | None = None,
) -> Summary:
    """Make `folder` a data set of the text of the data set `source`, in other tokens; its splits stay as they are.

    `tokenizer` and `unknown` are as in `prepare_text`. Raises `UserError` where both folders are one.
    """
    require_tokenizer(tokenizer)
    meta = load_meta(source)
    if meta.examples is not None:
        raise UserError(f"{source} is of examples, whose marks go by its own tokens; prepare their JSON lines again")
    if exists(folder) and folder.samefile(source):
        raise UserError(
            f"{source} would be written over by itself in other tokens; choose another name with --name=NAME"
        )
    old = load_tokenizer(meta.tokenizer)

    def parts(label: str, cut: Callable[[str], int]) -> Iterator[Part]:
        with progress(label, meta.train_tokens + meta.val_tokens) as advance:
            for split in SPLITS:
                last = None  # it is not known to end a document before the next one begins
                texts = _texts(token_files(source, meta, split), meta.dtype, old, advance)
                for _, document in itertools.groupby(texts, key=lambda numbered: numbered[0]):
                    if last is not None:
                        yield last._replace(ends=True)
                    last = Part(split, "")
                    for piece in recut((text for _, text in document), cut):
                        if last.text:
                            yield last
                        last = Part(split, piece)
                if last is not None and last.text:
                    yield last

    made, remarks = encode(parts, folder, tokenizer, unknown, shard_tokens, what=f"the text of {source}")
    return Summary(folder, "tokens", meta.train_tokens + meta.val_tokens, made, tuple(remarks))


def _require_type(path: Path, dtype: TokenType) -> None:
    """Refuse tokens of four bytes where two belong: read so, they would be tokens of the vocabulary too, and zeros."""
    beginning = next(token_chunks([path], dtype), np.zeros(0, dtype))
    if dtype == "uint16" and beginning[::2].any() and not beginning[1::2].any() and len(beginning) > 1:
        raise UserError(
            f"{path} has a 0 for every second token, so that they are uint32 and not {dtype}; write them as that: "
            'numpy.fromfile(PATH, "<u4").astype("<u2").tofile(PATH)'
        )


def _texts(
    paths: Sequence[Path], dtype: TokenType, tokenizer: Tokenizer, advance: Callable[[int], None]
) -> Iterator[tuple[int, str]]:
    """The text of token files as it comes, each piece with the number of its document; after an end comes the next."""
    number, decoder = 0, codecs.getincrementaldecoder("utf-8")("replace")
    for ids in token_chunks(paths, dtype):
        start = 0
        for stop in (*np.flatnonzero(ids == tokenizer.eot_token), len(ids)):  # nothing equals None
            ends = bool(stop < len(ids))
            yield number, decoder.decode(tokenizer.decode_bytes(ids[start:stop]), final=ends)
            start, number = int(stop) + 1, number + ends
        advance(len(ids))
    yield number, decoder.decode(b"", final=True)
