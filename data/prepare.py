"""Your own text as a data set: python data/prepare.py FILE... (--help tells the rest).

The work is done in `nanogpt_jax.cli.prepare`.
"""

from __future__ import annotations

from pathlib import Path

from nanogpt_jax.data import process

if __name__ == "__main__":
    process.begin()  # before anything slow is imported

    from nanogpt_jax.cli import entry, prepare

    raise SystemExit(entry.run(lambda argv: prepare.main_texts(argv, Path(__file__).parent)))
