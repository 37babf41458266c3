"""Your own text as a data set: python data/prepare.py FILE... (--help tells the rest).

The work is done in `nanogpt_jax.prepare`.
"""

from __future__ import annotations

from pathlib import Path

from nanogpt_jax import cli, prepare

if __name__ == "__main__":
    raise SystemExit(cli.run(lambda argv: prepare.main(argv, Path(__file__).parent)))
