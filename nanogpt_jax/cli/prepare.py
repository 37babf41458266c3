"""The command that prepares data sets, also as the scripts in `data/`: flags in, data sets out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nanogpt_jax.cli.flags import Parser
from nanogpt_jax.core.config import PRETRAINED, UNKNOWN
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.limits import MAX_VOCAB_SIZE, require_choice
from nanogpt_jax.data import assets
from nanogpt_jax.data.addresses import is_address, require_on_disk
from nanogpt_jax.data.chat import TEMPLATES, named_template
from nanogpt_jax.data.commands import pasteable, to_install, to_train_on
from nanogpt_jax.data.files import exists, is_dir, is_file
from nanogpt_jax.data.from_tokens import adopt, prepare_data_set
from nanogpt_jax.data.pieces import census
from nanogpt_jax.data.prepare import KNOWN, Summary, prepare_documents, prepare_text
from nanogpt_jax.data.prepared import load_meta, load_tokenizer
from nanogpt_jax.data.sources import CHUNK, Documents, plain_os_errors, read_text, require_regular_files
from nanogpt_jax.data.tasks import FORMATS, TOO_LONG, prepare_examples
from nanogpt_jax.data.tokenizer import CharTokenizer, GPT2Tokenizer, Tokenizer


def main(argv: Sequence[str]) -> int:
    """The command: a data set that is known by its name, which comes first, or one of FILEs (`./NAME` is a FILE)."""
    name, rest = (argv[0], argv[1:]) if argv else (None, argv)
    if name in KNOWN:
        return main_known(name, rest)
    return main_openwebtext(rest) if name == "openwebtext" else main_texts(argv)


def main_texts(argv: Sequence[str], data_dir: Path = Path("data")) -> int:
    """`python data/prepare.py FILE...`; 0, or a `UserError` for wrong use."""
    parser = Parser("prepare", "FILE... [--name=value ...]", _DESCRIPTION)
    parser.add_argument(
        "files", nargs="*", default=[], metavar="FILE", type=Path, help="text files, or the folder of one data set"
    )
    parser.add_argument("--adopt", metavar="DIR", type=Path, help="take over the train.bin and val.bin in DIR")
    _add_tokenizer(parser, "char")
    parser.add_argument("--name", help="of the data set (the first file's name without its ending)")
    parser.add_argument("--val_fraction", default=0.1, type=float, metavar="X", help="the end, for validation (0.1)")
    _add_places(parser, data_dir)
    _add_examples(parser)
    given = parser.parse(argv)
    if "adopt" in given:
        return _adopt(given)
    if not given["files"]:
        raise UserError("no FILE is named; name text files, as in: " + pasteable("prepare", "letters.txt"))
    folder = _folder(given, given.get("name", given["files"][0].stem))
    tokenizer, options = _tokenizer(given.get("tokenizer", "char"), given["data_dir"]), _options(given)
    if "format" in given:
        which = given.get("tokenizer", "char")
        begins_with = {"init_from": which} if is_dir(Path(which)) and not is_file(Path(which) / "meta.json") else {}
        return _report(_examples(given, folder, tokenizer, options), **begins_with)
    for name in _OF_EXAMPLES:
        if name in given:
            raise UserError(f"--{name} is for examples; add --format=pairs or --format=chat, or leave it out")
    if len(given["files"]) == 1 and is_dir(given["files"][0]):
        return _report(prepare_data_set(given["files"][0], folder, tokenizer, **options))
    return _report(prepare_text(given["files"], folder, tokenizer, given["val_fraction"], **options))


def _add_examples(parser: Parser) -> None:
    group = parser.add_argument_group("examples of a task, in JSON lines")
    group.add_argument(
        "--format",
        metavar="{" + ",".join(FORMATS) + "}",
        help='pairs: {"prompt": ..., "completion": ...}; chat: {"messages": [{"role": ..., "content": ...}, ...]}',
    )
    group.add_argument(
        "--template",
        metavar="WHICH",
        help=f"how a chat becomes text: {', '.join(TEMPLATES)}, or a JSON file that says it (plain)",
    )
    group.add_argument("--block_size", type=int, metavar="N", help="the longest example has N + 1 tokens (1024)")
    group.add_argument(
        "--too_long",
        metavar="{" + ",".join(TOO_LONG) + "}",
        help="what becomes of a longer one; cut: its prompt loses its beginning (refuse)",
    )
    group.add_argument("--seed", type=int, metavar="N", help="draws the examples for validation (2357)")


_OF_EXAMPLES = ("template", "block_size", "too_long", "seed")


def _examples(given: dict[str, Any], folder: Path, tokenizer: str | Tokenizer, options: dict[str, Any]) -> Summary:
    if "template" in given:
        options["template"] = named_template(given["template"])
    options |= {name: given[name] for name in _OF_EXAMPLES[1:] if name in given}
    return prepare_examples(given["files"], folder, given["format"], tokenizer, given["val_fraction"], **options)


_DESCRIPTION = """\
Make a data set of your own UTF-8 text: train.bin, val.bin and meta.json in DATA_DIR/NAME.

  {prepare} letters.txt                                     one token for each character
  {prepare} letters.txt --tokenizer=gpt2                    GPT-2's tokens
  {prepare} letters.txt --tokenizer=out-shakespeare-char    the tokens of a model, to train it on
  {prepare} data/letters --tokenizer=gpt2 --name=letters2   a data set's text in other tokens
  {prepare} --adopt=../nanoGPT/data/shakespeare_char --tokenizer=char:input.txt
  {prepare} pairs.jsonl --format=pairs --tokenizer=gpt2     examples of a task, to tune a model on

WHICH tokenizer is char, gpt2, bpe:SIZE to train one on the text, char:TEXTFILE for the characters of a file, or an
existing one by where it is: a data set's name or folder, a run's folder, a checkpoint, a Hugging Face folder.

Data sets that are known by their names:

  {prepare shakespeare_char}
  {prepare shakespeare}
  {prepare openwebtext} [FILE...]"""


def _adopt(given: dict[str, Any]) -> int:
    which = given.get("tokenizer")
    if which is None or which == "char" or which.startswith("bpe:") or given["files"]:
        raise UserError(
            "--adopt=DIR takes no FILE, and needs the --tokenizer=WHICH that the tokens were made with: gpt2, "
            "char:TEXTFILE, or a data set, a run or a checkpoint"
        )
    tokenizer = _tokenizer(which, given["data_dir"])
    if isinstance(tokenizer, str):
        tokenizer = GPT2Tokenizer(assets.gpt2_ranks())
    of_a_text = which.startswith("char:")
    if of_a_text and isinstance(tokenizer, CharTokenizer):  # nanoGPT takes \r\n for \n
        tokenizer = CharTokenizer(character for character in tokenizer.itos if character != "\r")
    folder = _folder(given, given["name"]) if "name" in given else None
    options = {"all_occur": of_a_text, "shard_tokens": given["shard_tokens"]}
    return _report(adopt(given["adopt"], tokenizer, folder, **options))


def main_known(name: str, argv: Sequence[str], data_dir: Path = Path("data")) -> int:
    """`python data/NAME/prepare.py` for the data sets in `KNOWN`; 0, or a `UserError` for wrong use."""
    about, _, _ = str(KNOWN[name].__doc__).partition(". ")
    parser = Parser(f"prepare {name}", "[--data_dir=DIR]", f"Prepare {about}.")
    parser.add_argument(
        "--data_dir", default=data_dir, type=_on_disk, metavar="DIR", help=f"the data set goes to DIR/{name} (data)"
    )
    return _report(KNOWN[name](parser.parse(argv)["data_dir"] / name))


def main_openwebtext(argv: Sequence[str], data_dir: Path = Path("data")) -> int:
    """`python data/openwebtext/prepare.py [FILE...]`; 0, or a `UserError` for wrong use."""
    parser = Parser(
        "prepare openwebtext",
        "[FILE...] [--name=value ...]",
        "Make a data set of documents, each followed by the end-of-text token: of local files, or of OpenWebText,\n"
        f"fetched from Hugging Face's hub file by file into its cache ({to_install('datasets')}; 40 GB of text).",
    )
    parser.add_argument(
        "files",
        nargs="*",
        default=[],
        metavar="FILE",
        type=Path,
        help="*.parquet or *.jsonl with a column `text`, or *.txt",
    )
    _add_tokenizer(parser, "gpt2")
    parser.add_argument("--name", default="openwebtext", help="of the data set (openwebtext)")
    parser.add_argument("--num_docs", default=None, type=int, metavar="N", help="take the first N documents (all)")
    parser.add_argument("--val_fraction", default=0.0005, type=float, metavar="X", help="for validation (0.0005)")
    parser.add_argument("--seed", default=2357, type=int, metavar="N", help="draws the validation documents (2357)")
    _add_places(parser, data_dir)
    given = parser.parse(argv)
    if given["num_docs"] is not None and given["num_docs"] < 2:
        raise UserError(f"num_docs={given['num_docs']} is less than 2, one for each split; give more")
    documents = Documents(tuple(given["files"]), given["num_docs"])
    folder = _folder(given, given["name"])
    tokenizer = _tokenizer(given.get("tokenizer", "gpt2"), given["data_dir"])
    made = prepare_documents(documents, folder, tokenizer, given["val_fraction"], given["seed"], **_options(given))
    return _report(made)


def _add_tokenizer(parser: Parser, default: str) -> None:
    parser.add_argument(
        "--tokenizer", metavar="WHICH", help=f"char, gpt2, bpe:SIZE, char:TEXTFILE, or an existing one ({default})"
    )
    parser.add_argument(
        "--unknown",
        metavar="{" + ",".join(UNKNOWN) + "}",
        default="refuse",
        help="what becomes of characters that an existing tokenizer lacks (refuse)",
    )


def _add_places(parser: Parser, data_dir: Path) -> None:
    parser.add_argument("--data_dir", default=data_dir, type=_on_disk, metavar="DIR", help="where data sets lie (data)")
    parser.add_argument(
        "--shard_tokens", default=None, type=int, metavar="N", help="files of N tokens, train_000.bin and so on (one)"
    )


def _on_disk(data_dir: str) -> Path:
    return Path(require_on_disk("data_dir", data_dir))


def _options(given: dict[str, Any]) -> dict[str, Any]:
    require_choice("unknown", given["unknown"], UNKNOWN)
    return {name: given[name] for name in ("unknown", "shard_tokens")}


@plain_os_errors("looking for a tokenizer")
def _tokenizer(which: str, data_dir: Path) -> str | Tokenizer:
    """The tokenizer that a flag names, or the flag itself where one is to be made; `UserError` if there is none."""
    if which in ("char", *PRETRAINED) or which.startswith("bpe:"):
        return "gpt2" if which in PRETRAINED else which
    if which.startswith("char:"):
        path = Path(which.removeprefix("char:"))
        require_regular_files([path])
        return CharTokenizer(census(read_text([path], CHUNK, "reading")).characters)
    path = Path(which)
    for folder in (data_dir / which, path, path.parent if path.name == "meta.json" else path):
        if which and is_file(folder / "meta.json"):
            return load_tokenizer(load_meta(folder).tokenizer)
    return load_tokenizer(_tokenizer_of_weights(which, data_dir))


def _tokenizer_of_weights(source: str, data_dir: Path) -> dict[str, Any]:
    """The tokenizer, as JSON, of a run, a checkpoint or a Hugging Face model, whose weights need not be there."""
    from nanogpt_jax.weights.hf_format import is_hf_folder  # slow to import, as is all that knows of weights
    from nanogpt_jax.weights.hub import hub_name
    from nanogpt_jax.weights.loading import open_weights
    from nanogpt_jax.weights.tokenizer_files import read_tokenizer

    path = Path(source)
    if not source or not (is_address(source) or exists(path) or hub_name(source)):
        raise UserError(
            f"tokenizer={source} is not char, gpt2, bpe:SIZE, char:TEXTFILE, a data set in {data_dir}, nor the path "
            "of one, of a run or of a checkpoint; choose one"
        )
    if is_dir(path) and not is_hf_folder(path) and (found := read_tokenizer(path, MAX_VOCAB_SIZE)):
        return found
    weights = open_weights(source, str(data_dir))
    if weights.tokenizer is None:
        raise UserError(f"tokenizer={source} does not say what its tokens are; name the data set it was trained on")
    if weights.assumed is not None:
        print(f"note: {weights.assumed}", file=sys.stderr)
    return weights.tokenizer


def _report(summary: Summary, **flags: object) -> int:
    print(f"{summary}\ntrain on it with: {to_train_on(summary.folder, **flags)}")
    for remark in summary.remarks:
        print(f"note: {remark}", file=sys.stderr)
    return 0


def _folder(given: dict[str, Any], name: str) -> Path:
    """Where the data set goes. Refuses a name that would not be a folder of its own inside the data folder."""
    if not name.strip(".") or not name.isprintable() or any(mark in name for mark in "/\\"):
        raise UserError(f"name={name!r} can't be the name of a folder; choose one with --name=NAME, without / or \\")
    return given["data_dir"] / name
