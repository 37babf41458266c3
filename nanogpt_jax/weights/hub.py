"""Models by their names on Hugging Face's hub: from the cache that transformers keeps, or downloaded into it."""

from __future__ import annotations

import contextlib
import difflib
import logging
import re
import sys
from collections.abc import Callable
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
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model",
)  # fmt: skip


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

    Raises `UserError` where it is not in the cache and cannot be had.
    """
    from huggingface_hub import constants, get_session, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError

    # It reports each of its attempts; what a user must know reaches them as an exception.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    home = HOMES.get(name, name)

    def gathered(repository: str, extra: tuple[str, ...], local_files_only: bool = False) -> Path:
        def get(file: str) -> Path:
            return Path(hf_hub_download(repository, file, local_files_only=local_files_only))

        config = get("config.json")
        _get_weights(get, EntryNotFoundError)
        for file in extra:
            with contextlib.suppress(EntryNotFoundError):
                get(file)
        return config.parent

    for repository in dict.fromkeys((home, name)):
        with contextlib.suppress(EntryNotFoundError):
            return gathered(repository, (), local_files_only=True)
    print(f"fetching {home} from Hugging Face's hub", file=sys.stderr, flush=True)
    try:
        # One question first: without a network the downloads would ask for half a minute.
        get_session().head(constants.ENDPOINT, timeout=10)
        return gathered(home, () if name in PRETRAINED else TOKENIZER)
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise UserError(
            f"there is no folder {name} here, and no model {home} on Hugging Face's hub that anyone may read "
            f"({type(error).__name__}); check the name, or name a folder"
        ) from error
    except EntryNotFoundError as error:
        raise UserError(
            f"{home} on Hugging Face's hub has no weights that are read here ({', '.join(WEIGHTS[::2])}), or no "
            "config.json; name another model"
        ) from error
    except Exception as error:  # the hub and the network below it raise many kinds; to a user they all mean this
        here = "" if name in HOMES else f"there is no folder {name} here, and as a model's name "
        raise UserError(
            f"{here}init_from={name} is not in the cache of Hugging Face's hub, and {home} cannot be fetched "
            f"({type(error).__name__}); go online, or name a folder that holds it"
        ) from error


def _get_weights(get: Callable[[str], Path], missing: type[Exception]) -> None:
    """Get the weights in the first form there is: whole or in shards, safetensors or `.bin`. Raises `missing`."""
    for file in WEIGHTS:
        try:
            path = get(file)
        except missing:
            if file == WEIGHTS[-1]:
                raise
            continue
        if file.endswith(".index.json"):
            with reading(path):
                shards = set(read_json(path)["weight_map"].values())
                plain = sorted(shard for shard in shards if Path(shard).name == shard)
            for shard in plain:
                get(shard)
        return


def _bare(name: str) -> str:
    """A name without what people mistake in it: case, hyphens, underscores."""
    return re.sub(r"[-_ ]", "", name.lower())
