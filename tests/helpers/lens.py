"""What tests of the lens and its page share."""

import json
import re

import numpy as np

from nanogpt_jax.core.model import GPT
from nanogpt_jax.core.shape import GPTConfig
from nanogpt_jax.lens import reading
from tests.helpers.twins import fresh


def data_of(html):
    """The numbers laid into a page."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)[1])


def findings(tokens, given, vocab_size, tokenizer, **shape):
    model = GPT(GPTConfig(vocab_size=vocab_size, **{**dict(n_layer=1, n_head=1, n_embd=8, block_size=64), **shape}))
    return reading.findings(model, fresh(model), np.asarray(tokens, np.int32), given, tokenizer)
