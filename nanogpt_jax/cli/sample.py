"""Text from a trained model to the terminal, as it is made: what `sample.py` does."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, no_type_check

import jax
import numpy as np

from nanogpt_jax.cli import chat
from nanogpt_jax.cli.entry import OK
from nanogpt_jax.cli.flags import read_settings
from nanogpt_jax.cli.streaming import Stream, Writer
from nanogpt_jax.core import sampling
from nanogpt_jax.core.config import ACCELERATORS, DTYPES, WHICH, Settings, setting
from nanogpt_jax.core.decoding_weights import QUANTIZE, decoding_weights
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.limits import require_32_bits, require_at_least, require_choice
from nanogpt_jax.core.sampling import PAST_BLOCK, SamplingConfig
from nanogpt_jax.core.train_step import purpose_key
from nanogpt_jax.data.commands import pasteable
from nanogpt_jax.data.files import refused
from nanogpt_jax.data.prepared import load_tokenizer
from nanogpt_jax.data.tokenizer import CharTokenizer, Tokenizer
from nanogpt_jax.data.unknown import UNKNOWN, rescued
from nanogpt_jax.run.accelerator import use_accelerator
from nanogpt_jax.run.build import build_model
from nanogpt_jax.run.faults import memory_in_one_line
from nanogpt_jax.run.run_folder import newest_run
from nanogpt_jax.weights.loading import Weights, open_weights

_SEPARATOR = "---------------"


@dataclass(frozen=True)
class TextSettings:
    """What every command that continues a text asks for, under nanoGPT's names and with its defaults."""

    # fmt: off
    init_from: str = setting("resume", "model", "resume: the run in out_dir; or weights by name or path, as train.py takes them")
    out_dir: str | None = setting(None, "model", "the run's folder; none: the newest of ./out*")
    which: Literal["best", "last"] = setting("best", "model", "the weights of a run: with its lowest validation loss, or the last", WHICH)
    start: str = setting("\n", "text", "the prompt, or FILE:PATH to read it from a file")
    unknown: Literal["refuse", "drop", "space"] = setting("refuse", "text", "what becomes of the prompt's characters that the vocabulary lacks", UNKNOWN)
    temperature: float = setting(0.8, "text", "below 1 bolder, above 1 wilder; 0 always takes the likeliest token")
    top_k: int | None = setting(200, "text", "draw from the k likeliest tokens only; none: from all")
    top_p: float | None = setting(None, "text", "draw from the fewest tokens that hold this much probability")
    seed: int = setting(1337, "text", "the same seed gives the same texts")
    accelerator: Literal["auto", "cpu", "gpu", "tpu"] = setting("auto", "system", "which kind of device to run on", ACCELERATORS)
    # fmt: on

    def __post_init__(self) -> None:
        require_at_least("seed", self.seed, 0)
        require_32_bits(self)
        require_choice("accelerator", self.accelerator, ACCELERATORS)
        require_choice("which", self.which, WHICH)
        require_choice("unknown", self.unknown, UNKNOWN)
        self.sampling_config(None)

    def sampling_config(self, vocab_size: int | None) -> SamplingConfig:
        """How tokens are drawn, from the first `vocab_size` of the table."""
        return SamplingConfig(self.temperature, self.top_k, self.top_p, vocab_size)


no_type_check(TextSettings.__init__)  # its __post_init__ says what is wrong, in a user's words


@dataclass(frozen=True)
class SampleSettings(TextSettings):
    """The settings of `sample.py`."""

    # fmt: off
    num_samples: int = setting(10, "text", "how many texts to draw")
    max_new_tokens: int = setting(500, "text", "tokens in each text, after the prompt")
    stop: bool = setting(False, "text", "end a text where the model draws its end-of-text token")
    past_block: Literal["reread", "rolling"] = setting("reread", "text", "past block_size: reread its last tokens for each, as nanoGPT does; or rolling, with rotary positions: let the memory roll, at one cost for any length", PAST_BLOCK)
    chat: bool = setting(False, "chat", "talk with a model that was tuned on chats: it answers each line of standard input")
    template: str | None = setting(None, "chat", "how messages become text: plain, chatml or a JSON file; none: as the model was tuned")
    system: str | None = setting(None, "chat", "a message before all others that says who the assistant is; none: none")
    quantize: Literal["none", "int8"] = setting("none", "system", "int8: weights in a quarter of the memory", QUANTIZE)
    dtype: Literal["auto", "float32", "bfloat16"] = setting("auto", "system", "type of matrix products; auto: bfloat16 on GPU and TPU", DTYPES)
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_samples", "max_new_tokens"):
            require_at_least(name, getattr(self, name), 1)
        require_choice("dtype", self.dtype, DTYPES)
        require_choice("quantize", self.quantize, QUANTIZE)
        require_choice("past_block", self.past_block, PAST_BLOCK)
        if self.chat:
            self._require_one_conversation()
            return
        for flag, value in (("template", self.template), ("system", self.system)):
            if value is not None:
                raise UserError(f"{flag}={value} is for a conversation; add --chat, or leave it out")

    def _require_one_conversation(self) -> None:
        """Refuse what has no meaning in a chat; a default counts as not given."""
        if self.num_samples not in (1, SampleSettings.num_samples):
            raise UserError(f"num_samples={self.num_samples} is for texts, and a chat is one; leave it out")
        if self.start != SampleSettings.start:
            raise UserError(f"start={self.start} is for texts, and a chat begins with what you say; leave it out")
        if self.past_block != SampleSettings.past_block:
            raise UserError(f"past_block={self.past_block} is for texts, and a chat stays in the block; leave it out")


no_type_check(SampleSettings.__init__)  # likewise


def main(argv: Sequence[str]) -> int:
    """The command: parse, load, and print text as it is made."""
    description = "Draw text from a trained model, or talk with it; it appears as it is made."
    settings = read_settings(SampleSettings, argv, "sample", description)
    use_accelerator(settings.accelerator)
    work, sizes = (chat_text, ()) if settings.chat else (sample_text, ("num_samples",))
    with memory_in_one_line(settings, (*sizes, "max_new_tokens")):
        work(settings)
    return OK


def sample_text(settings: SampleSettings) -> None:
    """Draw all the texts side by side and print them; the first one streams, the others follow it when they are done.

    Raises `UserError` if there are no weights or the tokenizer cannot encode the prompt.
    """
    weights, tokenizer = open_model(settings)
    stops = _stops(weights, tokenizer) if settings.stop else []
    start = prompt_text(settings, tokenizer)
    prompt = tokenizer.encode(start)
    stream = _stream(settings, weights, tokenizer, stops)

    write = Writer(tokenizer, start)
    texts: list[np.ndarray] = []
    for texts in stream.texts(prompt, range(settings.num_samples), settings.max_new_tokens):
        write(texts[0])
    write.end(f"\n{_SEPARATOR}\n")
    for text in texts[1:]:
        write = Writer(tokenizer, start)
        write(text)
        write.end(f"\n{_SEPARATOR}\n")


def chat_text(settings: SampleSettings) -> None:
    """Talk with the model: messages out of standard input, and its answers as they are made.

    Raises `UserError` if there are no weights, or it is not known how a conversation becomes their text.
    """
    weights, tokenizer = open_model(settings)
    template = chat.template_for(settings.template, weights.template, tokenizer)
    own = () if tokenizer.eot_token is None else (tokenizer.eot_token,)
    # What ended the examples of a run on chats may be a line end, which is a part of answers.
    others = weights.stops if weights.template is None else ()
    stops = sorted({template.stop(tokenizer), *own, *others})
    first = chat.first_message(template, settings.system)
    stream = _stream(settings, weights, tokenizer, stops)
    block_size = stream.model.config.block_size
    history = chat.History(template, tokenizer, block_size, settings.max_new_tokens, first)
    chat.converse(stream, history, settings.unknown)


def _stream(settings: SampleSettings, weights: Weights, tokenizer: Tokenizer, stops: Sequence[int]) -> Stream:
    """The model with its weights, as the settings ask for them. Raises `UserError` for what it can't do."""
    shape = Settings(**weights.settings, dtype=settings.dtype)
    model = build_model(shape, weights.vocab_size, jax.default_backend())
    config = dataclasses.replace(settings.sampling_config(tokenizer.vocab_size), past_block=settings.past_block)
    sampling.require_rotary(model, config)
    decoding = decoding_weights(model, weights.load(model, None), settings.quantize)
    return Stream(model, config, decoding, purpose_key(settings.seed, "sample"), tokenizer, stops)


def _stops(weights: Weights, tokenizer: Tokenizer) -> list[int]:
    """The tokens that end a text. Raises `UserError` where there are none."""
    own = () if tokenizer.eot_token is None else (tokenizer.eot_token,)
    if not (found := sorted({*own, *weights.stops})):
        raise UserError(
            f"stop=True has no token to stop at: none of the vocabulary's {tokenizer.vocab_size:,} ends a text; leave it "
            "out, and say how long a text is with --max_new_tokens"
        )
    return found


def open_model(settings: TextSettings) -> tuple[Weights, Tokenizer]:
    """The weights that the settings name, and the tokenizer they were trained with; `UserError` without either."""
    source = settings.init_from
    if source == "resume" and settings.out_dir is not None:
        source = settings.out_dir
    elif source == "resume":
        source = newest_run()
        print(f"out_dir: {source}, the newest run here", file=sys.stderr)
    return open_source(source, settings.which)


def open_source(source: str, which: str, data_dir: str = "data") -> tuple[Weights, Tokenizer]:
    """The weights that `source` names, as `open_weights` takes it, and their tokenizer; `UserError` without either."""
    weights = open_weights(source, data_dir, which)
    if weights.tokenizer is None:
        raise UserError(
            f"{source} does not say what its tokens are; make it a run first, with "
            f"{pasteable('convert', source, 'DIR')} --tokenizer=PATH to the meta.json of its data set"
        )
    if weights.assumed is not None:
        print(weights.assumed, file=sys.stderr, flush=True)
    tokenizer = load_tokenizer(weights.tokenizer)
    if tokenizer.vocab_size > weights.vocab_size:
        raise UserError(
            f"{source} has a tokenizer of {tokenizer.vocab_size:,} tokens and a model of {weights.vocab_size:,}; "
            "the two do not belong together: name another data set with --tokenizer, or another model"
        )
    return weights, tokenizer


def prompt_text(settings: TextSettings, tokenizer: Tokenizer) -> str:
    """The prompt, from the file if it names one, made fit for `tokenizer` as far as `settings.unknown` says.

    Line ends of a file are read as nanoGPT reads them, \\r\\n as \\n, but where the vocabulary has \\r. A vocabulary
    without a line end begins with its first character where no prompt is given. Raises `UserError` for a file that
    cannot be read.
    """
    start = settings.start
    if start.startswith("FILE:"):
        start = _file_text(start)
        if not (isinstance(tokenizer, CharTokenizer) and "\r" in tokenizer.stoi):
            start = start.replace("\r\n", "\n").replace("\r", "\n")
    elif start == TextSettings.start and isinstance(tokenizer, CharTokenizer) and start not in tokenizer.stoi:
        start = tokenizer.itos[0]
        print(f"start: {start!r}, since the vocabulary has no line end to begin with", file=sys.stderr)
    return rescued(start, tokenizer, settings.unknown)


def _file_text(start: str) -> str:
    try:
        return Path(start.removeprefix("FILE:")).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise refused(f"start={start}", error, "read") from error
    except UnicodeDecodeError as error:
        raise UserError(f"start={start} is not UTF-8 text ({error}); save it as UTF-8") from error
    except ValueError as error:  # a null byte, which no name has
        raise UserError(f"start={start!r} is not a name a file system takes; name a text file after FILE:") from error
