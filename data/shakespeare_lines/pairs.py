"""A task out of Tiny Shakespeare: its lines without capitals and stops, each with the line as it was.

`train.jsonl` is of the text's first nine tenths, which models here are trained on, `test.jsonl` of the last one.
"""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).parent


def pairs(text: str) -> list[dict[str, str]]:
    """A prompt and a completion of each line of verse or prose that is neither very short nor long."""
    lines = [line for line in text.split("\n") if 15 <= len(line) <= 60 and not line.endswith(":")]
    bare = ("".join(c for c in line.lower() if c.isalpha() or c == " ") for line in lines)
    return [{"prompt": f"{prompt} -- ", "completion": line} for prompt, line in zip(bare, lines, strict=True)]


def write(text: str) -> None:
    """Both files, beside this one."""
    cut = int(0.9 * len(text))
    for name, part in (("train", text[:cut]), ("test", text[cut:])):
        with open(HERE / f"{name}.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(pair) + "\n" for pair in pairs(part))


if __name__ == "__main__":
    write((HERE.parent / "shakespeare_char" / "input.txt").read_text(encoding="utf-8"))
