"""How a conversation becomes text: what stands before and after each message, as data that is never executed.

A `Template` is read from a JSON object, by role: ``{"user": {"before": "User: ", "after": "\\n"}, ...}``. What the
assistant says is learnt, and what ends its turn with it: its ``after``, or the end-of-text token if it ``ends``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nanogpt_jax.core.errors import UserError, in_short
from nanogpt_jax.data.tokenizer import TokenIds, Tokenizer, shown, token_type

ASSISTANT = "assistant"
ROLES = ("system", "user", ASSISTANT)


class Span(NamedTuple):
    """A piece of text: whether it is learnt, and whether it is a template's own, in which special tokens are meant.

    Where it `ends` a text, it is the end-of-text token, or its own text where the vocabulary has no such token.
    """

    text: str
    learnt: bool = False
    markup: bool = False
    ends: bool = False


END = Span("\n", learnt=True, ends=True)


@dataclass(frozen=True)
class Around:
    """What stands around a message of one role; `ends`: the end-of-text token stands after that."""

    before: str
    after: str
    ends: bool = False


Message = Mapping[str, str]
"""``{"role": ..., "content": ...}``."""


@dataclass(frozen=True)
class Template:
    """What stands around the messages of each role."""

    roles: Mapping[str, Around]

    def to_json(self) -> dict[str, Any]:
        """The document from which `template_from_json` makes an equal one."""
        return {role: asdict(around) for role, around in self.roles.items()}

    def spans(self, messages: Iterable[Message]) -> Iterator[Span]:
        """The text of a conversation so far."""
        for message in messages:
            role = message["role"]
            yield from self.before(role)
            yield Span(message["content"], role == ASSISTANT)
            yield from self.after(role)

    def before(self, role: str) -> Iterator[Span]:
        """What stands before a message of that role."""
        yield Span(self.roles[role].before, markup=True)

    def after(self, role: str) -> Iterator[Span]:
        """What stands after it."""
        around, learnt = self.roles[role], role == ASSISTANT
        if around.after:
            yield Span(around.after, learnt, markup=True)
        if around.ends:
            yield END._replace(learnt=learnt)

    def stop(self, tokenizer: Tokenizer) -> int:
        """The token that ends what the assistant says."""
        return int(encoded(self.after(ASSISTANT), tokenizer)[0][0])


TEMPLATES = {
    "plain": Template(
        {
            "system": Around("System: ", "\n"),
            "user": Around("User: ", "\n"),
            ASSISTANT: Around("Assistant: ", "", ends=True),
        }
    ),
    "chatml": Template({role: Around(f"<|im_start|>{role}\n", "<|im_end|>\n") for role in ROLES}),
}
"""Templates by their names; ChatML is what SmolLM2's and Qwen's own chat models were made with."""


def named_template(which: str) -> Template:
    """One of `TEMPLATES`, or that of a JSON file. Raises `UserError` if it is neither."""
    if which in TEMPLATES:
        return TEMPLATES[which]
    try:
        document = json.loads(Path(which).read_bytes().decode())
    except OSError as error:
        raise UserError(
            f"template={which} is none of {', '.join(TEMPLATES)}, and no file that can be read ({error.strerror}); "
            "name one"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"template={which} is not JSON ({in_short(error)}); mend it") from None
    return template_from_json(document, which)


def template_from_json(document: Any, where: str) -> Template:
    """The template of a JSON object; `UserError` that begins with `where` if it is none."""

    def refuse(what: str) -> UserError:
        return UserError(
            f'{where} {what}; give {{"user": {{"before": TEXT, "after": TEXT}}, "assistant": ...}}, "ends" beside them '
            "where the end-of-text token follows"
        )

    if not isinstance(document, dict) or not {"user", ASSISTANT} <= document.keys() <= {*ROLES}:
        raise refuse(f"has {shown(document)} where the roles user and assistant belong, or system beside them")
    roles = {}
    for role, around in document.items():
        if not isinstance(around, dict) or not {"before", "after"} <= around.keys() <= {"before", "after", "ends"}:
            raise refuse(f"has {shown(around)} for {role}")
        before, after, ends = around["before"], around["after"], around.get("ends", False)
        if not (isinstance(before, str) and isinstance(after, str) and isinstance(ends, bool)):
            raise refuse(f"has {shown(around)} for {role}")
        roles[role] = Around(before, after, ends)
    if not (roles[ASSISTANT].after or roles[ASSISTANT].ends):
        raise refuse("has nothing that ends what the assistant says")
    return Template(roles)


def beginning(tokenizer: Tokenizer) -> TokenIds:
    """The tokens (N,) that every prompt begins with: Llama's `<|begin_of_text|>`; none for most."""
    return tokenizer.encode("")


def encoded(
    spans: Iterable[Span], tokenizer: Tokenizer, *, from_the_beginning: bool = False
) -> tuple[TokenIds, np.ndarray]:
    """The tokens (N,) of spans, each encoded by itself, and which of them are learnt, booleans (N,).

    Where they stand at the beginning of a text, what every prompt begins with comes first.
    """
    begins = beginning(tokenizer)
    ids: list[Sequence[int] | TokenIds] = [begins] if from_the_beginning else []
    learnt: list[np.ndarray] = [np.zeros(len(part), bool) for part in ids]
    for span in spans:
        if span.ends:
            end = tokenizer.eot_token
            new = tokenizer.encode_ordinary(span.text) if end is None else np.array([end])
        else:
            new = tokenizer.encode(span.text)[len(begins) :] if span.markup else tokenizer.encode_ordinary(span.text)
        ids.append(new)
        learnt.append(np.full(len(new), span.learnt))
    dtype = token_type(tokenizer.vocab_size)
    if not ids:
        return np.zeros(0, dtype), np.zeros(0, bool)
    return np.concatenate(ids).astype(dtype), np.concatenate(learnt)
