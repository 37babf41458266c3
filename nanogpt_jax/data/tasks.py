"""Examples of a task to data sets: prompts with completions, or conversations, out of JSON lines.

Beside the tokens lie marks, one byte for each: whether it is learnt, and whether an example begins there. An example
is never cut in two: it must fit into the block that it is trained in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nanogpt_jax.core.errors import UserError, in_short
from nanogpt_jax.core.limits import require_at_least, require_choice
from nanogpt_jax.data.chat import ASSISTANT, END, TEMPLATES, Span, Template
from nanogpt_jax.data.encode import ExampleRules, Part, encode, require_tokenizer
from nanogpt_jax.data.pieces import Split
from nanogpt_jax.data.prepare import Summary, in_both_splits, is_validation, require_fraction
from nanogpt_jax.data.sources import json_of_line, plain_os_errors, progress, require_regular_files
from nanogpt_jax.data.tokenizer import TokenIds, Tokenizer, shown

FORMATS = ("pairs", "chat")
TOO_LONG = ("refuse", "cut")


class Examples:
    """The examples in JSON lines of one of `FORMATS`, as spans; can be gone through again and again."""

    def __init__(self, paths: Sequence[Path], form: str, template: Template) -> None:
        """Raises `UserError` for what is not a file."""
        require_choice("format", form, FORMATS)
        require_regular_files(paths)
        self._paths, self._form, self._template = tuple(paths), form, template

    def __iter__(self) -> Iterator[tuple[str, tuple[Span, ...]]]:
        """Where each stands, and its spans. Raises `UserError` that names the line which is none."""
        spans_of = _pair if self._form == "pairs" else self._chat
        for path in self._paths:
            with open(path, "rb") as file:
                for number, line in enumerate(file, start=1):
                    where = f"{path} line {number:,}"
                    if line.strip():
                        yield where, tuple(spans_of(_parsed(line, number, where), where))

    def _chat(self, document: dict[str, Any], where: str) -> Iterator[Span]:
        messages = document.get("messages")
        roles = self._template.roles
        if not isinstance(messages, list) or not messages:
            raise UserError(f"{where} has messages {shown(messages)} where a list of them belongs; mend it")
        for message in messages:
            of = message if isinstance(message, dict) else {}
            if of.get("role") not in roles or not isinstance(of.get("content"), str):
                raise UserError(
                    f"{where} has the message {shown(message)} where a role of {', '.join(roles)} and a string content "
                    "belong; mend it"
                )
        if not any(message["role"] == ASSISTANT and message["content"] for message in messages):
            raise UserError(f"{where} has nothing that the assistant says, and so nothing to learn; mend it")
        yield from self._template.spans(messages)
        if not roles[messages[-1]["role"]].ends:
            yield END._replace(learnt=False)


def _pair(document: dict[str, Any], where: str) -> Iterator[Span]:
    for name in ("prompt", "completion"):
        if not isinstance(document.get(name), str):
            raise UserError(f"{where} has {name} {shown(document.get(name))} where a string belongs; mend it")
    if not document["completion"]:
        raise UserError(f"{where} has an empty completion, and so nothing to learn; mend it")
    yield Span(document["prompt"])
    yield Span(document["completion"], learnt=True)
    yield END


def _parsed(line: bytes, number: int, where: str) -> dict[str, Any]:
    try:
        document = json_of_line(line, number)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({in_short(error)}); mend it") from None
    if not isinstance(document, dict):
        raise UserError(f"{where} holds {shown(document)} where a JSON object belongs; mend it")
    return document


@plain_os_errors("preparing examples")
def prepare_examples(
    sources: Sequence[Path],
    folder: Path,
    form: str,
    tokenizer: str | Tokenizer = "char",
    val_fraction: float = 0.1,
    seed: int = 2357,
    *,
    template: Template = TEMPLATES["plain"],
    block_size: int = 1024,
    too_long: str = "refuse",
    unknown: str = "refuse",
    shard_tokens: int | None = None,
) -> Summary:
    """Make `folder` a data set of examples, each on a line of JSON: of `form` ``pairs`` or ``chat``.

    A pair is ``{"prompt": ..., "completion": ...}``, of which the completion is learnt, and the end-of-text token
    after it; a chat is ``{"messages": [{"role": ..., "content": ...}, ...]}``, put into words by `template`, of which
    what the assistant says is learnt. Each span is encoded by itself, as a prompt is that is sampled from. Where the
    vocabulary has no end-of-text token, a line end stands for it.

    An example has at most `block_size` + 1 tokens. A longer one is refused or, with `too_long` ``cut``, loses the
    beginning of its prompt; one whose learnt tokens alone are too many is refused in any case. Whether an example is
    for validation depends on `seed` and its number alone. `tokenizer` and `unknown` are as in `prepare_text`. Raises
    `UserError` that names a line which is no example.
    """
    require_tokenizer(tokenizer)
    require_fraction(val_fraction)
    require_choice("too_long", too_long, TOO_LONG)
    require_at_least("block_size", block_size, 2)
    names = ", ".join(map(str, sources))
    examples, moved = in_both_splits(Examples(sources, form, template), seed, val_fraction, "examples")
    count = 0

    def parts(label: str, cut: Callable[[str], int]) -> Iterator[Part]:
        nonlocal count
        count = 0
        with progress(f"{label} examples", None) as advance:
            for index, (where, spans) in enumerate(examples):
                split: Split = "val" if is_validation(seed, index, val_fraction) != (index == moved) else "train"
                yield Part(
                    split, "".join(span.text for span in spans if not span.ends), ends=True, name=where, spans=spans
                )
                count = index + 1
                advance(1)

    too_long_ones: set[str] = set()

    def fitted(ids: TokenIds, learnt: np.ndarray, where: str) -> tuple[TokenIds, np.ndarray]:
        over = len(ids) - (block_size + 1)
        if over <= 0:
            return ids, learnt
        too_long_ones.add(where)
        _require_cuttable(learnt, over, where, block_size, too_long)
        return ids[over:], learnt[over:]

    told = template.to_json() if form == "chat" else None
    made = encode(parts, folder, tokenizer, unknown, shard_tokens, what=names, examples=ExampleRules(fitted, told))
    remarks = list(made.remarks)
    if too_long_ones:
        remarks.append(f"cut {len(too_long_ones):,} prompts at their left, to fit block_size={block_size}")
    return Summary(folder, "examples", count, made.meta, tuple(remarks))


def _require_cuttable(learnt: np.ndarray, over: int, where: str, block_size: int, too_long: str) -> None:
    """Refuse an example that is `over` tokens too long, where it may not be cut or would lose what is learnt last."""
    tokens = len(learnt)
    if too_long == "refuse":
        raise UserError(
            f"{where} is an example of {tokens:,} tokens, and block_size={block_size} has room for {block_size + 1:,}; "
            "raise it with --block_size=N, or cut prompts at their left with --too_long=cut"
        )
    last = int(np.flatnonzero(learnt)[-1])
    first = last - int(np.argmin(learnt[last::-1])) + 1 if not learnt[: last + 1].all() else 0
    if over >= first:  # something must be left to begin with
        raise UserError(
            f"{where} has {tokens - first:,} tokens from what is learnt last on, and block_size={block_size} has room "
            f"for {block_size:,} after one of the prompt; raise it with --block_size=N"
        )
