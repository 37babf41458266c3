"""A text, and what lies in the folder of a prepared data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nanogpt_jax.data.prepared import load_meta, load_tokenizer

PLAY = "First Citizen:\r\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak. naïve 日本 🎉\n" * 5


def tokens(path: Path) -> np.ndarray:
    return np.fromfile(path, "<u2")


def decoded(folder: Path) -> str:
    """The text of both splits, read as any reader of the data set would."""
    meta = load_meta(folder)
    train, val = tokens(folder / "train.bin"), tokens(folder / "val.bin")
    assert (len(train), len(val)) == (meta.train_tokens, meta.val_tokens)
    tokenizer = load_tokenizer(meta.tokenizer)
    assert tokenizer.vocab_size == meta.vocab_size
    return tokenizer.decode(train) + tokenizer.decode(val)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
