"""Conversations in a template of their own, and a small model that is tuned on them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from nanogpt_jax.core.config import Settings
from nanogpt_jax.data.chat import Message, template_from_json
from nanogpt_jax.data.tasks import prepare_examples
from nanogpt_jax.run import loop

KNOWN = {
    "red?": "apple", "sky?": "blue", "abc?": "abcdefghijklmnopqrstuvwxyz", "one?": "two", "moo?": "cow",
    "who?": "he\nshe",
}  # fmt: skip
BRACKETS = template_from_json(
    {
        "system": {"before": "(", "after": ")"},
        "user": {"before": "<", "after": ">"},
        "assistant": {"before": "[", "after": "]"},
    },
    "brackets",
)


def messages(asked: Iterable[str], system: str | None = None) -> list[Message]:
    """A conversation in which questions of `KNOWN` are answered."""
    first = [] if system is None else [{"role": "system", "content": system}]
    for question in asked:
        first += [{"role": "user", "content": question}, {"role": "assistant", "content": KNOWN[question]}]
    return first


def write_chats(path: Path, chats: Iterable[Sequence[Message]]) -> Path:
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats), encoding="utf-8")
    return path


def tune(folder: Path) -> Path:
    """Train a model of characters on questions of `KNOWN`, up to two in a conversation; its folder."""
    pairs = [*itertools.product(KNOWN, repeat=2), *((question,) for question in KNOWN)]
    chats = [messages(pair, system) for pair in pairs for system in (None, "hey")]
    path = write_chats(folder / "chats.jsonl", chats * 4)
    prepare_examples([path], folder / "data" / "chats", "chat", template=BRACKETS, block_size=80)
    settings = Settings(
        dataset="chats", data_dir=str(folder / "data"), out_dir=str(folder / "tuned"), n_layer=2, n_head=2, n_embd=32,
        block_size=80, batch_size=8, gradient_accumulation_steps=1, position="rope", learning_rate=1e-2,
        max_iters=300, lr_decay_iters=300, warmup_iters=20, min_lr=1e-3, eval_interval=300, eval_iters=2,
        log_interval=100, accelerator="cpu",
    )  # fmt: skip
    loop.train(settings)
    return folder / "tuned"
