"""PyTorch twins of the notebook's two models, written from their formulas, for `test_compare.py` to compare with.

The final model keeps its parameters as the notebook does, each head with key, query and value matrices of its own, so
that the packed `c_attn` of `model.py` is checked against something that is laid out otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flax.traverse_util import flatten_dict, unflatten_dict
from torch import Tensor, nn

from nanogpt_jax.compare.torch_side import StateDict, TorchSide, adamw, mean_loss
from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.shape import GPTConfig
from nanogpt_jax.core.train_step import Params

LAYER_NORM_EPSILON = 1e-5


class TwinHead(nn.Module):
    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, size, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.einsum("btd,bsd->bts", self.query(x), self.key(x)) / math.sqrt(self.query.out_features)
        future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
        return scores.masked_fill(future, -math.inf).softmax(-1) @ self.value(x)


class TwinBlock(nn.Module):
    def __init__(self, width: int, heads: int, epsilon: float) -> None:
        super().__init__()
        self.heads = nn.ModuleList(TwinHead(width, width // heads) for _ in range(heads))
        self.project = nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.before_heads, self.before_mlp = nn.LayerNorm(width, epsilon), nn.LayerNorm(width, epsilon)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.before_heads(x)
        x = x + self.project(torch.cat([head(normed) for head in self.heads], -1))
        return x + self.narrow(self.widen(self.before_mlp(x)).clamp_min(0))


class TwinGPT(nn.Module):
    """The final model: ReLU, no query, key and value biases, a head of its own with a bias."""

    def __init__(self, config: GPTConfig, epsilon: float = LAYER_NORM_EPSILON) -> None:
        super().__init__()
        width = config.n_embd
        self.tokens, self.positions = nn.Embedding(config.vocab_size, width), nn.Embedding(config.block_size, width)
        self.blocks = nn.Sequential(*(TwinBlock(width, config.n_head, epsilon) for _ in range(config.n_layer)))
        self.last_norm, self.head = nn.LayerNorm(width, epsilon), nn.Linear(width, config.vocab_size)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.tokens(idx) + self.positions.weight[: idx.shape[1]]
        return self.head(self.last_norm(self.blocks(x)))


class TwinBigram(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.table = nn.Embedding(config.vocab_size, config.vocab_size)

    def forward(self, idx: Tensor) -> Tensor:
        return self.table(idx)


def twin(config: GPTConfig, settings: Settings, **options: Any) -> TorchSide:
    """The twin of the model that the settings name, with the optimizer that compares with ours."""
    module = TwinBigram(config) if settings.model == "bigram" else TwinGPT(config, **options)
    names = {"table.weight": ("wte", "embedding")} if settings.model == "bigram" else dict(_names(config))
    heads = [f"heads.{head}" for head in range(config.n_head)]

    def forward(tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = module(tokens)
        return logits, mean_loss(logits, targets)

    def to_torch(params: Params) -> StateDict:
        flat = flatten_dict(params)
        state = {name: _turned(path, np.asarray(flat[path])) for name, path in names.items()}
        for name, packed in [(name, state.pop(name)) for name in names if name.endswith("heads")]:
            parts = np.split(packed, 3 * config.n_head)  # (3 * heads * size, width): every query, then key, then value
            block = name.removesuffix("heads")
            of_head = [f"{block}{head}.{kind}.weight" for kind in ("query", "key", "value") for head in heads]
            state |= dict(zip(of_head, parts, strict=True))
        return state

    def from_torch(state: StateDict) -> Params:
        state = dict(state)
        for name in [name for name in names if name.endswith("heads")]:
            block = name.removesuffix("heads")
            of_head = [f"{block}{head}.{kind}.weight" for kind in ("query", "key", "value") for head in heads]
            state[name] = np.concatenate([state[part] for part in of_head])
        return unflatten_dict({path: _turned(path, state[name]) for name, path in names.items()})

    return TorchSide("twin", module, forward, adamw(module, settings), to_torch, from_torch, settings)


def _names(config: GPTConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The twin's name of each tensor and its path in our tree; all heads of a block stand under one name."""
    yield "tokens.weight", ("wte", "embedding")
    yield "positions.weight", ("wpe", "embedding")
    norms = {"last_norm": ("ln_f",)}
    linears = {"head": ("lm_head",)}
    for layer in range(config.n_layer):
        block, ours = f"blocks.{layer}.", f"h_{layer}"
        yield f"{block}heads", (ours, "attn", "c_attn", "kernel")
        norms |= {f"{block}before_heads": (ours, "ln_1"), f"{block}before_mlp": (ours, "ln_2")}
        linears |= {f"{block}project": (ours, "attn", "c_proj")}
        linears |= {f"{block}widen": (ours, "mlp", "c_fc"), f"{block}narrow": (ours, "mlp", "c_proj")}
    for name, path in norms.items():
        yield f"{name}.weight", (*path, "scale")
    for name, path in linears.items():
        yield f"{name}.weight", (*path, "kernel")
    for name, path in (norms | linears).items():
        yield f"{name}.bias", (*path, "bias")


def _turned(path: tuple[str, ...], value: np.ndarray) -> np.ndarray:
    """PyTorch's linear layers hold (out, in) where ours hold (in, out); contiguous, for `torch.from_numpy`."""
    return np.ascontiguousarray(value.T if path[-1] == "kernel" else value)


@dataclass
class NanoConfig:
    """What nanoGPT's model takes."""

    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool


class NanoBlock(nn.ModuleDict):
    def __init__(self, config: NanoConfig) -> None:
        width, bias = config.n_embd, config.bias
        self.n_head = config.n_head
        attention = {"c_attn": nn.Linear(width, 3 * width, bias), "c_proj": nn.Linear(width, width, bias)}
        mlp = {"c_fc": nn.Linear(width, 4 * width, bias), "c_proj": nn.Linear(4 * width, width, bias)}
        norms = {name: nn.LayerNorm(width, LAYER_NORM_EPSILON, bias=bias) for name in ("ln_1", "ln_2")}
        super().__init__({**norms, "attn": nn.ModuleDict(attention), "mlp": nn.ModuleDict(mlp)})

    def forward(self, x: Tensor) -> Tensor:
        attention, mlp = self["attn"], self["mlp"]
        q, k, v = attention["c_attn"](self["ln_1"](x)).unflatten(-1, (3, self.n_head, -1)).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + attention["c_proj"](y.transpose(1, 2).flatten(2))
        return x + mlp["c_proj"](nn.functional.gelu(mlp["c_fc"](self["ln_2"](x))))


class NanoGPT(nn.Module):
    """A model that answers to nanoGPT's names, for the tests to put into a `model.py`."""

    def __init__(self, config: NanoConfig) -> None:
        super().__init__()
        width = config.n_embd
        tables = {"wte": nn.Embedding(config.vocab_size, width), "wpe": nn.Embedding(config.block_size, width)}
        blocks = nn.ModuleList(NanoBlock(config) for _ in range(config.n_layer))
        norm = nn.LayerNorm(width, LAYER_NORM_EPSILON, bias=config.bias)
        self.transformer = nn.ModuleDict({**tables, "h": blocks, "ln_f": norm})
        self.lm_head = nn.Linear(width, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer["wte"].weight

    def forward(self, idx: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        x = self.transformer["wte"](idx) + self.transformer["wpe"].weight[: idx.shape[1]]
        for block in self.transformer["h"]:
            x = block(x)
        logits = self.lm_head(self.transformer["ln_f"](x))
        return logits, mean_loss(logits, targets)

    def configure_optimizers(
        self, weight_decay: float, learning_rate: float, betas: tuple[float, float], device_type: str
    ) -> torch.optim.Optimizer:
        beta1, beta2 = betas
        return adamw(self, Settings(weight_decay=weight_decay, learning_rate=learning_rate, beta1=beta1, beta2=beta2))


# A `model.py` that answers to a checkout's names, though it draws nothing.
CHECKOUT = """
import torch
from tests.helpers.torch_twin import NanoConfig as GPTConfig, NanoGPT

class GPT(NanoGPT):
    def generate(self, text, n, temperature, top_k):
        return torch.cat([text, text[:, :1].repeat(1, n)], 1)
"""
