"""`python -m nanogpt_jax.bench`."""

from nanogpt_jax.bench.command import main
from nanogpt_jax.cli import entry

if __name__ == "__main__":
    raise SystemExit(entry.run(main))
