"""Train a GPT: python train.py [PRESET | FILE.toml] [--name=value ...]; --help lists the settings."""

from nanogpt_jax import cli

if __name__ == "__main__":
    raise SystemExit(cli.run(cli.train))
