"""What preparing data needs: a text in a file, and GPT-2's tokens, all or a few."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data import assets, encode
from nanogpt_jax.data.tokenizer import BPETokenizer, GPT2Tokenizer
from tests.helpers.prepared import PLAY


@pytest.fixture
def play(tmp_path: Path) -> Path:
    path = tmp_path / "play.txt"
    path.write_bytes(PLAY.encode())
    return path


@pytest.fixture(scope="module")
def gpt2_ranks() -> Iterator[dict[bytes, int]]:
    """GPT-2's ranks, brought once."""
    try:
        ranks = assets.gpt2_ranks()
    except UserError as error:
        pytest.skip(f"GPT-2's ranks can't be had here: {error}")
    made = GPT2Tokenizer(ranks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assets, "gpt2_ranks", lambda: ranks)
        patch.setattr(encode, "GPT2Tokenizer", lambda ranks: made)  # since it takes a moment to make
        yield ranks


@pytest.fixture
def few_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPT-2 that knows the 256 bytes alone, for tests of documents that need no more."""

    def tiny(ranks: dict[bytes, int]) -> BPETokenizer:
        return BPETokenizer([])

    monkeypatch.setattr(encode, "GPT2Tokenizer", tiny)
    monkeypatch.setattr(assets, "gpt2_ranks", dict)
