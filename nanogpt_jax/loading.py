"""Where weights come from: a run's folder, a nanoGPT `ckpt.pt`, a Hugging Face GPT-2 folder, or a GPT-2 by its name.

What the files of other programs hold is said by `nanogpt_format.py` and `hf_format.py`; here they are told apart, and
nothing is written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.sharding import Mesh

from nanogpt_jax import sharding
from nanogpt_jax.accelerator import resolve_dtype
from nanogpt_jax.attention import choose_kernel
from nanogpt_jax.checkpoint import FOLDER, Checkpoint, RunDocument, best, newest
from nanogpt_jax.config import PLACEMENT_SETTINGS, PRETRAINED, GPTConfig, Settings
from nanogpt_jax.errors import UserError
from nanogpt_jax.hf_format import read_hf_config, read_hf_params
from nanogpt_jax.model import GPT, Bigram
from nanogpt_jax.nanogpt_format import NanoGPTCheckpoint
from nanogpt_jax.prepared import load_meta
from nanogpt_jax.training import Params, init_params

SHAPE = ("model", *(f.name for f in dataclasses.fields(GPTConfig) if f.name not in ("vocab_size", "dropout")))
"""Settings that decide which tensors a model has; weights bring their own."""


class Weights(NamedTuple):
    """Weights that can be loaded: the shape they have, the tokenizer they were trained with, and how to get them."""

    settings: dict[str, Any]  # the `SHAPE` settings
    vocab_size: int
    tokenizer: dict[str, Any] | None
    load: Callable[[nn.Module, Mesh | None], Params]  # onto a mesh: each device its own shards


def open_run(out_dir: Path) -> Checkpoint:
    """The newest whole checkpoint of a run. Raises `UserError` if there is none."""
    return _found(newest(out_dir), out_dir)


def open_best(out_dir: Path) -> Checkpoint:
    """The whole checkpoint of a run with the lowest validation loss. Raises `UserError` if there is none."""
    return _found(best(out_dir), out_dir)


def open_weights(source: str, data_dir: str = "data") -> Weights:
    """The weights that `source` names: a GPT-2, or a path to a nanoGPT `ckpt.pt`, a Hugging Face folder or a run.

    Of a run it is the best checkpoint. A nanoGPT checkpoint names its data set, whose tokenizer `data_dir` may have.
    `load` gives a model of a smaller `block_size` the first rows of the position table. Raises `UserError` if there is
    nothing at `source` that can be read.
    """
    if source in PRETRAINED:
        return _hf_weights(fetched(source))
    path = Path(source)
    if path.is_file():
        return _nanogpt_weights(path, Path(data_dir))
    if is_hf_folder(path):
        return _hf_weights(path)
    return _run_weights(path)


def is_hf_folder(folder: Path) -> bool:
    """Whether weights lie in `folder` under the names that `save_pretrained` gives them."""
    return any(name.is_file() for kind in ("model*.safetensors*", "pytorch_model*.bin*") for name in folder.glob(kind))


def tokenizer_of(vocab_size: int, data_set: Path | None) -> dict[str, Any] | None:
    """The tokenizer of a foreign model: its data set's where that has as many tokens, else GPT-2's; or None, unknown.

    GPT-2 has 50,257 tokens, which nanoGPT pads to 50,304.
    """
    if data_set is not None and (data_set / "meta.json").is_file():
        meta = load_meta(data_set)
        if meta.vocab_size == vocab_size:
            return meta.tokenizer
    return {"type": "gpt2"} if 50_257 <= vocab_size <= 50_304 else None


def fetched(name: str) -> Path:
    """The folder with the files of the GPT-2 `name`: in Hugging Face's cache, as transformers keeps it, or downloaded.

    Raises `UserError` where it is not in the cache and cannot be had.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    # It reports each of its attempts; what a user must know reaches them as an exception.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)

    def folder(repository: str, weights: str, **options: Any) -> Path:
        files = [Path(hf_hub_download(repository, file, **options)) for file in ("config.json", weights)]
        return files[-1].parent

    home = f"openai-community/{name}"  # the short name is an older address of the same
    for repository in (home, name):
        for weights in ("model.safetensors", "pytorch_model.bin"):
            with contextlib.suppress(LocalEntryNotFoundError):
                return folder(repository, weights, local_files_only=True)
    print(f"fetching {home} from Hugging Face's hub", file=sys.stderr, flush=True)
    try:
        return folder(home, "model.safetensors")
    except Exception as error:  # the hub and the network below it raise many kinds; to a user they all mean this
        raise UserError(
            f"init_from={name} is not in the cache of Hugging Face's hub, and {home} cannot be fetched "
            f"({type(error).__name__}); go online, or name a folder that holds it"
        ) from error


def _run_weights(out_dir: Path) -> Weights:
    checkpoint = open_best(out_dir)
    run, settings = checkpoint.run, stored_settings(checkpoint.run)

    def load(model: nn.Module, mesh: Mesh | None = None) -> Params:
        whole = model.clone(config=dataclasses.replace(model.config, block_size=settings.block_size))
        like = sharding.placed(mesh, jax.eval_shape(lambda: init_params(whole, 0)))
        return _cropped(checkpoint.params(like), model)

    return Weights({name: getattr(settings, name) for name in SHAPE}, run.vocab_size, run.tokenizer, load)


def _nanogpt_weights(path: Path, data_dir: Path) -> Weights:
    checkpoint = NanoGPTCheckpoint(path)
    tokenizer = tokenizer_of(checkpoint.config.vocab_size, checkpoint.data_set(data_dir))
    return _foreign_weights(checkpoint.config, tokenizer, checkpoint.params)


def _hf_weights(folder: Path) -> Weights:
    config = read_hf_config(folder)
    return _foreign_weights(config, tokenizer_of(config.vocab_size, None), lambda: read_hf_params(folder, config))


def _foreign_weights(config: GPTConfig, tokenizer: dict[str, Any] | None, read: Callable[[], Params]) -> Weights:
    settings = {"model": "gpt", **{name: value for name, value in vars(config).items() if name in SHAPE}}

    def load(model: nn.Module, mesh: Mesh | None = None) -> Params:
        params = _cropped(read(), model)
        return jax.device_put(params, None if mesh is None else sharding.state_shardings(mesh, params))

    return Weights(settings, config.vocab_size, tokenizer, load)


def _cropped(params: Params, model: nn.Module) -> Params:
    """`params` without the positions that a model of a smaller `block_size` does not have, as nanoGPT crops them."""
    if "wpe" not in params:  # a bigram knows no positions
        return params
    return {**params, "wpe": {"embedding": params["wpe"]["embedding"][: model.config.block_size]}}


def stored_settings(run: RunDocument, changes: Mapping[str, Any] | None = None) -> Settings:
    """The settings inside a checkpoint, but for where it ran, with `changes` applied; `UserError` if they are none."""
    names = {f.name for f in dataclasses.fields(Settings)}
    unknown = sorted(set(run.settings) - names)
    kept = {name: value for name, value in run.settings.items() if name not in PLACEMENT_SETTINGS}
    if unknown:
        raise UserError(f"the checkpoint has a setting {unknown[0]!r} this version does not know; use the one it is of")
    return Settings(**{**kept, **(changes or {})})


def build_model(settings: Settings, vocab_size: int, platform: str) -> nn.Module:
    """The module of the settings' shape, with the type and the kernel that they and the hardware call for."""
    config = settings.gpt_config(vocab_size)
    if settings.model == "bigram":
        return Bigram(config)
    dtype = resolve_dtype(settings.dtype, platform)
    kernel = choose_kernel(settings.attention, platform, config.head_size, dtype, config.dropout)
    return GPT(config, dtype, kernel, settings.remat)


def _found(checkpoint: Checkpoint | None, out_dir: Path) -> Checkpoint:
    if checkpoint is not None:
        return checkpoint
    if (out_dir / FOLDER).is_dir():
        raise UserError(f"{out_dir / FOLDER} holds no finished checkpoint; train again, or name another folder")
    if (out_dir / "ckpt.pt").is_file():
        flag = shlex.quote(f"--init_from={out_dir / 'ckpt.pt'}")
        raise UserError(f"{out_dir} holds no run but nanoGPT's ckpt.pt; name that: {flag}")
    raise UserError(f"{out_dir} holds no run (there is no {out_dir / FOLDER}); train one there, or name another")
