"""A small run that is killed at random instants and resumed again and again, beside one that is left in peace.

How far the tortured run gets depends on the machine, and nothing else does: it has no end until its kills are done, is
given one then, and the peaceful run has the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import time
import warnings
from pathlib import Path

import jax
import numpy as np

from nanogpt_jax.cli import sample
from nanogpt_jax.core.optimizer import make_optimizer
from nanogpt_jax.core.train_step import abstract_state
from nanogpt_jax.run import hosts, loop  # noqa: F401 (imported before children are forked)
from nanogpt_jax.run.build import build_model
from nanogpt_jax.weights import orbax_files  # noqa: F401 (imported before children are forked)
from nanogpt_jax.weights.checkpoint import FOLDER, newest
from nanogpt_jax.weights.loading import open_run, stored_settings
from tests.helpers.tiny import TINY, prepare_tiny
from tests.torture.processes import LIMIT, EndedByItself, Job, forked

STEPS_A_LIFE = 12
ENDLESS = 10**9  # updates, which no run ever makes
OFTEN = ("--save_interval=5", "--always_save_checkpoint=False")
JOB = ("--mesh=fsdp:2", "--connect_timeout=30")  # of several processes: each has half of the state, and writes it
STARVED = ("no sign of life", "did not find each other")  # what a job says on a machine that is too busy for it
PATIENCE = 90  # seconds after which a process must have ended by itself once another one of the job is gone


@dataclasses.dataclass
class Report:
    """What the run went through, and how its end differs from that of the one left in peace."""

    kills: int = 0
    while_saving: int = 0
    while_starting: int = 0
    of_one: int = 0  # kills of one process of several
    alarms: int = 0  # lives that ended because a process got no time for a sign of life
    left_behind: int = 0  # processes that did not end by themselves, with status 1 or 2, where another was killed
    lost_runs: int = 0  # a checkpoint was there before the kill, and none that restores after it
    lost_checkpoints: int = 0  # the newest after a kill is older than one seen before
    metrics: int = 0  # lines that are missing, double, out of order, or say something else
    bits: int = 0  # that differ in parameters and optimizer state
    texts: int = 0  # 1 if the samples differ
    progress: int = 0  # 1 if best loss, step or counts differ
    updates: int = 0  # in the whole run
    seconds: float = 0.0

    def is_clean(self) -> bool:
        bad = (self.left_behind, self.lost_runs, self.lost_checkpoints, self.metrics, self.bits, self.texts)
        return not any((*bad, self.progress))

    def table(self) -> str:
        rows = {
            "kills": self.kills,
            "of these while a checkpoint was being written": self.while_saving,
            "of these before the first update of a life": self.while_starting,
            "of these of one process of several": self.of_one,
            "ends of a job by itself, one process being starved by others": self.alarms,
            "processes that did not end by themselves after that": self.left_behind,
            "runs that did not resume": self.lost_runs,
            "finished checkpoints lost": self.lost_checkpoints,
            "lines of metrics.jsonl missing, doubled or different": self.metrics,
            "bits of parameters and optimizer state that differ": self.bits,
            "sampled texts that differ": self.texts,
            "best-so-far and counts that differ": self.progress,
        }
        lines = [f"| {name} | {value:,} |" for name, value in rows.items()]
        return "\n".join(["| what | count |", "|---|---|", *lines, f"\n{self.updates:,} updates, {self.seconds:.0f} s"])


def torture(folder: Path, kills: int, seed: int, processes: int = 1) -> Report:
    """Train in `processes` processes with `kills` kills on the way, and without any, in `folder`; what came of it."""
    started = time.monotonic()
    warnings.filterwarnings("ignore", message="os.fork.. was called")  # JAX is imported here, and not at work
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_disable_most_optimizations", True)
    if jax.config.jax_compilation_cache_dir is None:  # else the environment names one
        jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    # A quarter of the kills of a job wait until a process has noticed the silence of another: half a minute as users
    # have it, and 1,000 kills should end on the same day.
    hosts.BEAT, hosts.SILENCE = 0.5, 12.0
    peaceful, tortured, log = folder / "peaceful", folder / "tortured", folder / "log"
    flags = [*TINY, *OFTEN, f"--data_dir={prepare_tiny(folder)}"]
    job = JOB if processes > 1 else ()
    report, draw = Report(), random.Random(seed)
    seen = -1

    def life(out_dir: Path, max_iters: int) -> Job:
        begin = flags if seen < 0 or out_dir is peaceful else ["--init_from=resume"]
        return Job([*begin, *job, f"--out_dir={out_dir}", f"--max_iters={max_iters}"], processes, log)

    while report.kills < kills:
        killed = life(tortured, ENDLESS)
        victims = _victims(processes, draw)
        try:
            _wait_for_an_instant(killed, tortured, draw)
        except EndedByItself as end:
            killed.finish(PATIENCE)
            if processes == 1 or not any(words in str(end) for words in STARVED):
                raise
            report.alarms += 1  # a process that a busy machine starved: the run goes on all the same
            continue
        killed.kill(victims)
        report.kills += 1
        report.while_saving += any(not path.name.isdigit() for path in _entries(tortured / FOLDER))
        report.while_starting += _steps_logged(tortured) <= max(seen, 0)
        if len(victims) < processes:
            report.of_one += 1
            in_time = killed.finish(PATIENCE)
            others = [status for i, status in killed.statuses.items() if i not in victims]
            if not in_time or not {*others} <= {1, 2}:
                report.left_behind += len(others)
                print(f"kill {report.kills}: the others ended with {others}:\n{killed.last_words()}", flush=True)
        found = newest(tortured)
        now = -1 if found is None else found.run.step
        report.lost_runs += now < 0 <= seen
        report.lost_checkpoints += now < seen
        seen = now
        if report.kills % 50 == 0:
            print(f"{report.kills} kills, {seen:,} updates, {time.monotonic() - started:.0f} s", flush=True)
    report.updates = max(seen, 0) + STEPS_A_LIFE
    for out_dir in (tortured, peaceful):
        whole = life(out_dir, report.updates)
        if not whole.finish(LIMIT, lambda out_dir=out_dir: _steps_logged(out_dir)) or any(whole.statuses.values()):
            raise RuntimeError(f"{out_dir.name}, left in peace, ended with {whole.statuses}:\n{whole.last_words()}")
    _compare(peaceful, tortured, report)
    report.seconds = time.monotonic() - started
    return report


def _victims(processes: int, draw: random.Random) -> list[int]:
    """Whom to kill: all of them, or one of several, each half of the time."""
    everyone = list(range(processes))
    return everyone if processes == 1 or draw.random() < 0.5 else [draw.choice(everyone)]


def _wait_for_an_instant(job: Job, out_dir: Path, draw: random.Random) -> None:
    """Return at a random instant in the life of a job, most often while it saves."""
    kind = draw.random()
    if kind < 0.15:  # anywhere from its first instruction on, starting and resuming included
        deadline = time.monotonic() + draw.uniform(0, 2.0)
        job.wait(lambda: time.monotonic() > deadline)
        return
    begun, steps = _steps_logged(out_dir), draw.randint(1, 2 * STEPS_A_LIFE)
    job.wait(lambda: _steps_logged(out_dir) != begun)  # it drops, and then grows
    low = _steps_logged(out_dir)
    job.wait(lambda: _steps_logged(out_dir) >= low + steps)
    if kind < 0.75:  # once a save has begun, somewhere in it or just after
        job.wait(lambda: any(not path.name.isdigit() for path in _entries(out_dir / FOLDER)))
        time.sleep(draw.uniform(0, 0.03))


def _entries(folder: Path) -> list[Path]:
    with contextlib.suppress(FileNotFoundError):
        return list(folder.iterdir())
    return []


def _steps_logged(out_dir: Path) -> int:
    """The step in the last line of the metrics, which is all that a look every half millisecond has time for."""
    nothing_yet = contextlib.suppress(FileNotFoundError, ValueError, IndexError, KeyError)
    with nothing_yet, open(out_dir / "metrics.jsonl", "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 400))
        return json.loads(file.read().splitlines()[-1])["step"]
    return 0


def _compare(peaceful: Path, tortured: Path, report: Report) -> None:
    runs = (peaceful, tortured)
    ours, theirs = (_told(run) for run in runs)
    report.metrics = abs(len(ours) - len(theirs)) + sum(a != b for a, b in zip(ours, theirs, strict=False))
    report.texts = int(len({_sample(run) for run in runs}) != 1)
    first, second = (open_run(run).run for run in runs)
    report.progress = int(
        dataclasses.replace(first, settings={}, seconds=0.0) != dataclasses.replace(second, settings={}, seconds=0.0)
    )
    report.bits = sum(_differing_bits(a, b) for a, b in zip(*map(_leaves, runs), strict=True))  # starts JAX here


def _told(run: Path) -> list[dict]:
    """The lines of a metrics file, without what the clock says."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in line.keys() - {"seconds", "tokens_per_second", "mfu"}} for line in lines]


def _sample(run: Path) -> str:
    log, text = run / "sample.log", run / "sample.txt"
    argv = [f"--out_dir={run}", "--num_samples=2", "--max_new_tokens=100", "--start=to be"]
    _, raw = os.waitpid(forked(sample.main, argv, log, text), 0)
    if raw:
        raise RuntimeError(f"{run} cannot be sampled:\n{log.read_text()[-3000:]}")
    return text.read_text()


def _leaves(run: Path) -> list[np.ndarray]:
    checkpoint = open_run(run)
    settings = stored_settings(checkpoint.run)
    model, tx = build_model(settings, checkpoint.run.vocab_size, "cpu"), make_optimizer(settings)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(checkpoint.state(abstract_state(model, tx)))]


def _differing_bits(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.bitwise_count(one.reshape(-1).view(np.uint8) ^ other.reshape(-1).view(np.uint8)).sum())
