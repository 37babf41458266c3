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
    MAX_LAYERS,
    MAX_PARAMETERS,
    MAX_VOCAB_SIZE,
    coerced,
    require_32_bits,
    require_at_least,
    require_at_most,
    require_choice,
)
from nanogpt_jax.core.rope import rope_scaling

ACTIVATIONS = ("gelu", "gelu_new", "relu", "relu2", "swiglu", "geglu")
POSITIONS = ("learned", "rope")
NORMS = ("layer", "rms")
OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("cosine", "wsd")
WHICH = ("best", "last")
DTYPES = ("auto", "float32", "bfloat16")
ACCELERATORS = ("auto", "cpu", "gpu", "tpu")
KERNELS = ("auto", "xla", "cudnn", "splash")
PRETRAINED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
BASE_TYPES = ("float32", "bfloat16", "int8")
PLACEMENT = "devices"  # the group of settings that say where a run runs, and so are not part of what it is


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT: what decides which parameters exist and what they mean.

    The first seven names and their meanings are nanoGPT's. The rest are the options that GPT-2 checkpoints, the models
    of the "GPT from scratch" notebook, and Llama and Qwen3 need. A shape that can't be is a `UserError`.

    Attributes:
        block_size: longest context, in tokens; rows of the position table.
        vocab_size: rows of the token table; at most 2^24.
        n_layer: number of blocks.
        n_head: attention heads in a block.
        n_embd: width of the residual stream; a multiple of `n_head` where `head_size` is None.
        dropout: probability of dropping an activation in training, in [0, 1).
        bias: biases in linear layers and layer norms, as in GPT-2.
        activation: of the MLP: GELU (Hendrycks & Gimpel, 2016), its tanh form as in GPT-2, ReLU or its square (So et
            al., 2021); or of the gate of a gated one, SiLU or GELU (SwiGLU, GEGLU: Shazeer, 2020).
        qkv_bias: bias of queries, keys and values; None: as `bias`.
        tie_word_embeddings: the head shares the token table (Press & Wolf, 2017).
        lm_head_bias: bias of a head of its own.
        position: a table of positions that is learned, or queries and keys that are turned (RoPE: Su et al., 2021).
        rope_theta: base of the rotary frequencies.
        rope_scaling: Llama 3's change of them, as `rope.rope_scaling` reads it.
        norm: layer norm (Ba et al., 2016) or RMS norm (Zhang & Sennrich, 2019).
        norm_epsilon: what keeps either from dividing by zero.
        qk_norm: an RMS norm of each head's queries and keys, before they are turned (Qwen3).
        n_kv_head: heads of keys and values, each read by n_head / n_kv_head heads of queries; None: `n_head`.
        head_size: width of a head; None: n_embd / n_head.
        mlp_size: hidden units of an MLP; None: 4 n_embd.
        logit_softcap: c, for logits of c tanh(logits / c) (Gemma 2, 2024); None: as they are.
        proj_init_scale: factor on the spread with which the two projections of a block start; 0: from zero.
    """

    block_size: int = 1024
    vocab_size: int = 50304
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = True
    activation: Literal["gelu", "gelu_new", "relu", "relu2", "swiglu", "geglu"] = "gelu"
    qkv_bias: bool | None = None  # None: as `bias`
    tie_word_embeddings: bool = True
    lm_head_bias: bool = False
    position: Literal["learned", "rope"] = "learned"
    rope_theta: float = 10_000.0
    rope_scaling: str | None = None
    norm: Literal["layer", "rms"] = "layer"
    norm_epsilon: float = 1e-5
    qk_norm: bool = False
    n_kv_head: int | None = None
    head_size: int | None = None
    mlp_size: int | None = None
    logit_softcap: float | None = None
    proj_init_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "n_kv_head", "head_size", "mlp_size"):
            if getattr(self, name) is not None:
                require_at_least(name, getattr(self, name), 1)
        require_32_bits(self)
        require_at_most("vocab_size", self.vocab_size, MAX_VOCAB_SIZE, "what float32 can count")
        require_at_most("n_layer", self.n_layer, MAX_LAYERS, "each layer is compiled by itself")
        in_block = 2 * (self.n_head + self.kv_heads) * self.head_width + 2 * self.mlp_width
        parameters = self.n_embd * (self.vocab_size + self.block_size + self.n_layer * in_block)
        if parameters > MAX_PARAMETERS:
            raise UserError(
                f"n_embd={self.n_embd} with n_layer={self.n_layer} and block_size={self.block_size} is a model of "
                f"{parameters:.0e} parameters, where machines hold {MAX_PARAMETERS:.0e}; lower one of them"
            )
        if self.head_size is None and self.n_embd % self.n_head:
            near = max(self.n_head, round(self.n_embd / self.n_head) * self.n_head)
            raise UserError(f"n_embd={self.n_embd} is not a multiple of n_head={self.n_head}; try n_embd={near}")
        if self.n_head % self.kv_heads:
            raise UserError(
                f"n_head={self.n_head} is not a multiple of n_kv_head={self.kv_heads}; choose a divisor of it"
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout={self.dropout} is outside [0, 1); choose 0 to turn it off")
        for name, choices in (("activation", ACTIVATIONS), ("position", POSITIONS), ("norm", NORMS)):
            require_choice(name, getattr(self, name), choices)
        for name in ("rope_theta", "norm_epsilon", "logit_softcap"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{name}={value} is not a finite number above 0; choose one that is")
        if not 0 <= self.proj_init_scale < math.inf:
            raise UserError(
                f"proj_init_scale={self.proj_init_scale} is not a finite number of at least 0; choose 1, or 0"
            )
        self._check_rotation()

    def _check_rotation(self) -> None:
        if self.position == "rope" and self.head_width % 2:
            raise UserError(
                f"position=rope turns pairs, and heads of {self.head_width} are odd; choose an even head_size, or another "
                "n_embd or n_head"
            )
        for name in ("rope_theta", "rope_scaling"):
            if self.position == "learned" and getattr(self, name) != getattr(type(self), name):
                raise UserError(f"{name}={getattr(self, name)} has no meaning with position=learned; add position=rope")
        if self.rope_scaling is not None:
            rope_scaling(self.rope_scaling)

    @property
    def head_width(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head if self.head_size is None else self.head_size

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def qkv_cuts(self) -> tuple[int, int]:
        """Where queries end and where keys end among the columns of ``c_attn``, which values follow."""
        queries = self.n_head * self.head_width
        return queries, queries + self.kv_heads * self.head_width

    @property
    def mlp_width(self) -> int:
        """Hidden units of an MLP."""
        return 4 * self.n_embd if self.mlp_size is None else self.mlp_size

    @property
    def has_qkv_bias(self) -> bool:
        """Whether queries, keys and values have a bias."""
        return self.bias if self.qkv_bias is None else self.qkv_bias


no_type_check(GPTConfig.__init__)  # its __post_init__ says what is wrong, in a user's words


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
    out_dir: str = setting("out", "run", "folder that receives checkpoints, metrics.jsonl, config.json and loss.png; where none is given, the preset's, with the data set's name after it if that is not the preset's own")
    init_from: str = setting("scratch", "run", "scratch, resume, gpt2, gpt2-medium, gpt2-large, gpt2-xl, another GPT-2, Llama or Qwen3 of Hugging Face's hub as ORGANIZATION/NAME, or a path: a run's folder, a nanoGPT ckpt.pt, a Hugging Face folder")
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
    data_dir: str = setting("data", "data", "folder that holds the data sets")
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
    dtype: Literal["auto", "float32", "bfloat16"] = setting("auto", "system", "type of matrix products; auto: bfloat16 on GPU and TPU", DTYPES)
    attention: Literal["auto", "xla", "cudnn", "splash"] = setting("auto", "system", "attention kernel", KERNELS)
    remat: bool = setting(False, "system", "compute each block again on the way back instead of keeping it: less memory, a third more work")

    mesh: str = setting("auto", PLACEMENT, "how devices are laid out, as in data:2,fsdp:4,tensor:2; auto: all of them along data")
    coordinator: str | None = setting(None, PLACEMENT, "HOST:PORT of process 0, for a job of several processes")
    num_processes: int | None = setting(None, PLACEMENT, "processes in the job")
    process_id: int | None = setting(None, PLACEMENT, "which of them this is, from 0")
    connect_timeout: int = setting(300, PLACEMENT, "seconds to wait for the other processes at the start")
    compile_only: str | None = setting(None, PLACEMENT, "compile for a TPU slice such as v5e:4x4 without having it, say what a step takes there, and stop")
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
