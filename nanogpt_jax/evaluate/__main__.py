"""`python -m nanogpt_jax.evaluate`."""

from nanogpt_jax.cli import entry
from nanogpt_jax.evaluate.command import main

if __name__ == "__main__":
    raise SystemExit(entry.run(main))
