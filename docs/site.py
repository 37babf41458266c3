"""What the site makes out of the code: the tables of settings and presets in settings.md, at every build."""

from __future__ import annotations

import dataclasses
from typing import Any

from nanogpt_jax.core.config import Settings
from nanogpt_jax.run.presets import PRESETS


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by MkDocs for each page, before it is rendered."""
    if page.file.src_uri != "settings.md":
        return markdown
    return markdown.replace("[[settings]]", _settings()).replace("[[presets]]", _presets())


def _settings() -> str:
    """A table for each group, in the order of `--help`."""
    groups: dict[str, list[str]] = {}
    for field in dataclasses.fields(Settings):
        meaning = field.metadata["help"]
        choices = ", ".join(f"`{choice}`" for choice in field.metadata["choices"])
        meaning = meaning[0].upper() + meaning[1:] + (f". One of {choices}." if choices else ".")
        name = field.name.replace("_", "_<wbr>")  # a narrow screen breaks a name there
        row = f"| <code>{name}</code> | {_shown(field.default)} | {meaning.replace('|', chr(92) + '|')} |"
        groups.setdefault(field.metadata["group"], []).append(row)
    head = "| setting | default | meaning |\n|---|---|---|\n"
    return "\n\n".join(f"## {name.capitalize()}\n\n{head}" + "\n".join(rows) for name, rows in groups.items())


def _presets() -> str:
    """What each preset changes of the defaults."""
    rows = [
        f"| `{name}` | " + ", ".join(f"`{key}={value}`" for key, value in changes.items()) + " |"
        for name, changes in PRESETS.items()
    ]
    return "| preset | sets |\n|---|---|\n" + "\n".join(rows)


def _shown(default: Any) -> str:
    if default is None:
        return "none"
    return f"`{default}`" if default != "" else "empty"
