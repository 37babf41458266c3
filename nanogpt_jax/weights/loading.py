"""Where weights come from: a run, a nanoGPT `ckpt.pt`, a Hugging Face or PEFT folder, or a model by its name.

What the files of other programs hold is said by `nanogpt_format.py`, `hf_format.py` and `peft_format.py`; here they are
told apart, a delta is merged into its base, and nothing is written.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.sharding import Mesh

from nanogpt_jax.core import sharding
from nanogpt_jax.core.config import PLACEMENT_SETTINGS, PRETRAINED, Settings
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.lora import Delta, abstract_delta, merge
from nanogpt_jax.core.shape import GPTConfig
from nanogpt_jax.core.train_step import Params, init_params
from nanogpt_jax.data.addresses import is_address
from nanogpt_jax.data.commands import flags_of
from nanogpt_jax.data.files import is_dir, is_file
from nanogpt_jax.data.prepared import load_meta
from nanogpt_jax.weights import bases
from nanogpt_jax.weights.checkpoint import FOLDER, Checkpoint, RunDocument, best, newest
from nanogpt_jax.weights.foreign_files import reading
from nanogpt_jax.weights.hf_format import is_hf_folder, read_hf_config, read_hf_params, require_readable
from nanogpt_jax.weights.hub import fetched, hub_name
from nanogpt_jax.weights.nanogpt_format import NanoGPTCheckpoint
from nanogpt_jax.weights.peft_format import SETTINGS, is_peft_folder, read_peft, read_peft_settings, targets_of
from nanogpt_jax.weights.run_in_bucket import fetched_checkpoint
from nanogpt_jax.weights.tokenizer_files import read_tokenizer, stop_tokens

SHAPE = ("model", *(f.name for f in dataclasses.fields(GPTConfig) if f.name not in ("vocab_size", "dropout")))
"""Settings that decide which tensors a model has; weights bring their own."""

GPT2_TOKENS, PADDED_GPT2_TOKENS = 50_257, 50_304


class Weights(NamedTuple):
    """Weights that can be loaded: the shape they have, the tokenizer they were trained with, and how to get them."""

    settings: dict[str, Any]  # the `SHAPE` settings
    vocab_size: int
    tokenizer: dict[str, Any] | None
    load: Callable[[nn.Module, Mesh | None], Params]  # onto a mesh: each device its own shards
    assumed: str | None = None  # a line for the user, where the tokenizer is no more than likely
    stops: tuple[int, ...] = ()  # tokens that end a text, beside the tokenizer's own
    template: dict[str, Any] | None = None  # of a model tuned on chats: as `chat.template_from_json` reads it


def open_run(out_dir: Path) -> Checkpoint:
    """The newest whole checkpoint of a run. Raises `UserError` if there is none."""
    return _found(newest(out_dir), out_dir)


def open_best(out_dir: Path) -> Checkpoint:
    """The whole checkpoint of a run with the lowest validation loss. Raises `UserError` if there is none."""
    return _found(best(out_dir), out_dir)


def open_which(out_dir: Path, which: str) -> Checkpoint:
    """The checkpoint of a run that ``which`` means: best or last. Raises `UserError` if there is none."""
    return open_best(out_dir) if which == "best" else open_run(out_dir)


def open_weights(source: str, data_dir: str = "data", which: str = "best") -> Weights:
    """The weights that `source` names: a model of the hub, a nanoGPT `ckpt.pt`, a Hugging Face or PEFT folder or a run.

    Of a run it is the best checkpoint, or the last if that is `which`; what LoRA trained comes merged into its base. A
    nanoGPT checkpoint names its data set, whose tokenizer `data_dir` may have. `load` gives a model of a smaller
    `block_size` the first rows of the position table.
    Raises `UserError` if there is nothing at `source` that can be read.
    """
    path = located(source, which)
    if is_file(path):
        require_readable(path)
        return _nanogpt_weights(path, Path(data_dir))
    if is_hf_folder(path):
        return _hf_weights(source, path)
    if is_peft_folder(path):
        return _peft_weights(path, data_dir)
    require_readable(path)
    return _run_weights(path, which)


def located(source: str, which: str) -> Path:
    """The file or folder that `source` means: a path, or the place where the files of a model of that name lie.

    Of a run in a bucket, its checkpoint that is `which` is fetched. Raises `UserError` for a name that is not in
    Hugging Face's cache and cannot be fetched.
    """
    if is_address(source):
        return fetched_checkpoint(source, which)
    name = hub_name(source)
    return Path(source) if name is None else fetched(name)


class Known(NamedTuple):
    """What is known of a foreign model's tokens: the tokenizer as JSON, and a line that says what of it is assumed."""

    tokenizer: dict[str, Any] | None
    assumed: str | None = None


def nanogpt_tokenizer(path: Path, checkpoint: NanoGPTCheckpoint, data_dir: Path) -> Known:
    """The tokenizer in a nanoGPT checkpoint that we wrote, or else that of its data set, or else GPT-2's by the size.

    In that order nanoGPT's sample.py looks too. A data set may have fewer tokens than the model, which is padded.
    """
    rows, data_set = checkpoint.config.vocab_size, checkpoint.data_set(data_dir)
    if checkpoint.tokenizer is not None:
        return Known(checkpoint.tokenizer)
    if data_set is not None and is_file(data_set / "meta.json"):
        meta = load_meta(data_set)
        padded = PADDED_GPT2_TOKENS if meta.tokenizer == {"type": "gpt2"} else meta.vocab_size
        if meta.vocab_size <= rows:
            line = f"{path} has {rows:,} tokens: taking the first {meta.vocab_size:,} for those of {data_set}"
            return Known(meta.tokenizer, None if rows in (meta.vocab_size, padded) else line)
    return _by_size(str(path), rows)


def hf_tokenizer(source: str, folder: Path, rows: int) -> Known:
    """The tokenizer in a Hugging Face folder, which `source` names; without one GPT-2's by the size."""
    if source in PRETRAINED:
        return Known({"type": "gpt2"})
    own = read_tokenizer(folder, rows)
    return _by_size(source, rows) if own is None else Known(own)


def _by_size(source: str, rows: int) -> Known:
    if GPT2_TOKENS <= rows <= PADDED_GPT2_TOKENS:
        return Known({"type": "gpt2"}, f"{source} does not say what its tokens are: assuming GPT-2's")
    return Known(None)


def _run_weights(out_dir: Path, which: str) -> Weights:
    checkpoint = open_which(out_dir, which)
    run, settings = checkpoint.run, stored_settings(checkpoint.run)

    def load(model: nn.Module, mesh: Mesh | None = None) -> Params:
        whole = model.clone(config=dataclasses.replace(model.config, block_size=settings.block_size))
        if settings.lora_rank is None:
            like = sharding.placed(mesh, jax.eval_shape(lambda: init_params(whole, 0)))
            return _cropped(checkpoint.params(like), model)
        return _cropped(_merged(checkpoint, settings, whole, mesh), model)

    shape = {name: getattr(settings, name) for name in SHAPE}
    stops = () if run.end is None else (run.end,)
    return Weights(shape, run.vocab_size, run.tokenizer, load, stops=stops, template=run.template)


def base_params(checkpoint: Checkpoint, model: nn.Module, mesh: Mesh | None) -> Params:
    """The weights that the delta in a run's checkpoint belongs to. Raises `UserError` where those are others now."""
    base = checkpoint.run.base or {}
    out_dir = checkpoint.folder.parents[1]
    _require_no_circle(out_dir, base)
    params = open_weights(bases.place_of(base, out_dir), which=str(base["which"])).load(model, mesh)
    bases.require_same(base, params, out_dir)
    return params


def delta_in(checkpoint: Checkpoint, settings: Settings, model: nn.Module, mesh: Mesh | None = None) -> Delta:
    """The delta in the checkpoint of a run by `settings` that tunes `model`."""
    like = abstract_delta(model, settings.lora_rank or 1, settings.lora_targets)
    return checkpoint.params(sharding.placed(mesh, like))


def _require_no_circle(out_dir: Path, base: Mapping[str, Any] | None) -> None:
    """Raise `UserError` where the base of a run's base, and so on, is the run itself: all would be read without end."""
    seen = {out_dir.resolve()}
    while base and is_dir(Path(str(base["source"])) / FOLDER):
        source = Path(str(base["source"])).resolve()
        if source in seen:
            raise UserError(f"{out_dir} was tuned on {source}, which is itself a delta to that; put the weights back")
        seen.add(source)
        base = open_which(source, str(base["which"])).run.base


def _merged(checkpoint: Checkpoint, settings: Settings, model: nn.Module, mesh: Mesh | None) -> Params:
    """Base and delta of a run as the parameters of a plain model."""
    delta = delta_in(checkpoint, settings, model, mesh)
    return _joined(base_params(checkpoint, model, mesh), delta, settings.lora_scale, mesh)


def _joined(params: Params, delta: Delta, scale: float, mesh: Mesh | None) -> Params:
    """`lora.merge`, each device with its own share."""
    places = None if mesh is None else sharding.state_shardings(mesh, params)
    return jax.jit(lambda params, delta: merge(params, delta, scale), out_shardings=places)(params, delta)


class PeftBase(NamedTuple):
    """What an adapter is a delta to: the name or path that it gives, the weights there, and their model's shape."""

    source: str
    weights: Weights
    config: GPTConfig


def peft_base(folder: Path, data_dir: str) -> PeftBase:
    """The base that the adapter in `folder` names; a path is one from the working directory, as it is to PEFT.

    Raises `UserError` if it is not there, or if the adapter is of another model.
    """
    of_adapter = read_peft_settings(folder)
    source, settings = of_adapter.base, folder / SETTINGS
    if source is None:
        raise UserError(f"{settings} does not name the weights it belongs to; put base_model_name_or_path there")
    if is_peft_folder(Path(source)):
        raise UserError(f"{settings} names another adapter as its base, {source}; merge that, and name the result")
    weights = open_weights(bases.place_of({"source": source}, folder), data_dir)
    if weights.settings["model"] != "gpt":
        raise UserError(f"{settings} names as its base a {weights.settings['model']}, {source}; name a gpt")
    config = Settings(**weights.settings).gpt_config(weights.vocab_size)
    with reading(settings):
        targets_of(of_adapter.modules, config)
    return PeftBase(source, weights, config)


def _peft_weights(folder: Path, data_dir: str) -> Weights:
    base = peft_base(folder, data_dir)

    def load(model: nn.Module, mesh: Mesh | None = None) -> Params:
        delta, rank, alpha, *_ = read_peft(folder, model.config)
        return _joined(base.weights.load(model, mesh), delta, alpha / rank, mesh)

    return base.weights._replace(load=load)


def _nanogpt_weights(path: Path, data_dir: Path) -> Weights:
    checkpoint = NanoGPTCheckpoint(path)
    return _foreign_weights(checkpoint.config, nanogpt_tokenizer(path, checkpoint, data_dir), checkpoint.params)


def _hf_weights(source: str, folder: Path) -> Weights:
    config = read_hf_config(folder)
    known = hf_tokenizer(source, folder, config.vocab_size)
    weights = _foreign_weights(config, known, lambda: read_hf_params(folder, config))
    return weights._replace(stops=stop_tokens(folder, known.tokenizer))


def _foreign_weights(config: GPTConfig, known: Known, read: Callable[[], Params]) -> Weights:
    settings = {"model": "gpt", **{name: value for name, value in vars(config).items() if name in SHAPE}}

    def load(model: nn.Module, mesh: Mesh | None = None) -> Params:
        params = _cropped(read(), model)
        return jax.device_put(params, None if mesh is None else sharding.state_shardings(mesh, params))

    return Weights(settings, config.vocab_size, known.tokenizer, load, known.assumed)


def _cropped(params: Params, model: nn.Module) -> Params:
    """`params` without the positions that a model of a smaller `block_size` does not have, as nanoGPT crops them."""
    if "wpe" not in params:  # a bigram knows no positions, and rotary ones are no parameters
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


def _found(checkpoint: Checkpoint | None, out_dir: Path) -> Checkpoint:
    if checkpoint is not None:
        return checkpoint
    if is_dir(out_dir / FOLDER):
        raise UserError(f"{out_dir / FOLDER} holds no finished checkpoint; train again, or name another folder")
    if is_file(out_dir / "ckpt.pt"):
        flag = shlex.join(flags_of({"init_from": out_dir / "ckpt.pt"}))
        raise UserError(f"{out_dir} holds no run but nanoGPT's ckpt.pt; name that: {flag}")
    raise UserError(f"{out_dir} holds no run (there is no {out_dir / FOLDER}); train one there, or name another")
