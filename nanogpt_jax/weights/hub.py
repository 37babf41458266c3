"""Models by their names on Hugging Face's hub: from the cache that transformers keeps, or downloaded into it."""

from __future__ import annotations

import contextlib
import difflib
import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from nanogpt_jax.core.config import PRETRAINED
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.data.files import exists
from nanogpt_jax.weights.foreign_files import read_json, reading

# The short names are older addresses of the same.
HOMES = {name: f"openai-community/{name}" for name in PRETRAINED} | {"distilgpt2": "distilbert/distilgpt2"}
WEIGHTS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
# Of a tokenizer. What stands beside the vocabulary is fetched first, so that a cache which has that has all.
BESIDE = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt", "generation_config.json",
)  # fmt: skip
VOCABULARY = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model")


def hub_name(source: str) -> str | None:
    """The model that `source` names, if it is a name and no path: a short one from `HOMES`, or ORGANIZATION/NAME.

    What is there is a path, and so is what would lie in a folder that is there. Raises `UserError` for a name that is
    nearly one of `HOMES`.
    """
    if exists(Path(source)):
        return None if source not in PRETRAINED else source
    if source in HOMES:
        return source
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source, re.ASCII) and not exists(Path(source).parent):
        return source if Path(source).suffix not in (".pt", ".bin", ".safetensors") else None
    nearly = difflib.get_close_matches(_bare(source), {_bare(name): name for name in HOMES}, 1, cutoff=0.9)
    if nearly and not re.search(r"[/\\]", source):
        meant = next(name for name in HOMES if _bare(name) == nearly[0])
        raise UserError(f"{source} is no folder here and no model's name; did you mean {meant}?")
    return None


def fetched(name: str) -> Path:
    """The folder with the files of the model `name`: in Hugging Face's cache, or downloaded into it.

    The cache may have been filled by a program that wanted the weights alone; then the tokenizer is fetched too, if it
    can be had. Raises `UserError` where the model is not in the cache and cannot be had.
    """
    # It reports each of its attempts; what a user must know reaches them as an exception.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    home, cached = HOMES.get(name, name), None
    for repository in dict.fromkeys((home, name)):
        with contextlib.suppress(_Missing):
            cached = _gathered(_getter(repository, in_cache=True))
            break
    if cached is not None and (name in PRETRAINED or any(exists(cached / file) for file in VOCABULARY)):
        return cached
    print(f"fetching {home} from Hugging Face's hub", file=sys.stderr, flush=True)
    try:
        return _downloaded(name, home)
    except UserError:
        if cached is None:
            raise
        return cached


def _downloaded(name: str, home: str) -> Path:
    """The folder with the files of the model, as far as its repository `home` has them, each fetched if it is newer."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        # One question first: without a network the downloads would ask for half a minute.
        get_session().head(constants.ENDPOINT, timeout=10)
        return _gathered(_getter(home), () if name in PRETRAINED else (*BESIDE, *VOCABULARY))
    except GatedRepoError as error:
        raise UserError(
            f"{home} is behind a gate on Hugging Face's hub; accept its terms at {constants.ENDPOINT}/{home}, log in "
            "with hf auth login, and try again"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"there is no folder {name} here, and no model {home} on Hugging Face's hub that anyone may read "
            f"({type(error).__name__}); check the name, or name a folder"
        ) from error
    except _Missing as error:
        what = f"weights that are read here ({', '.join(WEIGHTS[::2])})" if error.file == WEIGHTS[-1] else error.file
        raise UserError(f"{home} on Hugging Face's hub has no {what}; name another model") from error
    except Exception as error:  # the hub and the network below it raise many kinds; to a user they all mean this
        here = "" if name in HOMES else f"there is no folder {name} here, and as a model's name "
        raise UserError(
            f"{here}init_from={name} is not in the cache of Hugging Face's hub, and {home} cannot be fetched "
            f"({type(error).__name__}); go online, or name a folder that holds it"
        ) from error


class _Missing(Exception):
    """A repository, or the cache of it, has no such file."""

    def __init__(self, file: str) -> None:
        super().__init__(file)
        self.file = file


def _getter(repository: str, in_cache: bool = False) -> Callable[[str], Path]:
    """What gets a file of a repository, from the cache alone or else from the hub. It raises `_Missing`."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    def get(file: str) -> Path:
        try:
            return Path(hf_hub_download(repository, file, local_files_only=in_cache))
        except EntryNotFoundError as error:
            if isinstance(error, LocalEntryNotFoundError) and not in_cache:
                raise ConnectionError(f"{file} did not come through") from error
            raise _Missing(file) from error

    return get


def _gathered(get: Callable[[str], Path], more: Sequence[str] = ()) -> Path:
    """Get `config.json`, the weights in the first form there is, and of `more` what there is; their folder.

    The forms are safetensors and `.bin`, whole or in shards. Raises `_Missing`.
    """
    config = get("config.json")
    for file in WEIGHTS:
        try:
            path = get(file)
        except _Missing:
            if file == WEIGHTS[-1]:
                raise
            continue
        if file.endswith(".index.json"):
            with reading(path):
                shards = set(read_json(path)["weight_map"].values())
                plain = sorted(shard for shard in shards if Path(shard).name == shard)
            for shard in plain:
                get(shard)
        break
    for file in more:
        with contextlib.suppress(_Missing):
            get(file)
    return config.parent


def _bare(name: str) -> str:
    """A name without what people mistake in it: case, hyphens, underscores."""
    return re.sub(r"[-_ ]", "", name.lower())
