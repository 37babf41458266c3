"""Tiny Shakespeare in GPT-2's tokens, written beside this file.

The work is done in `nanogpt_jax.cli.prepare`.
"""

from __future__ import annotations

from pathlib import Path

from nanogpt_jax.data import process

if __name__ == "__main__":
    process.begin()  # before anything slow is imported

    from nanogpt_jax.cli import entry, prepare

    data_dir = Path(__file__).parent.parent
    raise SystemExit(entry.run(lambda argv: prepare.main_known("shakespeare", argv, data_dir)))
