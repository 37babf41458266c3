"""The command lines of `data/*.py`: flags in, data sets out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nanogpt_jax.commands import to_train_on
from nanogpt_jax.errors import UserError
from nanogpt_jax.flags import Parser
from nanogpt_jax.prepare import KNOWN, Summary, prepare_documents, prepare_text
from nanogpt_jax.sources import Documents


def main(argv: Sequence[str], data_dir: Path = Path("data")) -> int:
    """`python data/prepare.py FILE...`; 0, or a `UserError` for wrong use."""
    parser = Parser(
        "python data/prepare.py FILE... [--name=value ...]",
        "Make a data set of your own UTF-8 text: train.bin, val.bin and meta.json in DATA_DIR/NAME.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", type=Path, help="text files, taken one after the other")
    parser.add_argument(
        "--tokenizer", metavar="WHICH", default="char", help="char, gpt2, or bpe:SIZE to train one on the text (char)"
    )
    parser.add_argument("--name", help="of the data set (the first file's name without its ending)")
    parser.add_argument("--data_dir", default=data_dir, type=Path, metavar="DIR", help="where data sets lie (data)")
    parser.add_argument("--val_fraction", default=0.1, type=float, metavar="X", help="the end, for validation (0.1)")
    _add_shard_tokens(parser)
    given = parser.parse(argv)
    name = given.get("name", given["files"][0].stem)
    _require_name(name)
    folder, shard_tokens = given["data_dir"] / name, given["shard_tokens"]
    return _report(
        prepare_text(given["files"], folder, given["tokenizer"], given["val_fraction"], shard_tokens=shard_tokens)
    )


def main_known(name: str, argv: Sequence[str], data_dir: Path = Path("data")) -> int:
    """`python data/NAME/prepare.py` for the data sets in `KNOWN`; 0, or a `UserError` for wrong use."""
    about, _, _ = str(KNOWN[name].__doc__).partition(". ")
    parser = Parser(f"python data/{name}/prepare.py [--data_dir=DIR]", f"Prepare {about}.")
    parser.add_argument(
        "--data_dir", default=data_dir, type=Path, metavar="DIR", help=f"the data set goes to DIR/{name} (data)"
    )
    return _report(KNOWN[name](parser.parse(argv)["data_dir"] / name))


def main_openwebtext(argv: Sequence[str], data_dir: Path = Path("data")) -> int:
    """`python data/openwebtext/prepare.py [FILE...]`; 0, or a `UserError` for wrong use."""
    parser = Parser(
        "python data/openwebtext/prepare.py [FILE...] [--name=value ...]",
        "Make a data set of documents, each followed by the end-of-text token: of local files, or of OpenWebText,\n"
        "which the datasets library fetches (pip install -e '.[datasets]'; some 40 GB of text).",
    )
    parser.add_argument(
        "files", nargs="*", metavar="FILE", type=Path, help="*.parquet or *.jsonl with a column `text`, or *.txt"
    )
    parser.add_argument(
        "--tokenizer", metavar="WHICH", default="gpt2", help="gpt2, or bpe:SIZE to train one on the documents (gpt2)"
    )
    parser.add_argument("--num_docs", default=None, type=int, metavar="N", help="take the first N documents (all)")
    parser.add_argument("--val_fraction", default=0.0005, type=float, metavar="X", help="for validation (0.0005)")
    parser.add_argument("--seed", default=2357, type=int, metavar="N", help="draws the validation documents (2357)")
    parser.add_argument("--data_dir", default=data_dir, type=Path, metavar="DIR", help="where data sets lie (data)")
    _add_shard_tokens(parser)
    given = parser.parse(argv)
    if given["num_docs"] is not None and given["num_docs"] < 2:
        raise UserError(f"num_docs={given['num_docs']} is less than 2, one for each split; give more")
    documents = Documents(tuple(given["files"]), given["num_docs"])
    folder = given["data_dir"] / "openwebtext"
    options = (given["tokenizer"], given["val_fraction"], given["seed"])
    return _report(prepare_documents(documents, folder, *options, shard_tokens=given["shard_tokens"]))


def _add_shard_tokens(parser: Parser) -> None:
    parser.add_argument(
        "--shard_tokens", default=None, type=int, metavar="N", help="files of N tokens, train_000.bin and so on (one)"
    )


def _report(summary: Summary) -> int:
    print(f"{summary}\ntrain on it with: {to_train_on(summary.folder)}")
    return 0


def _require_name(name: str) -> None:
    """Refuse a name that would not be a folder of its own inside the data folder."""
    if not name.strip(".") or not name.isprintable() or any(mark in name for mark in "/\\"):
        raise UserError(f"name={name!r} can't be the name of a folder; choose one with --name=NAME, without / or \\")
