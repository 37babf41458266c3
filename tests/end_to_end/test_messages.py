"""Every message that ends a program names a thing and its mend, and the commands in it are made by `commands`.

The texts are taken from the source, so that one which no other test triggers is looked at too; `test_paths.py` runs the
commands.
"""

import ast
import re
from pathlib import Path

import nanogpt_jax
from nanogpt_jax.data import files

PACKAGE = Path(nanogpt_jax.__file__).parent

# What a mend begins with. A message whose mend begins with another word is welcome: add the word.
MEND = re.compile(
    r"\b(add|allow|ask|attach|begin|check|choose|close|convert|copy|decode|drop|fetch|free|get|give|go|install|keep|leave|log|"
    r"lower|make|makes|map|mend|merge|move|name|need|needs|prepare|put|raise|rename|report|run|save|say|see|set|shorten|"
    r"start|take|takes|train|try|use|wait|write|did you mean)\b"
)


def texts_of(node):
    """The parts of a message that stand in the source, in order; what is put in is `{}`."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(texts_of(value) for value in values)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return texts_of(left) + texts_of(right)
        case _:
            return "{}"


def ends():
    """Where `UserError` and `RunFailed` are made, and of what text."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("UserError", "RunFailed") and node.args:
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", texts_of(node.args[0])


# Texts that are put together elsewhere, where they get their mend; and where that is.
PASSED_ON = {
    "{}": "bench_rounds: of another process; encode: with the name of a text before it",
    "{}: {}": "foreign_files.reading: with the name of the file before it",
    "{} ({})": "hosts.join: with gRPC's words after it",
    "{} holds {}": "hf_format: the other forms of weights",
    "{} is not UTF-8 text: byte 0x{} at offset {}; {}": "sources: by the encoding that it is likely in",
    "{} cannot be {} ({}); {}": "files.MENDS",
    "{} cannot be written: it takes {} MB where {} MB are free; {}": "files.MENDS",
    "{}: {}; {}": "files.MENDS",
    "there is no setting {}{}": "errors.did_you_mean, or --help",
    "settings file {}{}: there is no setting {}{}": "the same",
    "iteration {}: val loss {}; {}": "resume.at_a_lower_rate",
    "iteration {}: the parameters or moments are not finite, and are not saved; {}": "the same",
    "{} needs {}, which is not installed; {}": "commands.to_install",
    "its tokenizer is in {}, {}": "tokenizer_files._NOT_READ",
    "its tokenizer is a {} in vocab.json, {}": "the same",
    "{}; nothing of it was saved: {}, or with --nan_policy=skip": "the same",
}


def test_every_message_names_a_mend():
    found = dict(ends())
    assert len(found) > 100 and not any("\n" in text for text in found.values())
    lacking = {}
    for where, text in found.items():
        first, mark, rest = text.partition(";")
        if text not in PASSED_ON and not MEND.search(rest if mark else first):
            lacking[where] = text
    assert lacking == {}
    assert set(PASSED_ON) <= set(found.values())


def test_every_message_names_a_thing_or_what_was_asked_for():
    """A text without anything put in names what it is about by itself."""
    bare = [text for _, text in ends() if "{}" not in text]
    assert all(len(text.split()) >= 8 for text in bare)


def test_mends_of_the_system_s_refusals_are_mends():
    assert all(MEND.search(mend) for mend in files.MENDS.values())


def test_commands_in_messages_are_made_where_they_are_quoted():
    """A path put into a command by hand is not quoted: `commands` does that, and its commands are run by the tests."""
    by_hand = re.compile(r"python (-m )?[\w./]+ [^\"\n]*(?<!\{)\{\}|--(out_dir|init_from|data_dir|dataset|adopt)=\{")
    said = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name == "commands.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = texts_of(node) if isinstance(node, ast.JoinedStr) else ""
            if by_hand.search(text) and "\n" not in text:  # several lines are a command's --help
                said.append((path.name, text))
    assert said == []
