"""Your own text as a data set: python data/prepare.py FILE... (--help tells the rest).

The work is done in `nanogpt_jax.prepare_cli`.
"""

from __future__ import annotations

from pathlib import Path

from nanogpt_jax import process

if __name__ == "__main__":
    process.begin()  # before anything slow is imported

    from nanogpt_jax import cli, prepare_cli

    raise SystemExit(cli.run(lambda argv: prepare_cli.main(argv, Path(__file__).parent)))
