"""nanoGPT's `ckpt.pt`: a model, its settings and AdamW's moments, read and written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import numpy as np
import optax

from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.limits import coerced
from nanogpt_jax.core.shape import GPTConfig
from nanogpt_jax.core.train_step import Params
from nanogpt_jax.data.files import replace_when_whole
from nanogpt_jax.weights.foreign_files import arrays_of, reading, torch_for, unpickled
from nanogpt_jax.weights.state_dicts import HEAD, TABLE, optimizer_order, params_of, require_expressible, state_dict_of

_NANOGPT_SHAPE = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "dropout", "bias")
# Besides its shape, what a nanoGPT run and one of ours both have, under one name.
_NANOGPT_SETTINGS = (
    "eval_interval", "log_interval", "eval_iters", "always_save_checkpoint", "dataset", "gradient_accumulation_steps",
    "batch_size", "learning_rate", "max_iters", "weight_decay", "beta1", "beta2", "grad_clip", "decay_lr",
    "warmup_iters", "lr_decay_iters", "min_lr",
)  # fmt: skip
_TOKENIZER = "tokenizer"  # a key of ours, which nanoGPT does not look at
_NO_LOSS_YET = 1e9  # what nanoGPT starts from


def gpt_config_of_nanogpt(model_args: Any) -> GPTConfig:
    """The shape that the `model_args` of a nanoGPT checkpoint describe; what they leave out has nanoGPT's default.

    Raises `UserError` for an argument that nanoGPT's model does not take.
    """
    if not isinstance(model_args, dict):
        raise UserError(f"model_args is a {type(model_args).__name__}; it is not of nanoGPT, name another")
    hints = get_type_hints(GPTConfig)
    for name in model_args:
        if name not in _NANOGPT_SHAPE:
            raise UserError(
                f"model_args has {name!r}, which nanoGPT's model does not take; it is of another program, name another"
            )
    return GPTConfig(**{name: coerced(name, value, hints[name], ()) for name, value in model_args.items()})


def nanogpt_model_args_of(config: GPTConfig) -> dict[str, Any]:
    """The arguments with which nanoGPT makes the same model. Raises `UserError` if there is none."""
    require_expressible(config, "nanogpt")
    return {name: getattr(config, name) for name in _NANOGPT_SHAPE}


class Moments(NamedTuple):
    """AdamW's memory: the number of updates, and the running means of the gradients and of their squares."""

    count: int  # type: ignore[assignment]  # optax's name, and a tuple's method
    mu: Params
    nu: Params


def moments_of(opt_state: optax.OptState) -> Moments:
    """The moments inside an optax state. Raises `UserError` if its optimizer is not AdamW."""
    here = _in_adam(opt_state)
    count, mu, nu = (optax.tree.get(opt_state, name, filtering=here) for name in Moments._fields)
    return Moments(int(count), mu, nu)


def with_moments(opt_state: optax.OptState, moments: Moments, step: int) -> optax.OptState:
    """`opt_state` with AdamW's moments, and a learning-rate schedule that stands before update `step`."""
    opt_state = optax.tree.set(opt_state, count=np.asarray(step, np.int32))  # every counter; AdamW's own comes next
    count = np.asarray(moments.count, np.int32)
    return optax.tree.set(opt_state, _in_adam(opt_state), count=count, mu=moments.mu, nu=moments.nu)


def _in_adam(opt_state: optax.OptState) -> Callable[[tuple[Any, ...], Any], bool]:
    """What tells optax which fields are AdamW's: those that lie beside ``mu``, wherever the chain has it."""
    found = optax.tree.get_all_with_path(opt_state, "mu")
    if len(found) != 1:
        raise UserError(
            "the run's optimizer is not AdamW, the only one whose moments nanoGPT has; convert to hf instead"
        )
    where = found[0][0][:-1]
    return lambda path, _: path[:-1] == where


class NanoGPTCheckpoint:
    """A nanoGPT `ckpt.pt`, opened; its tensors are read when asked for.

    Attributes:
        config: the model's shape.
        step: updates made.
        best_val_loss: the loss it was saved with; None where it has none.
        tokenizer: the JSON of the one it was trained with, if we wrote it; nanoGPT's own name a data set instead.
    """

    def __init__(self, path: Path) -> None:
        """Raises `UserError` for what is not a checkpoint of nanoGPT's, and for a file that could run code."""
        self._path = path
        self._document = unpickled(path)
        for name in ("model", "model_args"):
            if not isinstance(self._document, dict) or not isinstance(self._document.get(name), dict):
                raise UserError(f"{path} is not a nanoGPT checkpoint (it has no {name!r}); name a ckpt.pt of nanoGPT's")
        with reading(path):
            self.config = gpt_config_of_nanogpt(self._document["model_args"])
            self.step = coerced("iter_num", self._document.get("iter_num", 0), int, ())
            loss = float(self._document.get("best_val_loss", _NO_LOSS_YET))
            self.best_val_loss = loss if loss < _NO_LOSS_YET else None
            self.tokenizer = self._document.get(_TOKENIZER)
            if self.tokenizer is not None and not isinstance(self.tokenizer, dict):
                raise UserError(f"its tokenizer is a {type(self.tokenizer).__name__}; it is damaged, get it anew")

    def data_set(self, data_dir: Path) -> Path | None:
        """The folder of the data set it was trained on; None where it does not say."""
        with reading(self._path):
            name = self._document.get("config", {}).get("dataset")
            return None if name is None else data_dir / name

    def settings(self) -> Settings:
        """Its shape, and those of nanoGPT's settings that ours has too. Raises `UserError` for one out of range."""
        with reading(self._path):
            config = self._document.get("config", {})
            settings = {name: _as_ours(name, config[name]) for name in _NANOGPT_SETTINGS if name in config}
            if settings.get("eval_iters") == 0:  # nanoGPT's estimates are not a number then
                del settings["eval_iters"]
            if config.get("dtype") == "float32":
                settings["dtype"] = "float32"
            # A resumed run of nanoGPT's goes by what its optimizer remembers, whatever `config` says.
            for group in (self._document.get("optimizer") or {}).get("param_groups", [])[:1]:
                beta1, beta2 = group["betas"]
                settings |= {"beta1": beta1, "beta2": beta2, "weight_decay": group["weight_decay"]}
            return Settings(**settings, **vars(self.config))

    def params(self) -> Params:
        """The parameters. Raises `UserError` if they do not fit `config`."""
        with reading(self._path):
            return params_of(arrays_of(self._document["model"]), self.config, "nanogpt")

    def moments(self) -> Moments | None:
        """AdamW's moments; None where it has made no update. Raises `UserError` if they do not fit `config`."""
        optimizer = self._document.get("optimizer")
        if not optimizer:
            return None
        with reading(f"{self._path}: optimizer"):
            if not optimizer["state"]:
                return None
            indices = [i for group in optimizer["param_groups"] for i in group["params"]]
            names = optimizer_order(self.config, decayed=len(optimizer["param_groups"][0]["params"]))
            if len(indices) != len(names):
                raise UserError(
                    f"it has moments of {len(indices)} tensors where the model has {len(names)} tensors; get it anew"
                )
            entries = {name: optimizer["state"][i] for name, i in zip(names, indices, strict=True)}
            count, *others = {int(entry["step"]) for entry in entries.values()}
            if others:
                raise UserError(
                    f"its tensors have made {count} and {others[0]} updates; all must have made as many, get it anew"
                )
            mu, nu = (
                params_of(arrays_of({name: entry[mean] for name, entry in entries.items()}), self.config, "nanogpt")
                for mean in ("exp_avg", "exp_avg_sq")
            )
            return Moments(count, mu, nu)


def _as_ours(name: str, value: Any) -> Any:
    """A setting that nanoGPT is content with in another type than its own: 1e4 iterations, or 1 for yes."""
    hint = get_type_hints(Settings)[name]
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return bool(value) if hint is bool and value in (0, 1) else value


@dataclass(frozen=True)
class Snapshot:
    """A model and where its training stands, on the way from one format to another.

    Attributes:
        config: the model's shape.
        params: its parameters.
        settings: those of its run.
        tokenizer: the JSON of the one it was trained with; None where that is not known.
        assumed: a line that says so, where that is no more than likely.
        step: updates made.
        best_val_loss: the lowest estimate of the validation loss so far.
        moments: AdamW's; None before the first update.
        base: where `params` are a delta (LoRA), what `bases.described` says of the weights it belongs to.
    """

    config: GPTConfig
    params: Params
    settings: Settings
    tokenizer: dict[str, Any] | None = None
    assumed: str | None = None
    step: int = 0
    best_val_loss: float | None = None
    moments: Moments | None = None
    base: dict[str, Any] | None = None


def write_nanogpt(path: Path, snapshot: Snapshot) -> None:
    """Write a `ckpt.pt` that nanoGPT's `sample.py` and `train.py --init_from=resume` load as one of their own.

    Raises `UserError`, with nothing written, for a model that nanoGPT cannot express.
    """
    config, settings = snapshot.config, snapshot.settings
    model_args = nanogpt_model_args_of(config)
    torch = torch_for(path)
    tensors = {name: torch.tensor(value) for name, value in state_dict_of(snapshot.params, config, "nanogpt").items()}
    tensors[HEAD] = tensors[TABLE]
    names = optimizer_order(config)
    groups = [
        {"params": [tensors[name] for name in names if tensors[name].ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [tensors[name] for name in names if tensors[name].ndim < 2], "weight_decay": 0.0},
    ]
    betas = (settings.beta1, settings.beta2)
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas).state_dict()
    if snapshot.moments is not None:
        count = float(snapshot.moments.count)
        mu, nu = (state_dict_of(each, config, "nanogpt") for each in snapshot.moments[1:])
        optimizer["state"] = {
            i: {"step": torch.tensor(count), "exp_avg": torch.tensor(mu[name]), "exp_avg_sq": torch.tensor(nu[name])}
            for i, name in enumerate(names)
        }
    document = {
        "model": tensors,
        "optimizer": optimizer,
        "model_args": model_args,
        "iter_num": snapshot.step,
        "best_val_loss": _NO_LOSS_YET if snapshot.best_val_loss is None else snapshot.best_val_loss,
        "config": model_args | {name: getattr(settings, name) for name in _NANOGPT_SETTINGS},
    }
    if snapshot.tokenizer is not None:
        document[_TOKENIZER] = snapshot.tokenizer
    with replace_when_whole(path) as file:
        torch.save(document, file)
