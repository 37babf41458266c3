"""A conversation with a model on the terminal, or through a pipe: what `sample.py --chat` does."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from nanogpt_jax.cli.streaming import Stream, Writer
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data.chat import (
    ASSISTANT,
    TEMPLATES,
    Message,
    Template,
    encoded,
    named_template,
    template_from_json,
)
from nanogpt_jax.data.process import undone_by_signals
from nanogpt_jax.data.tokenizer import TokenIds, Tokenizer
from nanogpt_jax.data.unknown import rescued
from nanogpt_jax.run.faults import signals

_PROMPT = "> "
_CHATML = ("<|im_start|>", "<|im_end|>")


def template_for(which: str | None, tuned_with: Mapping[str, Any] | None, tokenizer: Tokenizer) -> Template:
    """The template that `which` names, or else the one that a model was `tuned_with`, or else the tokenizer's own.

    Raises `UserError` where there is none.
    """
    if which is not None:
        return named_template(which)
    if tuned_with is not None:
        return template_from_json(tuned_with, "the template of the run")
    if all(_is_special(token, tokenizer) for token in _CHATML):
        print(f"template: chatml, since the vocabulary has {' and '.join(_CHATML)}", file=sys.stderr, flush=True)
        return TEMPLATES["chatml"]
    raise UserError(
        "the model was not tuned on chats, and does not say what stands around messages; name that with "
        "--template=plain, chatml or a JSON file"
    )


def _is_special(token: str, tokenizer: Tokenizer) -> bool:
    """Whether a prompt has one token for it, and a document, to which it is text like any other, has not."""
    with contextlib.suppress(UserError):  # a vocabulary of characters may lack some of it
        return len(tokenizer.encode(token)) == 1 < len(tokenizer.encode_ordinary(token))
    return False


def first_message(template: Template, system: str | None) -> list[Message]:
    """What a conversation begins with: the message of role system, if there is one.

    Raises `UserError` where the template has no such role.
    """
    if system is None:
        return []
    if "system" not in template.roles:
        raise UserError(f"system={system} is a message of a role that the template lacks; leave it out")
    return [{"role": "system", "content": system}]


class History:
    """What has been said, as the tokens that training would have seen; as much of it as the block has room for."""

    def __init__(
        self,
        template: Template,
        tokenizer: Tokenizer,
        block_size: int,
        max_new_tokens: int,
        first: list[Message],
    ) -> None:
        """`first` are the messages that are never dropped. An answer has `max_new_tokens`, or what the block leaves."""
        self._template, self._tokenizer = template, tokenizer
        self._block_size, self._max_new_tokens = block_size, max_new_tokens
        self._reserved = min(max_new_tokens, block_size // 2)
        self._first, _ = encoded(template.spans(first), tokenizer, from_the_beginning=True)
        self._exchanges: list[TokenIds] = []
        self._asked = self._first[:0]
        self.dropped = 0  # exchanges

    def ask(self, message: str) -> tuple[TokenIds, int]:
        """The prompt (P,) that a user's message makes, up to where the answer begins, and how long that may be.

        The oldest exchanges are dropped whole where there is no room for all. Raises `UserError`, and changes nothing,
        for a message that does not fit by itself.
        """
        spans = [*self._template.spans([{"role": "user", "content": message}]), *self._template.before(ASSISTANT)]
        asked, _ = encoded(spans, self._tokenizer)
        room = self._block_size - self._reserved - len(self._first)
        if len(asked) > room:
            raise UserError(
                f"the message takes {len(asked):,} tokens, and block_size={self._block_size} has room for "
                f"{max(room, 0):,} beside {self._reserved:,} of an answer"
                f"{' and what comes first' if len(self._first) else ''}; shorten it"
            )
        while sum(map(len, self._exchanges)) + len(asked) > room:
            del self._exchanges[0]
            self.dropped += 1
        self._asked = asked
        prompt = np.concatenate([self._first, *self._exchanges, asked])
        return prompt, min(self._max_new_tokens, self._block_size - len(prompt))

    def answered(self, text: np.ndarray) -> None:
        """Take in the tokens (N,) of the answer as they were drawn, without what ended it."""
        after, _ = encoded(self._template.after(ASSISTANT), self._tokenizer)
        self._exchanges.append(np.concatenate([self._asked, text.astype(self._asked.dtype), after]))


def converse(stream: Stream, history: History, unknown: str) -> None:
    """Answer every line of standard input until it ends; answers are printed as they are made.

    On a terminal Ctrl-C ends an answer, and a message that cannot be answered nothing; elsewhere such a one raises
    `UserError`. `unknown` says what becomes of characters that the vocabulary lacks.
    """
    on_terminal = sys.stdin.isatty()
    turn = 0
    for message in _messages(on_terminal):
        before = history.dropped
        try:
            prompt, room = history.ask(rescued(message, stream.tokenizer, unknown))
        except UserError as error:
            if not on_terminal:
                raise
            print(f"error: {error}", file=sys.stderr, flush=True)
            continue
        if history.dropped and not before:
            print("from here on the oldest messages are dropped, to stay in the block", file=sys.stderr, flush=True)
        history.answered(_answer(stream, prompt, turn, room, on_terminal))
        turn += 1


def _answer(stream: Stream, prompt: TokenIds, turn: int, max_new_tokens: int, may_end: bool) -> np.ndarray:
    """The tokens (N,) of an answer, drawn under the key of its turn, once they are printed.

    A SIGINT ends it, if it `may_end` so, and a second one the process.
    """
    received: list[int] = []
    text = np.zeros(0, np.int32)
    write = Writer(stream.tokenizer)
    with signals(received, (signal.SIGINT,) if may_end else ()):
        for [text] in stream.texts(prompt, [turn], max_new_tokens):
            write(text)
            if received:
                break
        write.end("\n")
    return text


def _messages(on_terminal: bool) -> Iterator[str]:
    """The lines of standard input that are not empty."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # what is not UTF-8 is refused like any unknown character
    if on_terminal:
        _edit_lines()
    for line in iter(_typed, None) if on_terminal else sys.stdin:
        if line.strip():
            yield line.removesuffix("\n").removesuffix("\r")


def _edit_lines() -> None:
    """Let `input` edit lines, and know those before, where Python has what that takes."""
    with contextlib.suppress(ImportError):
        import readline

        readline.parse_and_bind("set enable-bracketed-paste off")  # a mode that a signal would leave the terminal in


def _typed() -> str | None:
    """A line from the terminal; None at its end."""
    shown = sys.stdout.isatty()
    with _terminal_restored("\n" if shown else ""):
        try:
            return input(_PROMPT if shown else "")
        except EOFError:
            print(end="\n" if shown else "")
            return None


@contextlib.contextmanager
def _terminal_restored(after: str) -> Iterator[None]:
    """Let a signal that ends the process give the terminal back as it is now, and print `after`."""
    try:
        import termios
    except ImportError:  # not everywhere
        yield
        return
    found = termios.tcgetattr(sys.stdin)

    def restore() -> None:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, found)
        print(end=after, flush=True)

    with undone_by_signals(restore):
        yield
