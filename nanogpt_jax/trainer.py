"""The training run, in the order in which things happen: the only place where the pieces meet."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import signal
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

from nanogpt_jax import dataset, prepare
from nanogpt_jax.accelerator import describe
from nanogpt_jax.checkpoint import FOLDER, Checkpoints, RunDocument
from nanogpt_jax.config import Settings
from nanogpt_jax.dataset import TokenFile
from nanogpt_jax.errors import UserError
from nanogpt_jax.loading import SHAPE, Weights, build_model, open_run, open_weights, stored_settings
from nanogpt_jax.optimizer import make_optimizer
from nanogpt_jax.telemetry import CONFIG_FILE, METRICS_FILE, MetricsFile, StepLog, write_config
from nanogpt_jax.training import Params, TrainState, init_params, init_state, make_eval_step, make_train_step

# Tokens in one step of the pass over the whole split: enough to be fast, few enough to fit beside a training step.
_TOKENS_PER_EVAL_STEP = 16_384

EvalStep = Callable[..., Any]


class Data(NamedTuple):
    """Both splits of a data set, and the tokenizer that made them, as JSON."""

    train: TokenFile
    val: TokenFile
    tokenizer: dict[str, Any]
    vocab_size: int


class Stopped(Exception):
    """The run was told to stop by signal `number`, and has saved."""

    def __init__(self, number: int) -> None:
        self.number = number


class Start(NamedTuple):
    """Where a run begins: its settings and data, what it has behind it, and how to get the state it begins with."""

    settings: Settings
    data: Data
    run: RunDocument
    load: Callable[[nn.Module, optax.GradientTransformation], TrainState]


def train(settings: Settings, given: Collection[str] = ()) -> float:
    """Train as `settings` say; the loss over the whole validation split at the end, in nats per token.

    `given` are the settings that were asked for one by one; a model that is loaded must have them.
    All that can be refused is refused, with a `UserError`, before anything is written. Raises `Stopped` after SIGINT or
    SIGTERM.
    """
    settings, data, run, load = _resumed(settings) if settings.init_from == "resume" else _begun(settings, given)
    model = build_model(settings, run.vocab_size, jax.default_backend())
    tx = make_optimizer(settings)
    state = load(model, tx)
    size = sum(p.size for p in jax.tree.leaves(state.params))
    print(f"{describe()}; {np.dtype(model.dtype).name} matrix products, {model.kernel} attention")
    print(f"{size:,} parameters; {settings.tokens_per_iter:,} tokens per iteration", flush=True)
    eval_step = make_eval_step(model)
    if settings.eval_only:
        return _final_loss(eval_step, state.params, data.val, settings.block_size)
    return _update_until_done(settings, data, make_train_step(model, tx), eval_step, state, run)


def _begun(settings: Settings, given: Collection[str]) -> Start:
    """A new run, from fresh parameters or from weights that `init_from` names."""
    if settings.init_from == "scratch":
        data = _open_data(settings)
        run = RunDocument(vars(settings), data.tokenizer, settings.gpt_config(data.vocab_size).vocab_size, step=0)
        return Start(settings, data, run, lambda model, tx: _state_of(init_params(model, settings.seed), tx, settings))
    weights = open_weights(settings.init_from, settings.data_dir)
    settings = _with_shape_of(settings, weights, given)
    data = _open_data(settings)
    _require_data_of(weights, data, settings.init_from)
    run = RunDocument(vars(settings), data.tokenizer, weights.vocab_size, step=0)
    return Start(settings, data, run, lambda model, tx: _state_of(weights.load(model), tx, settings))


def _resumed(settings: Settings) -> Start:
    """The run in `out_dir`, from its newest checkpoint."""
    checkpoints, step, run = open_run(Path(settings.out_dir))
    data = _open_data(settings)
    _require_same_tokenizer(run.tokenizer, data, settings.out_dir)

    def load(model: nn.Module, tx: optax.GradientTransformation) -> TrainState:
        like = jax.eval_shape(lambda: _state_of(init_params(model, settings.seed), tx, settings))
        return checkpoints.state(step, like)

    return Start(settings, data, dataclasses.replace(run, settings=vars(settings)), load)


def _state_of(params: Params, tx: optax.GradientTransformation, settings: Settings) -> TrainState:
    return jax.jit(lambda params: init_state(params, tx, settings.seed))(params)


def estimate_loss(eval_step: EvalStep, params: Params, data: Data, settings: Settings, step: int) -> dict[str, float]:
    """Mean loss over `eval_iters` random batches of each split: nanoGPT's estimate, drawn anew at every step."""
    shape = (settings.batch_size,)
    ones = np.ones((settings.batch_size, settings.block_size), np.float32)
    losses = {}
    for stream, file in (("train_eval", data.train), ("val", data.val)):
        first = step * settings.eval_iters
        losses[stream] = [
            eval_step(params, dataset.random_batch(file, stream, settings.seed, i, shape, settings.block_size), ones)
            for i in range(first, first + settings.eval_iters)
        ]
    return {stream: float(np.mean(jax.device_get(sums)) / ones.size) for stream, sums in losses.items()}


def whole_split_loss(eval_step: EvalStep, params: Params, file: TokenFile, block_size: int) -> tuple[float, int]:
    """Mean loss over every token of a split but its first, read in windows of `block_size`, and their number."""
    windows = max(1, _TOKENS_PER_EVAL_STEP // block_size)
    sums = [eval_step(params, *part) for part in dataset.whole_split(file, windows, block_size)]
    targets = len(file.tokens) - 1
    return float(np.sum(jax.device_get(sums), dtype=np.float64)) / targets, targets


def resumed_settings(out_dir: str, changes: dict[str, Any]) -> Settings:
    """The settings of the run in `out_dir`, with what the command line says anew; the model's shape may not change."""
    _, step, run = open_run(Path(out_dir))
    before = stored_settings(run)
    after = stored_settings(run, {**changes, "out_dir": out_dir, "init_from": "resume"})
    for name in SHAPE:
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            raise UserError(f"{name}={new} does not fit the run in {out_dir}, which has {name}={old}; leave it out")
    if step > after.max_iters:
        raise UserError(f"max_iters={after.max_iters} lies behind the run in {out_dir}, at iteration {step}; raise it")
    return after


def _update_until_done(
    settings: Settings, data: Data, train_step: Callable, eval_step: EvalStep, state: TrainState, run: RunDocument
) -> float:
    """The loop: evaluate and save when due, update, log late; from `run.step` to `max_iters`, and the final loss."""
    with _writing(settings, run) as (checkpoints, metrics), _signals() as received:
        log = StepLog(settings, metrics, state.params, run.seconds)
        while True:
            step = run.step
            done = step >= settings.max_iters
            if not run.evaluated and (done or step % settings.eval_interval == 0):
                log.flush()
                losses = estimate_loss(eval_step, state.params, data, settings, step)
                print(f"step {step}: train loss {losses['train_eval']:.4f}, val loss {losses['val']:.4f}", flush=True)
                for split, loss in losses.items():
                    metrics.write(step, split, loss, learning_rate=log.learning_rate(step), seconds=log.seconds())
                better = run.best_val_loss is None or losses["val"] < run.best_val_loss
                best = losses["val"] if better else run.best_val_loss
                run = dataclasses.replace(run, evaluated=True, best_val_loss=best, seconds=log.seconds())
                if (better or settings.always_save_checkpoint or done) and step > 0:
                    checkpoints.save(state, run, losses["val"])
                log.restart()
            if done or received:
                break
            state, step_metrics = train_step(state, training_batch(settings, data, step))
            log.add(step, step_metrics)
            run = dataclasses.replace(run, step=step + 1, evaluated=False)
        if not done:
            log.flush()
            if checkpoints.latest() != step:
                checkpoints.save(state, dataclasses.replace(run, seconds=log.seconds()), None)
            raise Stopped(received[0])
        loss = _final_loss(eval_step, state.params, data.val, settings.block_size)
        metrics.write(step, "val_whole", loss, seconds=log.seconds())
    return loss


def _final_loss(eval_step: EvalStep, params: Params, val: TokenFile, block_size: int) -> float:
    loss, targets = whole_split_loss(eval_step, params, val, block_size)
    print(f"final val loss {loss:.4f} (whole split, {targets} tokens)", flush=True)
    return loss


def training_batch(settings: Settings, data: Data, step: int) -> dataset.Batch:
    """The batch of update `step`, with a leading axis for micro-batches where there are several."""
    shape: tuple[int, ...] = (settings.batch_size,)
    if settings.gradient_accumulation_steps > 1:
        shape = (settings.gradient_accumulation_steps, *shape)
    return dataset.random_batch(data.train, "train", settings.seed, step, shape, settings.block_size)


def _open_data(settings: Settings) -> Data:
    """Open both splits of the data set, preparing it first if it is missing and one we know how to make."""
    folder = Path(settings.data_dir) / settings.dataset
    if settings.dataset in prepare.KNOWN and not any((folder / name).exists() for name in ("meta.json", "train.bin")):
        print(f"{folder} is not prepared yet: preparing it", flush=True)
        prepare.KNOWN[settings.dataset](folder)
    meta = prepare.load_meta(folder)
    splits = [
        dataset.open_tokens(folder / f"{split}.bin", meta.vocab_size, settings.block_size, tokens)
        for split, tokens in (("train", meta.train_tokens), ("val", meta.val_tokens))
    ]
    return Data(*splits, meta.tokenizer, meta.vocab_size)


def _with_shape_of(settings: Settings, weights: Weights, given: Collection[str]) -> Settings:
    """`settings` with the model that the weights are of; only `dropout` stays ours, as in nanoGPT.

    A smaller `block_size` that is asked for stays too: the model is cropped to it. Raises `UserError` where anything
    else that is asked for is not what the weights have.
    """
    shape = weights.settings | {"vocab_size": weights.vocab_size}
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
    if weights.tokenizer is not None:
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
    if tokenizer != data.tokenizer:
        raise UserError(
            f"the weights in {source} were trained with another tokenizer than {data.train.path.parent} was made with; "
            "name the data set they belong to, or prepare this one with their tokenizer"
        )


@contextlib.contextmanager
def _writing(settings: Settings, run: RunDocument) -> Iterator[tuple[Checkpoints, MetricsFile]]:
    """The run's folder, open for writing; what is being saved when the block ends is finished."""
    out_dir = Path(settings.out_dir)
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        if settings.init_from != "resume":
            _set_previous_run_aside(out_dir)
        write_config(out_dir, settings)
        metrics = MetricsFile(out_dir, step=run.step, evaluated=run.evaluated)
        checkpoints = Checkpoints(out_dir)
    except OSError as error:
        raise UserError(f"out_dir={out_dir} cannot be written ({error.strerror or error}); name another") from error
    with contextlib.closing(metrics), contextlib.closing(checkpoints):
        yield checkpoints, metrics


def _set_previous_run_aside(out_dir: Path) -> None:
    """Move what an earlier run left in `out_dir` to `out_dir/previous`, so that starting over loses nothing at once."""
    there = [out_dir / name for name in (FOLDER, METRICS_FILE, CONFIG_FILE) if (out_dir / name).exists()]
    if there:
        aside = out_dir / "previous"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        for path in there:
            path.rename(aside / path.name)
        print(f"{out_dir} held a run: it is in {aside} now", flush=True)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that a first SIGINT or SIGTERM is put into; a second one has its usual effect at once."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for each, usual in before.items():
            signal.signal(each, usual)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, usual in before.items():
            signal.signal(number, usual)
