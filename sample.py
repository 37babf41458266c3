"""Draw text from a trained model: python sample.py [--out_dir=DIR] [--start=TEXT] [--name=value ...]; see --help."""

from nanogpt_jax.data import process

if __name__ == "__main__":
    process.begin()  # before anything slow is imported

    from nanogpt_jax.cli import entry, sample

    raise SystemExit(entry.run(sample.main))
