"""Draw text from a trained model: python sample.py [--out_dir=DIR] [--start=TEXT] [--name=value ...]; see --help."""

from nanogpt_jax import cli

if __name__ == "__main__":
    raise SystemExit(cli.run(cli.sample))
