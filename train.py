"""Train a GPT: python train.py [PRESET | FILE.toml] [--name=value ...]; --help lists the settings."""

from nanogpt_jax.data import process

if __name__ == "__main__":
    process.begin()  # before anything slow is imported

    from nanogpt_jax.cli import entry, train

    raise SystemExit(entry.run(train.main))
