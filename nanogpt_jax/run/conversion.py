"""A model, and its training, from one program's files to another's.

All that can be refused is refused before anything is written, and what is written appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.errors import UserError, in_short
from nanogpt_jax.core.optimizer import make_optimizer
from nanogpt_jax.core.train_step import abstract_state, init_state
from nanogpt_jax.data.addresses import require_on_disk
from nanogpt_jax.data.files import (
    exists,
    is_dir,
    is_file,
    names_in,
    refused,
    require_room,
    system_error,
    temporary_folder,
)
from nanogpt_jax.data.prepared import load_meta, load_tokenizer
from nanogpt_jax.data.process import undone_by_signals
from nanogpt_jax.run.accelerator import use_accelerator
from nanogpt_jax.run.build import build_model
from nanogpt_jax.run.recipe import CONFIG_FILE
from nanogpt_jax.run.sinks import METRICS_FILE
from nanogpt_jax.run.telemetry import write_config
from nanogpt_jax.weights import bases, peft_format
from nanogpt_jax.weights.checkpoint import FOLDER, RunDocument
from nanogpt_jax.weights.hf_format import is_hf_folder, read_hf_config, read_hf_params, require_readable, write_hf
from nanogpt_jax.weights.loading import (
    Known,
    delta_in,
    hf_tokenizer,
    located,
    nanogpt_tokenizer,
    open_weights,
    open_which,
    peft_base,
    stored_settings,
)  # fmt: skip
from nanogpt_jax.weights.nanogpt_format import NanoGPTCheckpoint, Snapshot, moments_of, with_moments, write_nanogpt
from nanogpt_jax.weights.saving import CheckpointWriter
from nanogpt_jax.weights.tokenizer_files import begin_of, write_tokenizer

Folder = Literal["run", "hf", "peft"]
Form = Folder | Literal["nanogpt"]
_WRITTEN = {FOLDER, CONFIG_FILE, METRICS_FILE, "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
_WRITTEN |= {peft_format.SETTINGS, peft_format.TENSORS}


def convert(
    src: str,
    dst: str,
    to: Folder | None = None,
    which: Literal["best", "last"] | None = None,
    tokenizer: str | None = None,
    data_dir: str = "data",
    overwrite: bool = False,
) -> None:
    """Write what `src` holds to `dst` in another form; the arguments are the command's.

    Raises `UserError`, with nothing written, where that cannot be.
    """
    target = Path(require_on_disk("dst", dst))
    which = which or ("last" if target.suffix == ".pt" or to == "run" else "best")
    source = located(src, which)
    form = _form_of(target, to, is_run=is_dir(source / FOLDER))
    _require_free(target, overwrite)
    use_accelerator("cpu")  # from files to files: there is nothing to compute

    snapshot = _read(src, source, form, data_dir, which)
    snapshot = dataclasses.replace(snapshot, tokenizer=_tokenizer(src, snapshot, tokenizer, required=form == "run"))
    size = sum(value.size for value in jax.tree.leaves(snapshot.params))
    require_room(target.parent, 4 * size * (3 if form == "run" or snapshot.moments is not None else 1), dst)
    try:
        if form == "nanogpt":
            write_nanogpt(target, snapshot)
        else:
            with _folder_when_whole(target) as folder:
                if form == "run":
                    _write_run(folder, target, snapshot)
                elif form == "peft":
                    _write_peft(folder, dst, snapshot)
                else:
                    _write_hf(folder, dst, snapshot)
    except UserError:
        raise
    except Exception as error:  # each library wraps what the system refuses in a way of its own
        cause = system_error(error)
        if cause is None:
            raise
        raise refused(dst, cause, "written") from error
    print(f"{dst}: {size:,} parameters after {snapshot.step:,} iterations, from {src}")


def _read(src: str, source: Path, form: Form, data_dir: str, which: str) -> Snapshot:
    """What lies at `source`, which was asked for as `src`, with all that `form` has a place for."""
    if form == "peft":
        return _read_delta(source, which)
    if is_file(source):
        require_readable(source)
        checkpoint = NanoGPTCheckpoint(source)
        config, step = checkpoint.config, checkpoint.step
        settings = dataclasses.replace(checkpoint.settings(), data_dir=data_dir)
        known = nanogpt_tokenizer(source, checkpoint, Path(data_dir))
        params, moments = checkpoint.params(), checkpoint.moments()
        return Snapshot(config, params, settings, *known, step, checkpoint.best_val_loss, moments)
    if is_hf_folder(source):
        config = read_hf_config(source)
        settings = Settings(**vars(config), data_dir=data_dir)
        known = hf_tokenizer(src, source, config.vocab_size)
        return Snapshot(config, read_hf_params(source, config), settings, *known)
    if peft_format.is_peft_folder(source):
        return _read_peft(source, form, data_dir)
    require_readable(source)
    return _read_run(source, form, which)


def _read_run(source: Path, form: Form, which: str) -> Snapshot:
    """The best or the last checkpoint of a run, to train on from it; for Hugging Face, its weights alone."""
    checkpoint = open_which(source, which)
    run = checkpoint.run
    settings = stored_settings(run)
    if settings.model != "gpt":
        raise UserError(f"model={settings.model} in {source} has no equal in other programs; convert a gpt")
    if form == "nanogpt" and settings.optimizer != "adamw":
        raise UserError(
            f"optimizer={settings.optimizer} in {source} has no equal in nanoGPT, which has AdamW alone; convert to hf"
        )
    model, tx = build_model(settings, run.vocab_size, "cpu"), make_optimizer(settings)
    if settings.lora_rank is not None:
        params = open_weights(str(source), which=which).load(model, None)
        whole = dataclasses.replace(settings, lora_rank=None)
        return Snapshot(model.config, params, whole, run.tokenizer, step=run.step if form == "hf" else 0)
    like = abstract_state(model, tx)
    snapshot = Snapshot(
        model.config, like.params, settings, run.tokenizer, step=run.step, best_val_loss=run.best_val_loss
    )
    if form == "hf":
        return dataclasses.replace(snapshot, params=checkpoint.params(like.params))
    state = checkpoint.state(like)
    return dataclasses.replace(snapshot, params=state.params, moments=moments_of(state.opt_state))


def _read_delta(source: Path, which: str) -> Snapshot:
    """What LoRA trained in a run, at its best or its last checkpoint."""
    checkpoint = open_which(source, which)
    run, settings = checkpoint.run, stored_settings(checkpoint.run)
    if settings.lora_rank is None:
        raise UserError(f"{source} trained whole weights, which are no adapter; convert it with --to=hf")
    model = build_model(settings, run.vocab_size, "cpu")
    delta = delta_in(checkpoint, settings, model)
    return Snapshot(model.config, delta, settings, run.tokenizer, step=run.step, base=run.base)


def _read_peft(folder: Path, form: Form, data_dir: str) -> Snapshot:
    """An adapter's delta, for a run that trains it on; for other forms, merged into its base."""
    source, weights, config = peft_base(folder, data_dir)
    settings = Settings(**vars(config), data_dir=data_dir)
    model = build_model(settings, config.vocab_size, "cpu")
    known = Known(weights.tokenizer, weights.assumed)
    if form != "run":
        return Snapshot(config, open_weights(str(folder), data_dir).load(model, None), settings, *known)
    delta, rank, alpha, targets, _ = peft_format.read_peft(folder, config)
    settings = dataclasses.replace(
        settings, init_from=source, lora_rank=rank, lora_alpha=alpha, lora_targets=targets
    )  # fmt: skip
    base = bases.described(source, settings.which, weights.load(model, None))
    return Snapshot(config, delta, settings, *known, base=base)


def _write_run(folder: Path, out_dir: Path, snapshot: Snapshot) -> None:
    """Make `folder`, which is to be `out_dir`, a run that stands at the snapshot's step."""
    assert snapshot.tokenizer is not None  # a run without one is refused before anything is written
    settings = dataclasses.replace(snapshot.settings, out_dir=str(out_dir))
    tx = make_optimizer(settings)
    state = jax.jit(lambda params: init_state(params, tx, settings.seed))(snapshot.params)
    if snapshot.moments is not None:
        opt_state = with_moments(state.opt_state, snapshot.moments, snapshot.step)
        state = dataclasses.replace(state, opt_state=jax.device_put(opt_state))
    state = dataclasses.replace(state, step=jnp.asarray(snapshot.step, state.step.dtype))
    loss = snapshot.best_val_loss
    run = RunDocument(
        vars(settings), snapshot.tokenizer, snapshot.config.vocab_size, snapshot.step, evaluated=loss is not None,
        val_loss=loss, best_val_loss=loss, base=snapshot.base,
    )  # fmt: skip
    with contextlib.closing(CheckpointWriter(folder)) as checkpoints:
        checkpoints.save(state, run)
    write_config(folder, settings)


def _write_peft(folder: Path, dst: str, snapshot: Snapshot) -> None:
    """Write the delta as `PeftModel.from_pretrained` reads it, over a base that transformers has to read."""
    settings, base = snapshot.settings, str((snapshot.base or {})["source"])
    adapter = peft_format.Adapter(
        snapshot.params, settings.lora_rank or 1, settings.lora_alpha, settings.lora_targets, base
    )
    peft_format.write_peft(folder, snapshot.config, adapter)
    if exists(Path(base)) and not is_hf_folder(Path(base)):
        print(f"{dst} belongs to {base}, which transformers does not read: convert that too", file=sys.stderr)


def _write_hf(folder: Path, dst: str, snapshot: Snapshot) -> None:
    """Write the model as `from_pretrained` reads it, and its tokenizer beside it where that is known and at hand."""
    tokenizer, why = None, "what its tokens are is not known"
    if snapshot.tokenizer is not None:
        try:
            tokenizer = load_tokenizer(snapshot.tokenizer)
        except UserError as error:
            if snapshot.tokenizer != {"type": "gpt2"}:
                raise
            why = f'AutoTokenizer.from_pretrained("gpt2") is its tokenizer ({in_short(error)})'
    ends = (None, None) if tokenizer is None else (begin_of(tokenizer), tokenizer.eot_token)
    write_hf(folder, snapshot.config, snapshot.params, *ends)
    if tokenizer is None:
        print(f"{dst} has no tokenizer.json: {why}", file=sys.stderr, flush=True)
    else:
        write_tokenizer(folder, tokenizer, snapshot.config.block_size)


def _tokenizer(source: str, snapshot: Snapshot, named: str | None, required: bool) -> dict[str, Any] | None:
    """The tokenizer in the `meta.json` that is named, or else the one that is known."""
    size = snapshot.config.vocab_size
    if named is None:
        if snapshot.tokenizer is None and required:
            raise UserError(
                f"{source} does not say what its {size:,} tokens are; name the meta.json of the data set it was "
                "trained on with --tokenizer=PATH"
            )
        if snapshot.assumed is not None:
            print(snapshot.assumed, file=sys.stderr, flush=True)
        return snapshot.tokenizer
    path = Path(named)
    meta = load_meta(path if is_dir(path) else path.parent)
    if meta.vocab_size > size:
        raise UserError(f"tokenizer={named} has {meta.vocab_size:,} tokens where {source} has {size:,}; name another")
    return meta.tokenizer


def _form_of(target: Path, to: Folder | None, is_run: bool) -> Form:
    if target.suffix != ".pt":
        return to or ("hf" if is_run else "run")
    if to is not None:
        raise UserError(f"to={to} is a folder and {target} ends in .pt, as nanoGPT's files do; leave --to out")
    return "nanogpt"


def _require_free(target: Path, overwrite: bool) -> None:
    """Refuse to replace what exists unasked, and what holds more than conversions and runs write in any case."""
    if not exists(target):
        return
    if not overwrite:
        raise UserError(f"{target} exists; add --overwrite to replace it, or name another")
    if target.suffix == ".pt" and not is_file(target):
        raise UserError(f"{target} is a folder and cannot become a file; name another")
    if target.suffix != ".pt":
        if not is_dir(target):
            raise UserError(f"{target} is a file and cannot become a folder; name another")
        others = sorted(set(names_in(target)) - _WRITTEN)
        if others:
            raise UserError(f"{target} holds {others[0]}, which no conversion wrote; move it away, or name another")


@contextlib.contextmanager
def _folder_when_whole(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that takes its name, and its place, once the block ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(beside=target) as neighbour:
        new, old = neighbour / "new", neighbour / "old"
        new.mkdir()
        yield new

        def put_back() -> None:
            if exists(old) and not exists(target):
                old.rename(target)

        with undone_by_signals(put_back):
            try:
                if exists(target):
                    target.rename(old)
                new.rename(target)
            except BaseException:
                put_back()
                raise
