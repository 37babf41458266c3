"""`python -m nanogpt_jax.compare`."""

from nanogpt_jax.cli import entry
from nanogpt_jax.compare.command import main

if __name__ == "__main__":
    raise SystemExit(entry.run(main))
