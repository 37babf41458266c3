"""Texts and answers from a model: the weights and the prompt that settings name, and what is drawn, as it is made."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from nanogpt_jax.cli import chat
from nanogpt_jax.cli.streaming import Stream, Writer
from nanogpt_jax.cli.text_settings import SampleSettings, TextSettings
from nanogpt_jax.core import sampling
from nanogpt_jax.core.config import Settings
from nanogpt_jax.core.decoding_weights import decoding_weights
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.train_step import purpose_key
from nanogpt_jax.data.commands import pasteable
from nanogpt_jax.data.files import refused
from nanogpt_jax.data.prepared import load_tokenizer
from nanogpt_jax.data.tokenizer import CharTokenizer, Tokenizer
from nanogpt_jax.data.unknown import rescued
from nanogpt_jax.run.build import build_model
from nanogpt_jax.run.run_folder import newest_run
from nanogpt_jax.weights.loading import Weights, open_weights

_SEPARATOR = "---------------"


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
            f"stop=True has no token to stop at: none of the vocabulary's {tokenizer.vocab_size:,} ends a text; leave "
            "it out, and say how long a text is with --max_new_tokens"
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
