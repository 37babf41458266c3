"""The PyTorch side of the benchmark: nanoGPT's own model, one of ours in its manner, or Hugging Face's.

Imports PyTorch and not JAX, and leaves PyTorch's threads as it finds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanogpt_jax.bench.side import Unavailable, is_out_of_memory
from nanogpt_jax.bench.trace import BREAKDOWN, OPTIMIZER, UPDATES, Event, broken_down, work_of_operator
from nanogpt_jax.compare.torch_training import adamw, hf_model, learning_rate, nanogpt_model
from nanogpt_jax.core.config import Settings
from nanogpt_jax.data.tokenizer import token_type

_RANDOM_TOKENS = 1 << 18


class Program(NamedTuple):
    """A model in PyTorch and what is done with it.

    `loss` takes tokens and targets, each (B, T). `continued` takes a prompt (B, P), how many tokens to draw,
    temperature and top_k.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Tensor, Tensor], Tensor]
    continued: Callable[[Tensor, int, float, int], Tensor]


class Training:
    """Updates of a fresh model in the order of nanoGPT's loop: rate, micro-batches, clipping, update."""

    first = "step"

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self._settings = Settings(**spec["settings"])
        self._device = _device(spec)
        self._dtype = spec["dtype"]
        self._program = _program(spec, self._settings, self._device)
        self._compile = spec["compile"]
        if spec.get("breakdown"):
            torch._inductor.config.cpp.enable_kernel_profile = True  # so that its kernels have events, and names
        self._loss = torch.compile(self._program.loss) if self._compile else self._program.loss
        self._tokens = _tokens(spec)
        self._draw = np.random.default_rng(self._settings.seed)
        self._iteration = 0
        self._told: dict[str, Any] = {}

    def run(self, case: str, times: int) -> None:
        """As `Side.run`: updates, under PyTorch's profiler where ``breakdown`` asks for it."""
        if case == BREAKDOWN:
            self._told = self._broken_down(times)
            return
        for _ in range(times):
            try:
                self._update()
            except Exception as error:
                if not self._compile or self._iteration or is_out_of_memory(error):
                    raise
                why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise Unavailable(f"torch.compile does not work here ({why})") from error
            self._iteration += 1
        _wait(self._device)

    def facts(self) -> dict[str, Any]:
        """As `Side.facts`."""
        return _facts() | self._told

    def peak_memory(self) -> int | None:
        """As `Side.peak_memory`."""
        return _peak_memory(self._device)

    def _broken_down(self, times: int) -> dict[str, Any]:
        """What the updates spend their time on, as `trace.spent` has it."""
        profiler = torch.profiler
        with profiler.profile(activities=[profiler.ProfilerActivity.CPU]) as profile, profiler.record_function(UPDATES):
            self.run("step", times)
        events = [
            Event(event.thread, event.time_range.start / 1e6, event.time_range.end / 1e6, work_of_operator(event.name))
            for event in profile.events()
        ]
        return broken_down(events, times)

    def _update(self) -> None:
        settings, (module, optimizer, *_) = self._settings, self._program
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, self._iteration)
        for _ in range(settings.gradient_accumulation_steps):
            tokens, targets = self._batch()
            with _autocast(self._device, self._dtype):
                loss = self._loss(tokens, targets)
            (loss / settings.gradient_accumulation_steps).backward()
        with torch.profiler.record_function(OPTIMIZER):
            if settings.grad_clip > 0:
                nn.utils.clip_grad_norm_(module.parameters(), settings.grad_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _batch(self) -> tuple[Tensor, Tensor]:
        """Windows at random places, as this project draws them and not slower than nanoGPT does."""
        length = self._settings.block_size
        starts = self._draw.integers(len(self._tokens) - length, size=(self._settings.batch_size, 1))
        windows = torch.from_numpy(self._tokens[starts + np.arange(length + 1)].astype(np.int64))
        if self._device == "cuda":  # nanoGPT's way: the copy does not wait for the update before it
            windows = windows.pin_memory().to(self._device, non_blocking=True)
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


class Sampling:
    """Texts from a fresh model; a case is the length of the prompt, of the text, and how many at once."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        settings = Settings(**spec["settings"])
        self._cases = spec["cases"]
        self.first = next(iter(self._cases))
        self._device = _device(spec)
        self._dtype = spec["dtype"]
        self._how = spec["temperature"], spec["top_k"]
        self._program = _program(spec, settings, self._device)
        self._program.module.eval()
        self._prompt = torch.randint(spec["vocab_size"], (1, settings.block_size), device=self._device)

    @torch.inference_mode()
    def run(self, case: str, times: int) -> None:
        """As `Side.run`: texts."""
        prompt, tokens, batch = self._cases[case]
        for _ in range(times):
            with _autocast(self._device, self._dtype):
                text = self._program.continued(self._prompt[:, :prompt].repeat(batch, 1), tokens, *self._how)
            if text.shape != (batch, prompt + tokens):
                raise RuntimeError(f"the text has the shape {tuple(text.shape)}, not {(batch, prompt + tokens)}")
        _wait(self._device)

    def facts(self) -> dict[str, Any]:
        """As `Side.facts`."""
        return _facts()

    def peak_memory(self) -> int | None:
        """As `Side.peak_memory`."""
        return _peak_memory(self._device)


def _program(spec: Mapping[str, Any], settings: Settings, device: str) -> Program:
    """The program the spec names: `hf`, a nanoGPT checkout's folder in ``spec["reference"]``, or `PlainGPT`."""
    torch.manual_seed(settings.seed)
    if spec["program"] == "hf":
        return _hugging_face(spec["model_args"], settings, device)
    if spec["reference"] is not None:
        module, optimizer = nanogpt_model(Path(spec["reference"]), spec["model_args"], settings, device)
        draw: Any = module.generate  # its types are nanoGPT's affair
        return Program(module, optimizer, lambda tokens, targets: module(tokens, targets)[1], draw)
    module = PlainGPT(**spec["model_args"]).to(device)
    return Program(module, adamw(module, settings, fused=True), module, module.generate)


def _hugging_face(model_args: Mapping[str, Any], settings: Settings, device: str) -> Program:
    module = hf_model(model_args).to(device)
    module.generation_config.eos_token_id = None  # a random model must not stop early

    def loss(tokens: Tensor, targets: Tensor) -> Tensor:
        return _mean_loss(module(tokens, use_cache=False).logits, targets)

    def continued(prompt: Tensor, tokens: int, temperature: float, top_k: int) -> Tensor:
        return module.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=tokens,
            do_sample=True,
            temperature=temperature,
            top_k=top_k,
            use_cache=True,
            pad_token_id=0,
        )

    return Program(module, adamw(module, settings, fused=True), loss, continued)


class PlainBlock(nn.Module):
    """Attention, then MLP, each reading a layer norm of the residual stream and adding to it."""

    def __init__(self, n_embd: int, n_head: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.n_head, self.dropout = n_head, dropout
        self.ln_1, self.ln_2 = nn.LayerNorm(n_embd, bias=bias), nn.LayerNorm(n_embd, bias=bias)
        self.c_attn, self.c_proj = nn.Linear(n_embd, 3 * n_embd, bias), nn.Linear(n_embd, n_embd, bias)
        widen, narrow = nn.Linear(n_embd, 4 * n_embd, bias), nn.Linear(4 * n_embd, n_embd, bias)
        self.mlp = nn.Sequential(widen, nn.GELU(), narrow, nn.Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        q, k, v = (
            part.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for part in self.c_attn(self.ln_1(x)).chunk(3, -1)
        )
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True).transpose(1, 2).flatten(2)
        x = x + F.dropout(self.c_proj(y), self.dropout, self.training)
        return x + self.mlp(self.ln_2(x))


class PlainGPT(nn.Module):
    """The model of nanoGPT with PyTorch's fused attention, for those who have no checkout of it."""

    def __init__(
        self, block_size: int, vocab_size: int, n_layer: int, n_head: int, n_embd: int, dropout: float, bias: bool
    ) -> None:
        super().__init__()
        self.block_size = block_size
        self.wte, self.wpe = nn.Embedding(vocab_size, n_embd), nn.Embedding(block_size, n_embd)
        self.drop = nn.Dropout(dropout)
        self.h = nn.Sequential(*(PlainBlock(n_embd, n_head, dropout, bias) for _ in range(n_layer)))
        self.ln_f = nn.LayerNorm(n_embd, bias=bias)
        for table in (self.wte, self.wpe):
            nn.init.normal_(table.weight, std=0.02)

    def hidden(self, tokens: Tensor) -> Tensor:
        """What the head reads: (B, T) -> (B, T, C)."""
        positions = self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        return self.ln_f(self.h(self.drop(self.wte(tokens) + positions)))

    def head(self, x: Tensor) -> Tensor:
        """Logits by the token table, (..., C) -> (..., V)."""
        return F.linear(x, self.wte.weight)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean loss, in nats per token."""
        return _mean_loss(self.head(self.hidden(tokens)), targets)

    def generate(self, text: Tensor, tokens: int, temperature: float, top_k: int) -> Tensor:
        """`text` (B, P) and `tokens` more, each drawn after the last `block_size` have been read anew."""
        for _ in range(tokens):
            logits = self.head(self.hidden(text[:, -self.block_size :])[:, -1]) / temperature
            least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
            drawn = logits.masked_fill(logits < least, -torch.inf).softmax(-1).multinomial(1)
            text = torch.cat([text, drawn], 1)
        return text


def _mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in float32, in nats per token."""
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def _tokens(spec: Mapping[str, Any]) -> np.ndarray:
    """The tokens of the training split, or as good as those: what they are changes no time."""
    if spec["tokens"] is not None:
        return np.memmap(spec["tokens"], np.dtype("<u2"), "r")
    length = max(_RANDOM_TOKENS, 2 * spec["settings"]["block_size"])
    return np.random.default_rng(0).integers(spec["vocab_size"], size=length, dtype=token_type(spec["vocab_size"]))


def _device(spec: Mapping[str, Any]) -> str:
    """PyTorch's name of the kind of device that our side runs on. Raises `Unavailable` if it has none."""
    device = {"cpu": "cpu", "gpu": "cuda"}.get(spec["platform"])
    if device is None or (device == "cuda" and not torch.cuda.is_available()):
        raise Unavailable(f"this PyTorch ({torch.__version__}) does not run on a {spec['platform'].upper()}")
    if device == "cuda":  # as nanoGPT has it: float32 products may be TF32's, which JAX's are there as well
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    return device


def _autocast(device: str, dtype: str) -> torch.autocast:
    return torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _peak_memory(device: str) -> int | None:
    return torch.cuda.max_memory_allocated() if device == "cuda" else None


def _facts() -> dict[str, Any]:
    return {"torch": torch.__version__, "threads": torch.get_num_threads()}
