"""A tokenizer learned from German, in the forms that programs have given tokenizers over the years."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nanogpt_jax.data.tokenizer import END_OF_TEXT

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")


GERMAN = "Der Garten war groß, und die Gärtnerin goss täglich die Blumen vor dem Haus der Großmutter.\n"


def german(size: int) -> Any:
    """A byte-level BPE learned from German, made up to `size` tokens by words that never come up."""
    learned = tokenizers.ByteLevelBPETokenizer()
    learned.train_from_iterator([GERMAN] * 4, vocab_size=340, special_tokens=[END_OF_TEXT], show_progress=False)
    model = json.loads(learned.to_str())["model"]
    filled = model["vocab"] | {f"Füllwort{i}": i for i in range(len(model["vocab"]), size)}
    made = tokenizers.ByteLevelBPETokenizer(filled, [tuple(pair) for pair in model["merges"]])
    made.add_special_tokens([END_OF_TEXT])
    assert made.get_vocab_size() == size
    return made


def save_tokens(folder: Path, made: Any, form: str) -> None:
    """The tokenizer in `folder`, in one of the forms that programs have given it over the years."""
    if form == "tokenizer.json":
        made.save(str(folder / "tokenizer.json"))
    elif form == "transformers":
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made._tokenizer, eos_token=END_OF_TEXT)
        fast.save_pretrained(folder)
    else:
        made.save_model(str(folder))
    if form == "added":
        rows = made.get_vocab_size()
        (folder / "added_tokens.json").write_text(json.dumps({"<|user|>": rows, "<|assistant|>": rows + 1}))
