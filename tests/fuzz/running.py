"""Running a command on what was drawn, in this process, as its user would: `cli.train`, `cli.sample`, `convert.main`.

Compiled programs are kept from case to case (`conftest.py`), so that a case takes milliseconds; all else is the real
thing, files included.
"""

import contextlib
import io
import os
import signal

from hypothesis import HealthCheck, settings

from nanogpt_jax.cli import train
from nanogpt_jax.core.errors import RunFailed, UserError
from tests.helpers.states import tree_of
from tests.helpers.tiny import TINY

LIMIT = 300  # seconds; a case that takes longer hangs


ALL = 2200  # inputs that the tests' shares add up to
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", ALL // 3))  # the suite draws a third; .ci/release 10,000


def fuzz(cases, **options):
    """Hypothesis, the same cases every time: what a search finds is written down as a test of its own.

    `cases` is the share of a test where `ALL` are drawn.
    """
    return settings(
        max_examples=max(1, cases * EXAMPLES // ALL),
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        deadline=None,
        **options,
    )


def end_of(command, *argv):
    """The exit status a user would see: 0, or 1 or 2 with one line. All else that a command raises is a defect."""

    def too_long(number, frame):
        raise AssertionError(f"{argv} takes more than {LIMIT} s")

    usual = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(LIMIT)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return command([str(argument) for argument in argv])
    except (UserError, RunFailed) as error:
        assert len(" ".join(str(error).split())) > 10
        return 2 if isinstance(error, UserError) else 1
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, usual)


@contextlib.contextmanager
def only_changes(folder, *allowed):
    """Nothing below `folder` may change but what is below `allowed`."""

    def rest():
        return {p: b for p, b in tree_of(folder).items() if p.name != ".lock" and not set(allowed) & {*p.parents, p}}

    before = rest()
    yield
    assert rest() == before


def train_flags(folder):
    short = ("--max_iters=3", "--eval_interval=2", "--bias=True")
    return [*TINY, *short, f"--data_dir={folder / 'data'}", f"--out_dir={folder / 'out'}"]


def assert_trains_or_refuses(folder, *flags):
    """Training ends in order, if only because weights hold no number; where it is refused nothing at all is written."""
    with only_changes(folder, folder / "out"):
        status = end_of(train.main, *train_flags(folder), *flags)
    assert status != 2 or not (folder / "out").exists()
