"""Tiny Shakespeare in GPT-2's tokens, written beside this file.

The work is done in `nanogpt_jax.prepare_cli`.
"""

from __future__ import annotations

from pathlib import Path

from nanogpt_jax import process

if __name__ == "__main__":
    process.begin()  # before anything slow is imported

    from nanogpt_jax import cli, prepare_cli

    data_dir = Path(__file__).parent.parent
    raise SystemExit(cli.run(lambda argv: prepare_cli.main_known("shakespeare", argv, data_dir)))
