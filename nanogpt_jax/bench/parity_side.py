"""The comparison with PyTorch as a side of the benchmark: in a process of its own, which can be given up."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from typing import Any

from nanogpt_jax.compare.comparison import compared
from nanogpt_jax.data.files import temporary_folder


class Parity:
    """`compare` of the spec's settings `base`, changed by `explicit`, with `reference` over so many `steps`."""

    first = "parity"

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._spec = spec
        self._facts: dict[str, Any] = {}

    def run(self, case: str, times: int) -> None:
        """As `Side.run`: the comparison."""
        spec, told = self._spec, io.StringIO()
        with temporary_folder() as folder, contextlib.redirect_stdout(told):
            path = folder / "parity.json"
            compared(spec["base"], spec["explicit"], spec["reference"], spec["steps"], json=path)
            self._facts = json.loads(path.read_text(encoding="utf-8")) | {"told": told.getvalue()}

    def facts(self) -> dict[str, Any]:
        """As `Side.facts`: what `compare --json` writes, and what it prints as ``told``."""
        return self._facts

    def peak_memory(self) -> int | None:
        """As `Side.peak_memory`."""
        return None
