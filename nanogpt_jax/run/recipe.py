"""Which settings of a run its losses come from, and the file in its folder that has them."""

from __future__ import annotations

import json
from pathlib import Path

from nanogpt_jax.core.config import PLACEMENT_SETTINGS

CONFIG_FILE = "config.json"

FREE = frozenset(
    (
        *PLACEMENT_SETTINGS,
        "out_dir", "init_from", "data_dir", "accelerator", "max_iters", "eval_only", "eval_interval", "eval_iters",
        "log_interval", "save_interval", "always_save_checkpoint", "nan_policy", "allow_changes", "profile",
        "tensorboard", "wandb", "wandb_project", "wandb_run_name", "patience", "which",
    )
)  # fmt: skip
"""Settings that a resumed run may have anew: they say how long, how often and where, and leave its updates alone."""

NO_RECIPE = (FREE - {"max_iters"}) | {"seed"}
"""Settings that runs of one recipe may differ in."""


def recipe_of(out_dir: Path) -> str | None:
    """The settings of a run that its losses come from, but for the seed, as one text; None where they are not known."""
    try:
        settings = json.loads((out_dir / CONFIG_FILE).read_bytes())["settings"]
        return json.dumps({name: settings[name] for name in sorted(settings) if name not in NO_RECIPE})
    except (OSError, ValueError, KeyError, TypeError):
        return None
