"""`python -m nanogpt_jax.convert SRC DST`: a model, and its training, from one program's files to another's."""

from __future__ import annotations

from collections.abc import Sequence

from nanogpt_jax.cli import entry
from nanogpt_jax.cli.flags import Parser
from nanogpt_jax.core.config import WHICH
from nanogpt_jax.core.limits import require_choice

_FOLDERS = ("run", "hf", "peft")  # that DST may be

_DESCRIPTION = """\
Convert a model between a run's folder, a nanoGPT ckpt.pt and a Hugging Face folder of a GPT-2, Llama or Qwen3; and what
LoRA trained, between a run's folder and an adapter of PEFT's.
Weights stay as they are to the bit; between runs and nanoGPT, AdamW's moments and the place in training go along.

  {convert} nanoGPT/out/ckpt.pt out-x   go on: {train} --init_from=resume --out_dir=out-x
  {convert} out-x nanoGPT/out/ckpt.pt   go on there: python train.py --init_from=resume
  {convert} out-x out-hf                load: AutoModelForCausalLM.from_pretrained("out-hf")
  {convert} gpt2 out-x                  GPT-2 by its name, or a folder that holds it
  {convert} out-x out-peft --to=peft    load: PeftModel.from_pretrained(base, "out-peft")
  {convert} out-peft out-x              a run that holds the adapter and names its base

A DST that ends in .pt is for nanoGPT; any other is a folder, as --to says. Of a run, the newest checkpoint becomes a
ckpt.pt, and the best one a Hugging Face or PEFT folder, unless --which says otherwise. The tokenizer goes along:
AutoTokenizer loads it from such a folder. What LoRA trained is merged into its base, but from an adapter to a run and
back: there it stays two thin matrices beside each, and the base is named.
nanoGPT looks for the characters of a data set in data/DATASET/meta.pkl, which its own prepare.py writes: its ids are
ours, since both sort the characters."""


def main(argv: Sequence[str]) -> int:
    """`python -m nanogpt_jax.convert`: parse, read, check, write."""
    parser = Parser("convert", "SRC DST [--name=value ...]", _DESCRIPTION)
    parser.add_argument(
        "src", metavar="SRC", help="a run's folder, a nanoGPT ckpt.pt, a Hugging Face or PEFT folder, or gpt2..."
    )
    parser.add_argument("dst", metavar="DST", help="what to write: a file that ends in .pt, or a folder")
    parser.add_argument(
        "--to", metavar=f"{{{','.join(_FOLDERS)}}}", help="what a DST folder is to be (hf for a run, else run)"
    )
    parser.add_argument(
        "--which", metavar=f"{{{','.join(WHICH)}}}", help="checkpoint of a run (last for a ckpt.pt or a run, else best)"
    )
    parser.add_argument("--tokenizer", metavar="PATH", help="meta.json of the data set that the model was trained on")
    parser.add_argument("--data_dir", metavar="DIR", default="data", help="folder that holds the data sets (data)")
    parser.add_argument("--overwrite", action="store_true", help="replace DST if it exists")
    given = parser.parse(argv)
    for name, choices in (("to", _FOLDERS), ("which", WHICH)):
        if name in given:
            require_choice(name, given[name], choices)

    # Slow to import, so not before the arguments are known good.
    from nanogpt_jax.run.conversion import convert

    convert(**given)
    return entry.OK


if __name__ == "__main__":
    raise SystemExit(entry.run(main))
