"""Where a run begins: fresh, from weights of others, or where an earlier run stopped. Nothing is written here."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import Mesh

from nanogpt_jax.core import sharding
from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.train_step import Params, Seed, TrainState, abstract_state, init_params, init_state
from nanogpt_jax.data import dataset, prepare, prepared
from nanogpt_jax.data.addresses import at_hand, is_address
from nanogpt_jax.data.bucket import data_set_at
from nanogpt_jax.data.chat import END, encoded
from nanogpt_jax.data.commands import flags_of, pasteable, to_put_in_tokens_of
from nanogpt_jax.data.dataset import TokenFile
from nanogpt_jax.data.examples import open_rows
from nanogpt_jax.data.files import exists
from nanogpt_jax.run import hosts, tuning
from nanogpt_jax.run.publishing import Publisher
from nanogpt_jax.run.resume import require_same_data, resumed_settings
from nanogpt_jax.weights import bases
from nanogpt_jax.weights.checkpoint import Checkpoint, RunDocument
from nanogpt_jax.weights.loading import Weights, base_params, located, open_weights, open_which


class Data(NamedTuple):
    """Both splits of a data set, and the tokenizer that made them, as JSON.

    Of examples, also the token that ends each, and the template of conversations.
    """

    train: TokenFile
    val: TokenFile
    tokenizer: dict[str, Any]
    vocab_size: int
    end: int | None = None
    template: dict[str, Any] | None = None

    def digest(self) -> str:
        """What tells these tokens from others."""
        return "-".join(dataset.digest(file) for file in (self.train, self.val))


class Start(NamedTuple):
    """Where a run begins: its settings and data, what it has behind it, and how to get the state it begins with.

    `load` gives the run anew, too: one that tunes a base knows it only when it has been read.
    """

    settings: Settings
    data: Data
    run: RunDocument
    load: Callable[[nn.Module, optax.GradientTransformation, Mesh | None], tuple[TrainState, RunDocument]]
    since: Checkpoint | None = None  # the checkpoint that it goes on from
    publisher: Publisher | None = None  # what puts it into a bucket


def begun(settings: Settings, given: Mapping[str, Any], data: Data | None = None) -> Start:
    """A new run, from fresh parameters or from weights that `init_from` names.

    `data` are those of the settings, where they have been opened already.
    """
    if settings.init_from == "scratch":
        data = data or _open_data(settings)
        vocab_size = settings.gpt_config(data.vocab_size).vocab_size
        run = _new_run(settings, data, vocab_size)

        def fresh(
            model: nn.Module, tx: optax.GradientTransformation, mesh: Mesh | None
        ) -> tuple[TrainState, RunDocument]:
            return _placed(_fresh, mesh, (model, tx), np.uint32(settings.seed)), run

        return Start(settings, data, run, fresh)
    weights = open_weights(settings.init_from, settings.data_dir, settings.which)
    settings = with_shape_of(settings, weights, given)
    data = data or _open_data(settings)
    _require_data_of(weights, data, settings.init_from)
    run = _new_run(settings, data, weights.vocab_size)
    if settings.lora_rank is not None:
        tuning.require_targets(settings, weights.vocab_size)

    def loaded(model: nn.Module, tx: optax.GradientTransformation, mesh: Mesh | None) -> tuple[TrainState, RunDocument]:
        params = weights.load(model, mesh)
        if settings.lora_rank is None:
            return _placed(_around, mesh, (tx,), np.uint32(settings.seed), params), run
        base = bases.described(settings.init_from, settings.which, params)
        state = _placed(tuning.fresh_delta, mesh, (settings, model, tx))
        state = dataclasses.replace(state, base=tuning.placed_base(settings, params, mesh))
        return state, dataclasses.replace(run, base=base)

    return Start(settings, data, run, loaded)


def resumed(settings: Settings, given: Mapping[str, Any], data: Data | None = None) -> Start:
    """The run in `out_dir`, from its newest whole checkpoint; only to evaluate it may be the best.

    `data` as for `begun`. Raises `UserError` where it is to go on from the best: that would be another run.
    """
    which = given.get("which", "last")
    if which == "best" and not settings.eval_only:
        anew = pasteable("train", init_from=settings.out_dir, out_dir=f"{settings.out_dir}-2")
        raise UserError(f"which=best is no place for a run to go on from; to begin a new one there: {anew}")
    reads = settings.eval_only or not hosts.is_first()  # else it goes on in the folder that was fetched
    folder = located(settings.out_dir, which) if reads and is_address(settings.out_dir) else at_hand(settings.out_dir)
    checkpoint = open_which(folder, which)
    settings = resumed_settings(checkpoint.run, settings.out_dir, given)
    data = data or _open_data(settings)
    _require_same_tokenizer(checkpoint.run.tokenizer, data, settings.out_dir)
    digest = data.digest()
    require_same_data(checkpoint.run, digest, settings)

    def load(model: nn.Module, tx: optax.GradientTransformation, mesh: Mesh | None) -> tuple[TrainState, RunDocument]:
        if settings.lora_rank is None:
            return checkpoint.state(sharding.placed(mesh, abstract_state(model, tx))), run
        params = base_params(checkpoint, model, mesh)
        like = jax.eval_shape(partial(tuning.fresh_delta, settings, model, tx))
        state = checkpoint.state(sharding.placed(mesh, like))
        return dataclasses.replace(state, base=tuning.placed_base(settings, params, mesh)), run

    run = dataclasses.replace(checkpoint.run, settings=vars(settings), data=digest)
    return Start(settings, data, run, load, checkpoint)


def _new_run(settings: Settings, data: Data, vocab_size: int) -> RunDocument:
    return RunDocument(
        vars(settings), data.tokenizer, vocab_size, step=0, data=data.digest(), end=data.end, template=data.template
    )


def _fresh(model: nn.Module, tx: optax.GradientTransformation, seed: Seed) -> TrainState:
    return init_state(init_params(model, seed), tx, seed)


def _around(tx: optax.GradientTransformation, seed: Seed, params: Params) -> TrainState:
    return init_state(params, tx, seed)


def _placed(make: Callable[..., Any], mesh: Mesh | None, static: tuple[Any, ...], *arguments: Any) -> Any:
    """The arrays that `make` gives, each made where it belongs: no device ever holds another one's share.

    Compiled once for all `arguments` of one shape, as the seeds of many runs are.
    """
    shapes = jax.eval_shape(partial(make, *static), *arguments)
    places = None if mesh is None else sharding.state_shardings(mesh, shapes)
    return jax.jit(make, static_argnums=range(len(static)), out_shardings=places)(*static, *arguments)


def _open_data(settings: Settings) -> Data:
    """Open both splits of the data set, preparing it first if it is missing and one we know how to make."""
    named = Path(settings.dataset)
    folder = data_set_at(settings.data_dir, settings.dataset)
    if len(named.parts) > 1 and not exists(folder):
        where = shlex.join(flags_of({"dataset": named.name, "data_dir": named.parent}))
        raise UserError(f"dataset={named} is a path and {folder} is not there; name the set and where it lies: {where}")
    if str(named) in prepare.KNOWN and not is_address(settings.data_dir):
        hosts.first_alone(lambda: _prepare_if_missing(str(named), folder))
    meta = prepared.load_meta(folder)
    train, val = (
        _open_split(settings, folder, meta, split, tokens)
        for split, tokens in (("train", meta.train_tokens), ("val", meta.val_tokens))
    )
    if meta.examples is None:
        return Data(train, val, meta.tokenizer, meta.vocab_size)
    ids, _ = encoded([END], prepared.load_tokenizer(meta.tokenizer))
    end = int(ids[-1]) if ids.size else None
    return Data(train, val, meta.tokenizer, meta.vocab_size, end, meta.examples.get("template"))


def _open_split(settings: Settings, folder: Path, meta: prepared.Meta, split: str, tokens: int) -> TokenFile:
    path, of_examples = folder / f"{split}.bin", meta.examples is not None
    least = 1 if of_examples else settings.block_size  # examples are as long as they are
    file = dataset.open_tokens(path, meta.vocab_size, least, tokens, meta.shards(split), meta.dtype)
    if not of_examples:
        return file._replace(once=not settings.with_replacement)
    marks = prepared.token_files(folder, meta, split + prepared.MARKS)
    return file._replace(rows=open_rows(marks, len(file.tokens), settings.block_size, settings.segments))


def _prepare_if_missing(name: str, folder: Path) -> None:
    if not any(exists(folder / file) for file in ("meta.json", "train.bin")):
        print(f"{folder} is not prepared yet: preparing it", flush=True)
        prepare.KNOWN[name](folder)


def with_shape_of(settings: Settings, weights: Weights, given: Mapping[str, Any]) -> Settings:
    """`settings` with the model that the weights are of; only `dropout` stays ours, as in nanoGPT.

    A smaller `block_size` that is asked for stays too: the model is cropped to it. With rotary positions there is
    nothing to crop, and a preset that has them may say how much to read. Raises `UserError` where anything else that is
    asked for is not what the weights have.
    """
    shape = weights.settings | {"vocab_size": weights.vocab_size}
    if settings.position == shape["position"] == "rope" and "block_size" not in given:
        shape["block_size"] = min(settings.block_size, shape["block_size"])
    for name in sorted(shape.keys() & given):
        new, old = getattr(settings, name), shape[name]
        if name == "block_size" and new < old:
            shape[name] = new
        elif new != old:
            crop = ", or smaller to crop them" if name == "block_size" else ""
            raise UserError(
                f"{name}={new} does not fit the weights in {settings.init_from}, which have {name}={old}; "
                f"leave it out{crop}"
            )
    return dataclasses.replace(settings, **shape)


def _require_data_of(weights: Weights, data: Data, source: str) -> None:
    """Refuse a data set that the weights know nothing of. Weights may have more tokens than it: they are padded."""
    if weights.tokenizer is not None and weights.assumed is None:
        _require_same_tokenizer(weights.tokenizer, data, source)
        return
    folder = data.train.path.parent
    if data.vocab_size > weights.vocab_size:
        raise UserError(
            f"{folder} has {data.vocab_size} tokens where the weights in {source} have {weights.vocab_size}; "
            "name the data set they belong to"
        )
    print(f"{source} does not say what its tokens are: taking them for those of {folder}", flush=True)


def _require_same_tokenizer(tokenizer: dict[str, Any], data: Data, source: str) -> None:
    if not prepared.is_same_tokenizer(tokenizer, data.tokenizer):
        raise UserError(
            f"the weights in {source} were trained with another tokenizer than {data.train.path.parent} was made with; "
            f"name the data set they belong to, or put it in their tokens: {_in_tokens_of(tokenizer, source, data)}"
        )


def _in_tokens_of(tokenizer: dict[str, Any], source: str, data: Data) -> str:
    """The command that makes a data set of the same text with the tokenizer of the weights in `source`."""
    characters = data.tokenizer.get("characters", "")
    lacking = set(characters) - set(tokenizer.get("characters", characters))
    which = "gpt2" if tokenizer == {"type": "gpt2"} else source
    return to_put_in_tokens_of(which, data.train.path.parent, **({"unknown": "drop"} if lacking else {}))
