"""`python -m nanogpt_jax.lens`."""

from nanogpt_jax.cli import entry
from nanogpt_jax.lens.command import main

if __name__ == "__main__":
    raise SystemExit(entry.run(main))
