"""The shape of a model: what decides which parameters exist and what they mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, no_type_check

from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.limits import (
    MAX_LAYERS,
    MAX_PARAMETERS,
    MAX_VOCAB_SIZE,
    require_32_bits,
    require_at_least,
    require_at_most,
    require_choice,
)

ACTIVATIONS = ("gelu", "gelu_new", "relu", "relu2", "swiglu", "geglu")
POSITIONS = ("learned", "rope")
NORMS = ("layer", "rms")


class Llama3Scaling(NamedTuple):
    """How Llama 3 turns slow frequencies slower, for contexts longer than the `original` one (Dubey et al., 2024).

    A wave that fits into the original context fewer than `low` times is slowed by `factor`, one that fits in at least
    `high` times is left alone, and between the two the change is gradual.
    """

    factor: float
    low: float
    high: float
    original: float


def rope_scaling(text: str) -> Llama3Scaling:
    """The scaling that ``llama3:FACTOR,LOW,HIGH,ORIGINAL`` names, for example ``llama3:32,1,4,8192``."""
    kind, _, numbers = text.partition(":")
    try:
        scaling = Llama3Scaling(*(float(number) for number in numbers.split(",")))
    except (TypeError, ValueError):
        scaling = None
    if (
        kind != "llama3"
        or scaling is None
        or not (min(scaling) > 0 and max(scaling) < 1e12 and scaling.low < scaling.high)
    ):
        raise UserError(
            f"rope_scaling={text!r} is no scaling of rotary frequencies; give llama3:FACTOR,LOW,HIGH,ORIGINAL, as in "
            "llama3:32,1,4,8192"
        )
    return scaling


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
        rope_scaling: Llama 3's change of them, as `rope_scaling` reads it.
        norm: layer norm (Ba et al., 2016) or RMS norm (Zhang & Sennrich, 2019).
        norm_epsilon: what keeps either from dividing by zero.
        qk_norm: an RMS norm of each head's queries and keys, before they are turned (Qwen3).
        n_kv_head: heads of keys and values, each read by n_head / n_kv_head heads of queries; None: `n_head`.
        head_size: width of a head; None: n_embd / n_head.
        mlp_size: hidden units of an MLP; None: 4 n_embd.
        token_shift: each token's embedding with a learned share of the one before it (after RWKV: Peng et al., 2023).
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
    token_shift: bool = False
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
                f"position=rope turns pairs, and heads of {self.head_width} are odd; choose an even head_size, or "
                "another n_embd or n_head"
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
