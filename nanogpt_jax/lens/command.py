"""`python -m nanogpt_jax.lens`: a page that shows what a model computes while it reads and continues a text."""

from __future__ import annotations

from collections.abc import Sequence

from nanogpt_jax.cli import entry
from nanogpt_jax.cli.flags import read_settings
from nanogpt_jax.data.files import refusals, replace_when_whole
from nanogpt_jax.lens.settings import LensSettings

_DESCRIPTION = """\
Write a page that shows what a model computes while it reads and continues a text: the likeliest next characters, the
loss of each, every head's attention, and what each layer would predict. It is one file and needs no network.

  {lens} --start="ROMEO:"                               the newest run here, into lens.html
  {lens} --start=FILE:scene.txt --max_new_tokens=0      a text as it is, with nothing added
  {lens} --init_from=gpt2 --start="The cat" --html=cat.html

The model reads it all at once, so prompt and continuation together fit in its block_size."""


def main(argv: Sequence[str]) -> int:
    """The command: parse, load, continue the text, read it, write the page."""
    settings = read_settings(LensSettings, argv, "lens", _DESCRIPTION)

    # Slow to import, so not before the arguments are known good.
    from nanogpt_jax.lens.reading import rendered
    from nanogpt_jax.run.accelerator import use_accelerator

    use_accelerator(settings.accelerator)
    html = rendered(settings)
    with refusals(f"html={settings.html}", "written"), replace_when_whole(settings.html, "w") as file:
        file.write(html)
    print(f"{settings.html}: {len(html.encode()) / 1e6:.1f} MB; open it in a browser")
    return entry.OK
