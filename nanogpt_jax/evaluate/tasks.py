"""Files to items: texts, HellaSwag's and LAMBADA's own JSON lines, and pairs of prompt and completion."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from nanogpt_jax.core.errors import UserError, in_short
from nanogpt_jax.data.files import refusals
from nanogpt_jax.data.sources import CHUNK, json_of_line, read_text


@dataclass(frozen=True)
class Choice:
    """A context, endings of which one is right, and where in its file it stands, counted from 1."""

    line: int
    context: str
    endings: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Completion:
    """A prompt, what is to follow it, and where in its file it stands, counted from 1."""

    line: int
    prompt: str
    completion: str


@dataclass(frozen=True)
class Text:
    """A file that is read from end to end."""

    path: Path
    text: str


@dataclass(frozen=True)
class Choices:
    """The items of a file as HellaSwag's."""

    path: Path
    items: Sequence[Choice]


@dataclass(frozen=True)
class LastWords:
    """The items of a file as LAMBADA's: the completion is the last word and the space before it."""

    path: Path
    items: Sequence[Completion]


@dataclass(frozen=True)
class Pairs:
    """The items of a file of prompts and completions."""

    path: Path
    items: Sequence[Completion]


Task = Text | Choices | LastWords | Pairs
_Item = TypeVar("_Item", Choice, Completion)


def read_task(kind: str, path: Path, limit: int | None) -> Task:
    """The file as a task of that kind: text, hellaswag, lambada or pairs. Raises `UserError` where it is none."""
    if kind == "text":
        return text_task(path)
    read: dict[str, Callable[[Path, int | None], Task]] = {
        "hellaswag": hellaswag_task, "lambada": lambada_task, "pairs": pairs_task,
    }  # fmt: skip
    return read[kind](path, limit)


def text_task(path: Path) -> Text:
    """A UTF-8 text file, read as `prepare` reads it: line ends as they are, and no byte order mark.

    Raises `UserError` where it cannot be read, is not UTF-8, or is empty.
    """
    with refusals(path, "read"):
        text = "".join(read_text([path], CHUNK, str(path)))
    if not text:
        raise UserError(f"{path} has no text (0 characters); give a file with text in it")
    return Text(path, text)


def hellaswag_task(path: Path, limit: int | None = None) -> Choices:
    """The first `limit` items of HellaSwag's JSON lines: `ctx`, `endings` and `label`; other keys are left alone."""

    def item(line: int, document: dict[str, Any]) -> Choice:
        endings, label = document["endings"], document["label"]
        if not isinstance(endings, list) or len(endings) < 2:
            raise ValueError("endings are no list of two and more")
        if isinstance(label, str):  # as copies of HellaSwag have it
            label = int(label)
        if type(label) is not int or not 0 <= label < len(endings):
            raise ValueError(f"label is none of 0 to {len(endings) - 1}")
        return Choice(line, _string(document, "ctx"), tuple(map(_required_text, endings)), label)

    return Choices(path, _items(path, "a string ctx, a list of strings endings and a number label", item, limit))


def lambada_task(path: Path, limit: int | None = None) -> LastWords:
    """The first `limit` items of LAMBADA's JSON lines: `text`, whose last word is what follows its last space."""

    def item(line: int, document: dict[str, Any]) -> Completion:
        context, space, word = _string(document, "text").rpartition(" ")
        if not context or not word:
            raise ValueError("text has no word after a space at its end")
        return Completion(line, context, space + word)

    return LastWords(path, _items(path, "a string text of two words and more", item, limit))


def pairs_task(path: Path, limit: int | None = None) -> Pairs:
    """The first `limit` items of JSON lines with `prompt` and `completion`."""

    def item(line: int, document: dict[str, Any]) -> Completion:
        return Completion(line, _string(document, "prompt"), _string(document, "completion"))

    return Pairs(path, _items(path, "the strings prompt and completion", item, limit))


def _items(path: Path, form: str, item: Callable[[int, dict[str, Any]], _Item], limit: int | None) -> Sequence[_Item]:
    """The items of the lines of a file, empty ones left out. Raises `UserError` that names the first bad line."""
    found: list[_Item] = []
    with refusals(path, "read"), open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if len(found) == limit:
                break
            if not line.strip():
                continue
            try:
                document = json_of_line(line, number)
                if not isinstance(document, dict):
                    raise ValueError(f"it is a {type(document).__name__}")
                found.append(item(number, document))
            except (KeyError, ValueError, RecursionError) as error:
                why = f"{error} is missing" if isinstance(error, KeyError) else in_short(error)
                raise UserError(f"{path} line {number:,} is not a JSON object with {form} ({why}); mend it") from None
    if not found:
        raise UserError(f"{path} has no items (0 lines); give a file of JSON objects, one a line, with {form}")
    return found


def _string(document: dict[str, Any], key: str) -> str:
    value = document[key]
    if not isinstance(value, str):
        raise ValueError(f"{key} is of type {type(value).__name__}")
    return value


def _required_text(ending: Any) -> str:
    if not isinstance(ending, str) or not ending:
        raise ValueError("an ending is no string, or an empty one")
    return ending
