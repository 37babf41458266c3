"""The tokenizer in a Hugging Face folder: read as transformers reads it, and written as `AutoTokenizer` loads it.

What we wrote, and GPT-2's own, is known again for what it is, so that a model goes on with the data set it came from.
Nothing in these files is executed: chat templates and code that a folder brings are not looked at.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nanogpt_jax.core.errors import UserError, in_short
from nanogpt_jax.data import assets
from nanogpt_jax.data.files import exists, replace_when_whole
from nanogpt_jax.data.hf_tokenizer import GPT2_WORDS, HFTokenizer, cuts_as_gpt2, document_of, opened
from nanogpt_jax.data.tokenizer import (
    END_OF_TEXT,
    BPETokenizer,
    ByteBPE,
    CharTokenizer,
    GPT2Tokenizer,
    Tokenizer,
    byte_alphabet,
)
from nanogpt_jax.weights.foreign_files import read_json, reading

DOCUMENT, CONFIG = "tokenizer.json", "tokenizer_config.json"
# What else a folder may keep a tokenizer in; transformers makes a tokenizer.json of each.
_OTHERS = ("vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "merges.txt")
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_PLAIN: dict[str, Any] = {"version": "1.0", "added_tokens": [], "post_processor": None, "normalizer": None}
_GPT2_NAMED = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)


def read_tokenizer(folder: Path, rows: int) -> dict[str, Any] | None:
    """The tokenizer of the model in `folder`, whose token table has `rows`, as our JSON; None where it has none.

    It is in `tokenizer.json`, or else in `vocab.json` and `merges.txt`; `tokenizer_config.json`, `added_tokens.json`
    and `special_tokens_map.json` add to it; where none names the end of text, `config.json` may, by its number. Added
    tokens beyond the table are left out, and said to be. Raises `UserError` for files that are damaged or cannot be
    read, and for a vocabulary larger than the table.
    """
    if not any(exists(folder / name) for name in (DOCUMENT, *_OTHERS)):
        return None
    config, named, added = (_object(folder / name) for name in (CONFIG, "special_tokens_map.json", "added_tokens.json"))
    with reading(folder / DOCUMENT if exists(folder / DOCUMENT) else folder):
        library, usual = _library_in(folder, config)
        named = usual | (config if "added_tokens_decoder" in config else config | named)
        with reading("its added tokens"):
            _add(library, config, named, added)
        if not exists(folder / DOCUMENT):
            _add_ends(library, config, named)  # tokenizer.json says itself what every text begins and ends with
        document = _within(document_of(library), rows, folder)
        end = _content(named.get("eos_token")) or _numbered_end(folder, document) or END_OF_TEXT
        number = library.token_to_id(end)
        return recognized(document, end if number is not None and number < rows else None)


def stop_tokens(folder: Path, tokenizer: dict[str, Any] | None) -> tuple[int, ...]:
    """The tokens of `read_tokenizer` at which transformers ends a text that a model writes.

    They are special ones, of which `generation_config.json`, or else `config.json`, has the numbers; none where the
    tokenizer is one of ours, which knows of its one end of text by itself.
    """
    if tokenizer is None or tokenizer["type"] != "hf":
        return ()
    files = (folder / name for name in ("generation_config.json", "config.json"))
    return next((tuple(found) for file in files if (found := _ends(file, tokenizer["tokenizer"]))), ())


def write_tokenizer(folder: Path, tokenizer: Tokenizer, block_size: int) -> None:
    """Write the files from which `AutoTokenizer` makes a tokenizer that gives the same ids."""
    ends = {"bos_token": begin_of(tokenizer), "eos_token": tokenizer.eot_token}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # which takes tokenizer.json as it is
        "clean_up_tokenization_spaces": False,
        "model_max_length": block_size,
        **{name: tokenizer.decode([token]) for name, token in ends.items() if token is not None},
    }
    for name, content in ((DOCUMENT, hf_document(tokenizer)), (CONFIG, config)):
        with replace_when_whole(folder / name, "w") as file:
            json.dump(content, file, indent=2, ensure_ascii=False)
            file.write("\n")


def begin_of(tokenizer: Tokenizer) -> int | None:
    """The token that begins a text, if there is one: what the tokenizer puts there, or else what stands between two."""
    of_nothing = tokenizer.encode("")
    return int(of_nothing[0]) if of_nothing.size > tokenizer.encode_ordinary("").size else tokenizer.eot_token


def hf_document(tokenizer: Tokenizer) -> dict[str, Any]:
    """The `tokenizer.json` of a tokenizer: for every text that it can encode, the library gives the same ids."""
    if isinstance(tokenizer, HFTokenizer):
        return tokenizer.to_json()["tokenizer"]
    if isinstance(tokenizer, CharTokenizer):
        # A word for each character; what is no word is an error, as here, since there is no token for the unknown.
        each = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
        words = {"type": "WordLevel", "vocab": tokenizer.stoi, "unk_token": "<unk>"}
        return document_of(opened(_PLAIN | {"pre_tokenizer": each, "model": words, "decoder": {"type": "Fuse"}}))
    if not isinstance(tokenizer, ByteBPE):
        raise TypeError(f"{type(tokenizer).__name__} has no tokenizer.json")
    return _byte_level_document(tokenizer, [[_written(half) for half in pair] for pair in merges_of(tokenizer.ranks)])


def _byte_level_document(tokenizer: ByteBPE, merges: list[list[str]]) -> dict[str, Any]:
    model = {
        "type": "BPE",
        "vocab": {_written(piece): i for piece, i in tokenizer.ranks.items()} | {END_OF_TEXT: tokenizer.eot_token},
        "merges": merges,
        "ignore_merges": True,  # tiktoken takes a word that is a token for that token, without joining its bytes
    }
    end = {"id": tokenizer.eot_token, "content": END_OF_TEXT, "special": True, "normalized": False}
    end |= dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    parts = {"pre_tokenizer": GPT2_WORDS, "decoder": GPT2_WORDS, "added_tokens": [end], "model": model}
    return document_of(opened(_PLAIN | parts))


def _written(piece: bytes) -> str:
    """Bytes as the vocabularies of byte-level BPEs write them."""
    alphabet = byte_alphabet()
    return "".join(alphabet[byte] for byte in piece)


def merges_of(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pairs that byte-level BPE joins, the first learned first: what it has in hand just before a piece is made.

    Joining by ranks never makes a piece otherwise. One that is left in more than two parts is made by no joining.
    """
    merges = []
    for piece, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [piece[i : i + 1] for i in range(len(piece))]
        while len(parts) > 2:
            best, where = min((ranks.get(parts[i] + parts[i + 1], rank), i) for i in range(len(parts) - 1))
            if best >= rank:
                break
            parts[where : where + 2] = [parts[where] + parts[where + 1]]
        if len(parts) == 2:
            merges.append((parts[0], parts[1]))
    return merges


def recognized(document: dict[str, Any], end_of_text: str | None) -> dict[str, Any]:
    """The JSON of the tokenizer that `document` means: ours or GPT-2's where it gives the same ids, or else its own."""
    theirs = HFTokenizer(document, end_of_text).to_json()
    model = document["model"]
    try:
        if model["type"] == "WordLevel":
            ours: Tokenizer = CharTokenizer(_in_order(model["vocab"]))
            same = hf_document(ours)
        elif model["type"] == "BPE" and cuts_as_gpt2(document["pre_tokenizer"]):
            merges = [" ".join(pair) for pair in model["merges"]]
            ranks = assets.gpt2_ranks_in("".join(f"{line}\n" for line in ("#version: 0.2", *merges)))
            ours = BPETokenizer(merges) if ranks is None else GPT2Tokenizer(ranks)
            same = hf_document(ours) if ranks is None else _byte_level_document(ours, model["merges"])
        else:
            return theirs
    except (UserError, KeyError):  # it is no vocabulary of ours
        return theirs
    return ours.to_json() if _meaning(same) == _meaning(theirs["tokenizer"]) else theirs


def _meaning(document: dict[str, Any]) -> dict[str, Any]:
    """`document` without what gives the same ids whatever it says: offsets, and what is for a text with other bytes."""
    model = dict(document["model"])
    if model["type"] == "BPE" and set(byte_alphabet()) <= set(model["vocab"]):
        del model["unk_token"], model["fuse_unk"]  # nothing is unknown
        for affix in ("continuing_subword_prefix", "end_of_word_suffix"):
            model[affix] = model[affix] or None
        joined = {"".join(pair) for pair in model["merges"]}
        if all(len(token) == 1 or token in joined or token == END_OF_TEXT for token in model["vocab"]):
            del model["ignore_merges"]  # each token is made by joining
    added = [{**token, "normalized": None} for token in document["added_tokens"]]
    words, ends, decoder = (document[name] for name in ("pre_tokenizer", "post_processor", "decoder"))
    adds_nothing = ends is None or ends["type"] == "ByteLevel" or not ends.get("special_tokens", True)
    return document | {
        "model": model,
        "added_tokens": added,
        "pre_tokenizer": GPT2_WORDS if cuts_as_gpt2(words) else words,
        "post_processor": None if adds_nothing else ends,
        "decoder": decoder and decoder["type"],
    }


def _in_order(vocab: Mapping[str, int]) -> list[str]:
    """Tokens by their ids; `KeyError` if those are not 0 to their number."""
    token_of = {i: token for token, i in vocab.items()}
    return [token_of[i] for i in range(len(vocab))]


def _object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where there is no such file."""
    if not exists(path):
        return {}
    with reading(path):
        document = read_json(path)
        if not isinstance(document, dict):
            raise UserError(f"it holds a {type(document).__name__} where an object belongs; get it anew")
        return document


_NOT_READ = (
    "which is not read here; with transformers, "
    'AutoTokenizer.from_pretrained("FOLDER").save_pretrained("FOLDER") makes a tokenizer.json of it'
)


def _library_in(folder: Path, config: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The library's tokenizer as the main files have it, and the special tokens that its kind has by itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    if exists(folder / DOCUMENT):
        return opened(read_json(folder / DOCUMENT)), {}
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    if not (exists(vocab) and exists(merges)):
        found = next(name for name in _OTHERS if exists(folder / name))
        raise UserError(f"its tokenizer is in {found}, {_NOT_READ}")
    if (kind := config.get("tokenizer_class")) is not None and "GPT2" not in str(kind):
        raise UserError(f"its tokenizer is a {kind} in vocab.json, {_NOT_READ}")
    try:
        library = Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    except Exception as error:  # the library has no types of its own
        raise UserError(f"vocab.json and merges.txt cannot be read ({in_short(error)}); get them anew") from None
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space", False)))
    library.decoder = decoders.ByteLevel()
    return library, _GPT2_NAMED


def _add(library: Any, config: dict[str, Any], named: dict[str, Any], added: dict[str, Any]) -> None:
    """Add the tokens that the files beside `tokenizer.json` have and it has not, as transformers does."""
    from tokenizers import AddedToken

    there = {token.content for token in library.get_added_tokens_decoder().values()}
    special = {_content(named.get(name)) for name in _NAMED}
    for name in ("additional_special_tokens", "extra_special_tokens"):
        more = named.get(name) or []
        special |= {_content(token) for token in (more.values() if isinstance(more, dict) else more)}
    numbered = {token["content"]: (int(i), token) for i, token in config.get("added_tokens_decoder", {}).items()}
    for content, i in added.items():
        numbered.setdefault(content, (i, {"special": content in special}))
    for content, (i, flags) in sorted(numbered.items(), key=lambda item: item[1][0]):
        if content not in there:
            flags = {name: flags.get(name, False) for name in ("single_word", "lstrip", "rstrip", "special")}
            library.add_tokens([AddedToken(content, normalized=False, **flags)])
            if library.token_to_id(content) != i:
                raise UserError(
                    f"{content!r} is to be token {i} and becomes {library.token_to_id(content)}; get them anew"
                )
    for content in sorted(c for c in special - there - set(numbered) if c is not None):
        library.add_special_tokens([AddedToken(content, normalized=False, special=True)])


def _add_ends(library: Any, config: dict[str, Any], named: dict[str, Any]) -> None:
    """Begin and end every text with the tokens that `tokenizer_config.json` asks for."""
    from tokenizers import processors

    ends = {}
    for name in ("bos_token", "eos_token"):
        content = _content(named.get(name))
        if config.get(f"add_{name}") and content is not None:
            ends[name] = (content, library.token_to_id(content))
    before, after = ([ends[name][0]] if name in ends else [] for name in ("bos_token", "eos_token"))
    library.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after], special_tokens=list(dict.fromkeys(ends.values()))
    )


def _numbered_end(folder: Path, document: dict[str, Any]) -> str | None:
    """The special token that the model's `config.json` says texts end with; the first, where it has several."""
    return next(iter(_ends(folder / "config.json", document).values()), None)


def _ends(config: Path, document: dict[str, Any]) -> dict[int, str]:
    """The special tokens, by their numbers, that a model's file says texts end with."""
    numbers = _object(config).get("eos_token_id")
    special = {token["id"]: token["content"] for token in document["added_tokens"] if token["special"]}
    listed = numbers if isinstance(numbers, list) else [numbers]
    return {i: special[i] for i in listed if type(i) is int and i in special}


def _content(token: Any) -> str | None:
    """The text of a special token, which may stand alone or with its flags."""
    return token["content"] if isinstance(token, dict) else token


def _within(document: dict[str, Any], rows: int, folder: Path) -> dict[str, Any]:
    """`document` without the added tokens for which the model's table has no row."""
    vocab = document["model"]["vocab"]
    most = max(vocab.values(), default=-1) + 1 if isinstance(vocab, dict) else len(vocab)
    if most > rows:
        raise UserError(
            f"it has {most:,} tokens where the model has {rows:,}; the two do not belong together, get them anew"
        )
    beyond = [token["content"] for token in document["added_tokens"] if token["id"] >= rows]
    if beyond:
        names = ", ".join(map(repr, beyond[:3])) + (", ..." if len(beyond) > 3 else "")
        print(f"{folder}: leaving out {names}: the model has {rows:,} tokens", file=sys.stderr, flush=True)
    return {**document, "added_tokens": [token for token in document["added_tokens"] if token["id"] < rows]}
