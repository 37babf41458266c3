"""OpenWebText, or documents of your own, in GPT-2's tokens, written beside this file.

The work is done in `nanogpt_jax.prepare_cli`.
"""

from __future__ import annotations

from pathlib import Path

from nanogpt_jax import cli, prepare_cli

if __name__ == "__main__":
    raise SystemExit(cli.run(lambda argv: prepare_cli.main_openwebtext(argv, Path(__file__).parent.parent)))
