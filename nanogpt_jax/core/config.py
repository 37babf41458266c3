"""Every setting of a run, in one frozen dataclass under nanoGPT's own names, with its limits.

A `Settings` that exists is valid: `__post_init__` refuses the rest with a `UserError` of one line. Nothing here reads a
file, a command line or a device; `cli/` does that and builds a `Settings` from what it finds.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_type_hints, no_type_check

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.limits import (
    coerced,
    require_32_bits,
    require_at_least,
    require_at_most,
)
from nanogpt_jax.core.shape import ACTIVATIONS, NORMS, POSITIONS, GPTConfig

OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("cosine", "wsd")
WHICH = ("best", "last")
UNKNOWN = ("refuse", "drop", "space")  # what may become of characters that a vocabulary lacks
DTYPES = ("auto", "float32", "bfloat16")
ACCELERATORS = ("auto", "cpu", "gpu", "tpu")
KERNELS = ("auto", "xla", "cudnn", "splash")
PRETRAINED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
BASE_TYPES = ("float32", "bfloat16", "int8")
PLACEMENT = "devices"  # the group of settings that say where a run runs, and so are not part of what it is


@functools.cache
def _hints() -> dict[str, Any]:
    """The types of `Settings`, whose annotations are read once."""
    return get_type_hints(Settings)


def setting(default: Any, group: str, help: str, choices: tuple[str, ...] = ()) -> Any:
    """A dataclass field with what the command line needs to know of it."""
    return field(default=default, metadata={"group": group, "help": help, "choices": choices})


@dataclass(frozen=True)
class Settings:
    """All settings of a training run; the defaults are nanoGPT's own, those of GPT-2 124M on OpenWebText.

    Each field states its default, its group and its meaning, as ``python train.py --help`` shows them. Lengths are in
    tokens, durations in updates (iterations) if nothing else is said. A value out of range is a `UserError`.
    """

    # fmt: off
    out_dir: str = setting("out", "run", "folder, or s3:// or gs:// address, that receives checkpoints, metrics.jsonl, config.json and loss.png; where none is given, the preset's, with the data set's name after it if that is not the preset's own")
    init_from: str = setting("scratch", "run", "scratch, resume, gpt2, gpt2-medium, gpt2-large, gpt2-xl, another GPT-2, Llama or Qwen3 of Hugging Face's hub as ORGANIZATION/NAME, or a path: a run's folder, a nanoGPT ckpt.pt, a Hugging Face folder, a PEFT adapter's")
    which: Literal["best", "last"] = setting("best", "run", "the weights of a run that init_from names: with its lowest validation loss, or the last", WHICH)
    eval_interval: int = setting(2000, "run", "iterations between two evaluations")
    log_interval: int = setting(1, "run", "iterations between two lines of training loss")
    eval_iters: int = setting(200, "run", "batches averaged for each split at an evaluation")
    eval_only: bool = setting(False, "run", "print the loss over the whole validation split and stop")
    patience: int | None = setting(None, "run", "evaluations without a better validation loss after which a run ends; none: it goes on to max_iters")
    always_save_checkpoint: bool = setting(True, "run", "save at every evaluation, not only at a better validation loss")
    save_interval: int | None = setting(None, "run", "iterations between two saves, besides those at evaluations; none: only those")
    nan_policy: Literal["stop", "skip"] = setting("stop", "run", "a loss or gradient that is not finite: stop, or skip the update and count it", ("stop", "skip"))
    allow_changes: bool = setting(False, "run", "resume although the data, or settings that make other updates, have changed")
    profile: str | None = setting(None, "run", "folder that receives a trace of updates 10 to 19, for TensorBoard or Perfetto; none: no trace")
    tensorboard: bool = setting(False, "run", "write event files for TensorBoard into out_dir/tensorboard as well")
    wandb: bool = setting(False, "run", "log to Weights & Biases as well")
    wandb_project: str = setting("nanogpt-jax", "run", "project at Weights & Biases")
    wandb_run_name: str | None = setting(None, "run", "the run's name there; none: one that it makes up")
    seed: int = setting(1337, "run", "the one number all randomness is derived from")

    dataset: str = setting("openwebtext", "data", "name of the data set, a folder of data_dir")
    data_dir: str = setting("data", "data", "folder, or s3:// or gs:// address, that holds the data sets")
    with_replacement: bool = setting(True, "data", "draw each window of a text anew from all, as nanoGPT does; False: each comes once an epoch, as examples do in any case")
    segments: bool = setting(True, "data", "of a data set of examples, those in one row do not see each other")
    batch_size: int = setting(12, "data", "sequences in one micro-batch")
    gradient_accumulation_steps: int = setting(40, "data", "micro-batches averaged for one update")

    model: Literal["gpt", "bigram"] = setting("gpt", "model", "gpt, or bigram: one table of next-token logits", ("gpt", "bigram"))
    block_size: int = setting(1024, "model", "longest context, in tokens")
    n_layer: int = setting(12, "model", "number of blocks")
    n_head: int = setting(12, "model", "attention heads in a block")
    n_embd: int = setting(768, "model", "width of the residual stream, a multiple of n_head if head_size does not say otherwise")
    vocab_size: int | None = setting(None, "model", "rows of the token table; none: as many as the tokenizer has")
    dropout: float = setting(0.0, "model", "probability of dropping an activation in training")
    bias: bool = setting(False, "model", "biases in linear layers and layer norms, as in GPT-2")
    activation: Literal["gelu", "gelu_new", "relu", "relu2", "swiglu", "geglu"] = setting("gelu", "model", "MLP non-linearity: exact GELU, its tanh form, ReLU, its square, or a gated MLP with SiLU or GELU", ACTIVATIONS)
    qkv_bias: bool | None = setting(None, "model", "bias of queries, keys and values; none: as bias")
    tie_word_embeddings: bool = setting(True, "model", "the head shares the token table")
    lm_head_bias: bool = setting(False, "model", "bias of an untied head")
    position: Literal["learned", "rope"] = setting("learned", "model", "a learned table of positions, or rotary ones", POSITIONS)
    rope_theta: float = setting(10_000.0, "model", "base of the rotary frequencies")
    rope_scaling: str | None = setting(None, "model", "Llama 3's scaling of them, as llama3:FACTOR,LOW,HIGH,ORIGINAL; none: none")
    norm: Literal["layer", "rms"] = setting("layer", "model", "layer norm or RMS norm", NORMS)
    norm_epsilon: float = setting(1e-5, "model", "what is added to a variance before its root divides")
    qk_norm: bool = setting(False, "model", "RMS norm of each head's queries and keys")
    n_kv_head: int | None = setting(None, "model", "heads of keys and values, a divisor of n_head (grouped queries); none: n_head")
    head_size: int | None = setting(None, "model", "width of an attention head; none: n_embd / n_head")
    mlp_size: int | None = setting(None, "model", "hidden units of an MLP; none: 4 n_embd")
    token_shift: bool = setting(False, "model", "each token's embedding with a learned share of the one before it")
    logit_softcap: float | None = setting(None, "model", "c, for logits of c tanh(logits / c); none: as they are")
    proj_init_scale: float = setting(1.0, "model", "factor on the initial spread of a block's two projections; 0 starts them at zero")

    optimizer: Literal["adamw", "muon"] = setting("adamw", "optimizer", "AdamW for all; or Muon for the matrices of blocks, and AdamW for the rest", OPTIMIZERS)
    learning_rate: float = setting(6e-4, "optimizer", "largest learning rate; of AdamW")
    max_iters: int = setting(600_000, "optimizer", "number of updates")
    weight_decay: float = setting(1e-1, "optimizer", "AdamW's decay, applied to matrices only")
    beta1: float = setting(0.9, "optimizer", "decay of AdamW's first moment")
    beta2: float = setting(0.95, "optimizer", "decay of AdamW's second moment")
    grad_clip: float = setting(1.0, "optimizer", "largest global norm of the gradient; 0 turns clipping off")
    muon_learning_rate: float = setting(0.02, "optimizer", "largest learning rate of Muon, under the same schedule")
    muon_momentum: float = setting(0.95, "optimizer", "decay of Muon's sum of gradients")
    decay_lr: bool = setting(True, "optimizer", "warm up, then decay; off: a constant learning rate")
    schedule: Literal["cosine", "wsd"] = setting("cosine", "optimizer", "how it decays: by a cosine; or wsd: hold, then fall in a line", SCHEDULES)
    cooldown_fraction: float = setting(0.4, "optimizer", "share of lr_decay_iters over which wsd falls")
    warmup_iters: int = setting(2000, "optimizer", "iterations of linear warm-up")
    lr_decay_iters: int = setting(600_000, "optimizer", "iteration at which min_lr is reached")
    min_lr: float = setting(6e-5, "optimizer", "learning rate after the decay")

    lora_rank: int | None = setting(None, "lora", "tune no weights, but two matrices of this rank beside each of them (LoRA); none: tune all")
    lora_alpha: float = setting(16.0, "lora", "their product is scaled by lora_alpha / lora_rank")
    lora_targets: str = setting("attn,mlp", "lora", "which have them: attn, mlp, or single layers, as in attn.c_attn,mlp.c_fc; with rotary positions also attn.q, attn.k, attn.v")
    lora_base: Literal["float32", "bfloat16", "int8"] = setting("float32", "lora", "how the matrices of blocks lie in memory, which are not tuned", BASE_TYPES)

    accelerator: Literal["auto", "cpu", "gpu", "tpu"] = setting("auto", "system", "which kind of device to run on", ACCELERATORS)
    dtype: Literal["auto", "float32", "bfloat16"] = setting("auto", "system", "type of matrix products; auto: bfloat16 on TPU and on GPU from Ampere on", DTYPES)
    attention: Literal["auto", "xla", "cudnn", "splash"] = setting("auto", "system", "attention kernel", KERNELS)
    remat: bool = setting(False, "system", "compute each block again on the way back instead of keeping it: less memory, a third more work")

    mesh: str = setting("auto", PLACEMENT, "how devices are laid out, as in data:2,fsdp:4,tensor:2; auto: all of them along data")
    coordinator: str | None = setting(None, PLACEMENT, "HOST:PORT of process 0, for a job of several processes")
    num_processes: int | None = setting(None, PLACEMENT, "processes in the job")
    process_id: int | None = setting(None, PLACEMENT, "which of them this is, from 0")
    connect_timeout: int = setting(300, PLACEMENT, "seconds to wait for the other processes at the start")
    compile_only: str | None = setting(None, PLACEMENT, "compile for a TPU slice such as v5e:4x4, or GPUs such as h100:8 or h100:2x8 (two hosts of eight), without having them, say what a step takes there, and stop")
    # fmt: on

    def __post_init__(self) -> None:
        hints = _hints()
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            object.__setattr__(self, f.name, coerced(f.name, value, hints[f.name], f.metadata["choices"]))
        require_32_bits(self)
        for name in ("eval_interval", "log_interval", "eval_iters", "batch_size", "gradient_accumulation_steps"):
            require_at_least(name, getattr(self, name), 1)
        for name in ("save_interval", "patience"):
            if getattr(self, name) is not None:
                require_at_least(name, getattr(self, name), 1)
        for name in ("max_iters", "warmup_iters", "lr_decay_iters", "seed"):
            require_at_least(name, getattr(self, name), 0)
        for name in ("learning_rate", "muon_learning_rate", "min_lr", "weight_decay", "grad_clip"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"{name}={value} is not a finite number of at least 0; choose one that is")
        for name in ("beta1", "beta2", "muon_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} is outside [0, 1); choose for example 0.9 or 0.95")
        if not 0 <= self.cooldown_fraction <= 1:
            raise UserError(f"cooldown_fraction={self.cooldown_fraction} is outside [0, 1]; choose for example 0.4")
        if self.optimizer == "muon" and self.model == "bigram":
            raise UserError("optimizer=muon is for the matrices of blocks, and model=bigram has none; use adamw")
        if self.lora_rank is not None:
            self._check_lora(self.lora_rank)
        if self.lm_head_bias and self.tie_word_embeddings:
            raise UserError("lm_head_bias=True needs a head of its own; add tie_word_embeddings=False")
        for name in ("out_dir", "init_from", "dataset", "data_dir", "profile"):
            value = getattr(self, name)
            if value is not None and (not value or "\0" in value):
                raise UserError(f"{name}={value!r} is not a name a file system takes; give one")
        self._check_placement()
        self.gpt_config(vocab_size=self.vocab_size or 1)  # checks the shape

    def _check_lora(self, rank: int) -> None:
        require_at_least("lora_rank", rank, 1)
        if not 0 < self.lora_alpha < math.inf:
            raise UserError(f"lora_alpha={self.lora_alpha} is not a finite number above 0; choose for example 16")
        for name, value in (("optimizer", "adamw"), ("model", "gpt")):
            if getattr(self, name) != value:
                raise UserError(f"{name}={getattr(self, name)} has no LoRA; choose {value}, or leave lora_rank out")
        if self.init_from == "scratch":
            raise UserError(f"lora_rank={rank} tunes weights that are there; name them with init_from")

    def _check_placement(self) -> None:
        require_at_least("connect_timeout", self.connect_timeout, 1)
        coordinator, processes, process_id = self.coordinator, self.num_processes, self.process_id
        if coordinator is None and processes is None and process_id is None:
            return
        if coordinator is None or processes is None or process_id is None:
            job = {"coordinator": coordinator, "num_processes": processes, "process_id": process_id}
            missing = next(name for name, value in job.items() if value is None)
            raise UserError(f"{missing} is missing; give all three, coordinator, num_processes and process_id")
        host, _, port = coordinator.rpartition(":")
        if not (host and port.isascii() and port.isdigit() and 0 < int(port) < 65_536):
            raise UserError(f"coordinator={coordinator!r} is not HOST:PORT; give the address of process 0")
        require_at_least("num_processes", processes, 1)
        require_at_least("process_id", process_id, 0)
        require_at_most("process_id", process_id, processes - 1, "processes are counted from 0")

    def gpt_config(self, vocab_size: int) -> GPTConfig:
        """The model's shape for a tokenizer of `vocab_size` tokens, padded to `self.vocab_size` where that is larger.

        Raises `UserError` if `self.vocab_size` is set and smaller than the tokenizer's.
        """
        if self.vocab_size is not None and self.vocab_size < vocab_size:
            raise UserError(
                f"vocab_size={self.vocab_size} is smaller than the tokenizer's {vocab_size} tokens; "
                f"choose at least {vocab_size}, or leave it out"
            )
        shape = {f.name: getattr(self, f.name) for f in dataclasses.fields(GPTConfig) if f.name != "vocab_size"}
        return GPTConfig(**shape, vocab_size=self.vocab_size or vocab_size)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Sequences of one update: (batch_size,), with an axis of micro-batches in front where there are several."""
        micro_batches = self.gradient_accumulation_steps
        return (self.batch_size,) if micro_batches == 1 else (micro_batches, self.batch_size)

    @property
    def lora_scale(self) -> float:
        """The factor of a delta's products: lora_alpha / lora_rank."""
        return self.lora_alpha / (self.lora_rank or 1)

    @property
    def tokens_per_iter(self) -> int:
        """Tokens that one update learns from."""
        return self.gradient_accumulation_steps * self.batch_size * self.block_size


no_type_check(Settings.__init__)  # likewise

PLACEMENT_SETTINGS = tuple(f.name for f in dataclasses.fields(Settings) if f.metadata["group"] == PLACEMENT)
