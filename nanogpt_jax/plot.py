"""`python -m nanogpt_jax.plot RUN [RUN ...]`: the loss curves of one run, or of several over each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nanogpt_jax.cli import entry
from nanogpt_jax.cli.flags import Parser
from nanogpt_jax.data.addresses import is_address
from nanogpt_jax.run import reports
from nanogpt_jax.run.sinks import FIGURE_FILE

_DESCRIPTION = f"""\
Draw training loss, validation loss and learning rate from the metrics.jsonl of runs, under way or done.

  {{plot}} out-shakespeare-char                    RUN/{FIGURE_FILE}
  {{plot}} out-a out-b out-c --png=compared.png    several over each other"""


def main(argv: Sequence[str]) -> int:
    """The command: parse, read, draw."""
    parser = Parser("plot", "RUN [RUN ...] [--png=FILE]", _DESCRIPTION)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the folder of a run, on a disk or in a bucket")
    parser.add_argument(
        "-o", "--png", type=Path, metavar="FILE",
        help=f"where to draw: .png, .svg or .pdf (RUN/{FIGURE_FILE} of a single run, else ./{FIGURE_FILE})",
    )  # fmt: skip
    given = parser.parse(argv)

    # Slow to import, so not before the arguments are known good.
    from nanogpt_jax.run.curves import loss_figure, read_all
    from nanogpt_jax.run.metrics_parts import curves_at_hand

    runs = given["runs"]
    beside = len(runs) == 1 and not is_address(runs[0])
    path = given.get("png", Path(runs[0]) / FIGURE_FILE if beside else Path(FIGURE_FILE))
    curves = read_all([curves_at_hand(run) for run in runs], runs)
    reports.require_writable(png=path)
    reports.write_where_asked("png", path, lambda path: reports.write_figure(path, loss_figure(curves)))
    print(path)
    return entry.OK


if __name__ == "__main__":
    raise SystemExit(entry.run(main))
