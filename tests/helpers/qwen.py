"""A tokenizer in the files that Qwen's models come with, and of more tokens than two bytes tell apart."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from nanogpt_jax.data.tokenizer import byte_alphabet

SIZE = 70_000
END, START, TURN = SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PLAIN = ("<tool_call>", "</tool_call>", "<think>", "</think>")
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def qwen(size: int = SIZE) -> tuple[dict[str, Any], dict[str, Any]]:
    """`tokenizer.json` and `tokenizer_config.json`: a byte-level BPE of `size` pieces, and seven added tokens.

    Its merges are all pairs of bytes, and then as many letters before a pair as it takes.
    """
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": False}
    alphabet = byte_alphabet()
    pairs = list(itertools.product(alphabet, alphabet))
    more = ((letter, "".join(pair)) for letter in "etaoin" for pair in pairs)
    merges = [*pairs, *more][: size - len(alphabet)]
    pieces = dict.fromkeys([*alphabet, *map("".join, merges)])
    assert len(pieces) == size
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": size + i, "content": content, **flags, "special": content in SPECIAL}
        for i, content in enumerate(SPECIAL + PLAIN)
    ]
    document = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
        "post_processor": level,
        "decoder": level,
        "model": {
            "type": "BPE",
            "vocab": {piece: i for i, piece in enumerate(pieces)},
            "merges": [" ".join(pair) for pair in merges],
        },
    }
    config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {token["id"]: {k: v for k, v in token.items() if k != "id"} for token in added},
        "additional_special_tokens": [START, TURN],
        "bos_token": None,
        "chat_template": "{{ messages }}",
        "clean_up_tokenization_spaces": False,
        "eos_token": TURN,
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": END,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    return document, config


def that_begins(document: dict[str, Any], token: str) -> dict[str, Any]:
    """A `tokenizer.json` by which every prompt begins with an added token, as Llama 3's has it."""
    [number] = [added["id"] for added in document["added_tokens"] if added["content"] == token]
    piece = {"Sequence": {"id": "A", "type_id": 0}}
    begins = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": token, "type_id": 0}}, piece],
        "pair": [piece],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }
    return {**document, "post_processor": begins}


def save_qwen(folder: Path, size: int = SIZE) -> Path:
    """The files in `folder`."""
    document, config = qwen(size)
    (folder / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [size + 2, size]}), "utf-8")
    return folder
