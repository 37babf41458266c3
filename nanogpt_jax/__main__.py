"""`nanogpt-jax COMMAND ...`, also as `python -m nanogpt_jax COMMAND ...`: every command under one name."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Sequence

from nanogpt_jax.data import process

COMMANDS = {  # its module, whose `main` takes the arguments; and its line of help
    "prepare": ("cli.prepare", "make a data set of your own text, of Tiny Shakespeare or OpenWebText"),
    "train": ("cli.train", "train a GPT"),
    "sample": ("cli.sample", "draw text from a trained model"),
    "evaluate": ("evaluate.command", "measure models on texts, choices and completions, side by side"),
    "lens": ("lens.command", "write a page that shows what a model computes while it reads a text"),
    "sweep": ("sweep", "train many runs in one program: seeds, or values of any setting"),
    "plot": ("plot", "draw the loss curves of runs"),
    "convert": ("convert", "take a model from nanoGPT's or Hugging Face's files, or to them"),
    "compare": ("compare.command", "compare the numbers with PyTorch's"),
    "bench": ("bench.command", "measure the speed, beside PyTorch's and the machine's limit"),
}


def main() -> int:
    """The process that `nanogpt-jax` starts: its exit status."""
    process.begin()  # before anything slow is imported
    return _run_begun()


def _run_begun() -> int:
    from nanogpt_jax.cli import entry

    return entry.run(run)


def run(argv: Sequence[str]) -> int:
    """The command that the first argument names, with the others as its own. Raises `UserError` if there is none."""
    from nanogpt_jax.core.errors import UserError, did_you_mean

    name, rest = (argv[0], argv[1:]) if argv else (None, [])
    if name in ("-h", "--help"):
        print(_help())
    elif name == "--version":
        print("nanogpt-jax", _version())
    elif name in COMMANDS:
        return importlib.import_module(f"nanogpt_jax.{COMMANDS[name][0]}").main(rest)
    elif name is None:
        raise UserError(f"no command is named; choose one of {', '.join(COMMANDS)}, or see --help")
    else:
        near = did_you_mean(name, COMMANDS)
        raise UserError(f"there is no command {name!r}; choose one of {', '.join(COMMANDS)}{near}")
    return 0


def _help() -> str:
    from nanogpt_jax.data.commands import start_of

    lines = "\n".join(f"  {name:<9} {about}" for name, (_, about) in COMMANDS.items())
    return f"""\
usage: nanogpt-jax COMMAND ...

GPT in JAX and Flax linen. The commands, in the order in which most are needed:

{lines}

Each tells more by --help, as in: {start_of("train")} --help; --version tells this program's."""


def _version() -> str:
    try:
        return importlib.metadata.version("nanogpt-jax")
    except importlib.metadata.PackageNotFoundError:
        return "(a checkout that is not installed)"


if __name__ == "__main__":
    raise SystemExit(_run_begun())  # begun by the package's first lines, as with every `python -m nanogpt_jax...`
