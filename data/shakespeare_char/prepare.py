"""Tiny Shakespeare by characters, written beside this file.

The work is done in `nanogpt_jax.cli.prepare`.
"""

from __future__ import annotations

from pathlib import Path

from nanogpt_jax.data import process

if __name__ == "__main__":
    process.begin()  # before anything slow is imported

    from nanogpt_jax.cli import entry, prepare

    data_dir = Path(__file__).parent.parent
    raise SystemExit(entry.run(lambda argv: prepare.main_known("shakespeare_char", argv, data_dir)))
