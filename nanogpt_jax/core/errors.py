"""The errors this project raises on purpose.

Core and shell alike raise `UserError` for what a user can mend: a setting out of range, a file that is missing or
damaged, a prompt outside the vocabulary. `RunFailed` is for what befalls a run under way: a full disk, a loss that is
not a number. The command lines turn them into one plain line and exit status 2 or 1; anything else that escapes is a
defect of ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake the user can mend.

    The message is one line that names the thing, its value, the limit it broke and the mend, for example
    ``n_embd=130 is not a multiple of n_head=4; choose n_embd=128 or n_embd=132``.
    """


class RunFailed(Exception):
    """What ended a run that was well begun, in one line that says how to go on; its last whole checkpoint stays."""


def in_short(error: Exception) -> str:
    """Another library's error as part of one line."""
    return " ".join(str(error).split())[:120] or type(error).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean n_head?`` for `n_heads`: the end of an error's line, or nothing where no known name is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
