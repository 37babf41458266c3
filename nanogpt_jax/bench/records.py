"""The records that docs/records.md tells of: what each is to reach, and by which steps its recipe came from nanoGPT's.

A record is held by the preset of its name. Its steps change one thing each, so that the page can say what each has
brought; together they are the preset (a test holds them to that). What was tried and did not pay is kept beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Changes = Mapping[str, Any]

FROM = "shakespeare_char_cpu"  # the preset that the steps start from: nanoGPT's recipe for a CPU


@dataclass(frozen=True)
class Record:
    """What a preset is to reach.

    Attributes:
        goal: in words.
        loss: over the whole validation split, in nats per token, that is to be reached.
        length: the changes that give nanoGPT's recipe the record's number of updates, before its first step.
        steps: from there to the preset, in order: what was changed, in words, and the settings it changes.
        tried: what did not pay, each tried on the preset as it is.
    """

    goal: str
    loss: float
    length: Changes = field(default_factory=dict)
    steps: Mapping[str, Changes] = field(default_factory=dict)
    tried: Mapping[str, Changes] = field(default_factory=dict)


_ONE_AT_A_TIME: Mapping[str, Changes] = {
    "a warm-up of 10 updates, then a line down to zero": dict(
        schedule="wsd", cooldown_fraction=0.9, min_lr=0.0, warmup_iters=10
    ),
    "rotary positions, theta 100": dict(position="rope", rope_theta=100.0),
    "RMS norm": dict(norm="rms"),
    "queries and keys normed": dict(qk_norm=True),
    "squared ReLU": dict(activation="relu2"),
    "a head of its own": dict(tie_word_embeddings=False),
    "projections that start at zero": dict(proj_init_scale=0.0),
    "Muon for the matrices": dict(optimizer="muon", muon_learning_rate=0.03),
    "Muon's momentum 0.8 for 0.95": dict(muon_momentum=0.8),
    "AdamW for the rest at 0.02, betas 0.8 and 0.95": dict(learning_rate=2e-2, beta1=0.8, beta2=0.95),
    "no decay, no clipping": dict(weight_decay=0.0, grad_clip=0.0),
    "a learned share of the token before": dict(token_shift=True),
    "blocks of 128 for 64, half as many": dict(block_size=128, batch_size=6),
    "1 layer for 4": dict(n_layer=1),
}

RECORDS: Mapping[str, Record] = {
    "speedrun_cpu": Record(
        "nanoGPT's end loss on a CPU, 1.898, in a tenth of its time",
        1.898,
        length=dict(max_iters=220, lr_decay_iters=220),
        steps=_ONE_AT_A_TIME,
        tried={
            "Muon's rate 0.05": dict(muon_learning_rate=0.05),
            "AdamW's rate 0.04": dict(learning_rate=0.04),
            "2 heads": dict(n_head=2),
            "8 heads": dict(n_head=8),
            "logits capped at 15": dict(logit_softcap=15.0),
            "blocks of 256, 3 of them": dict(block_size=256, batch_size=3),
            "each window once an epoch": dict(with_replacement=False),
        },
    ),
    "shakespeare_char_cpu_modern": Record("at most 1.55 after nanoGPT's 2,000 updates of 768 tokens", 1.55),
    "laptop": Record("nanoGPT's figure for a GPU, 1.4697, in fifteen minutes on two cores", 1.4697),
}
