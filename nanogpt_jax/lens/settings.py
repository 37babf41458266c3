"""The settings of the lens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import no_type_check

from nanogpt_jax.cli.text_settings import TextSettings
from nanogpt_jax.core.config import setting
from nanogpt_jax.core.errors import UserError
from nanogpt_jax.core.limits import require_at_least
from nanogpt_jax.data.files import is_dir


@dataclass(frozen=True)
class LensSettings(TextSettings):
    """The settings of the lens: `sample.py`'s, and where the page goes."""

    # fmt: off
    max_new_tokens: int | None = setting(None, "text", "tokens after the prompt; none: to 200 in all, if they fit")
    html: str = setting("lens.html", "page", "the file to write")
    # fmt: on

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_new_tokens is not None:
            require_at_least("max_new_tokens", self.max_new_tokens, 0)
        if not self.html or is_dir(Path(self.html)):
            raise UserError(f"html={self.html!r} is a folder; name a file")


no_type_check(LensSettings.__init__)  # its __post_init__ says what is wrong, in a user's words
