"""Traces of updates to the time of each kind of work: events and names in, seconds out, for JAX and for PyTorch.

Nothing is run here, so both programs' recorded names can be tried by themselves.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

# What the tables of a breakdown call each kind.
KINDS = {
    "products": "products",
    "attention": "attention",
    "elementwise": "elementwise passes",
    "reductions": "reductions",
    "copies": "copies and transposes",
    "optimizer": "optimizer",
    "waiting": "waiting",
}
BREAKDOWN = "breakdown"
"""The case of a worker that traces its updates."""
UPDATES = "updates"
"""The name of the event that spans them."""
OPTIMIZER = "optimizer"
"""The name of the range in which both programs clip the gradient and update the weights."""


class Work(NamedTuple):
    """What an event does: one of `KINDS`, or None where only what lies within it counts; and a name to tell it by."""

    kind: str | None
    name: str


class Event(NamedTuple):
    """An operation of a trace: on which thread, from when to when in seconds, and what it does."""

    thread: int
    start: float
    stop: float
    work: Work


def spent(events: Iterable[Event], start: float, stop: float) -> dict[Work, float]:
    """The seconds from `start` to `stop` by the work done in them; of a thread's events the innermost counts.

    Those that lie within attention's or the optimizer's are theirs. Where threads work side by side they share the
    time, each as much as another, and where none does it is ``waiting``: the seconds add up to `stop` - `start`.
    """
    changes = []
    for part in _innermost(events):
        first, last = max(part.start, start), min(part.stop, stop)
        if part.work.kind is not None and first < last:
            changes += [(first, 1, part.work), (last, -1, part.work)]
    found: dict[Work, float] = {}
    at_work: Counter[Work] = Counter()
    before = start
    for time, change, work in sorted([*changes, (stop, 0, _WAITING)], key=lambda change: change[0]):
        sharing = +at_work or Counter({_WAITING: 1})
        for each, times in sharing.items():
            found[each] = found.get(each, 0.0) + (time - before) * times / sharing.total()
        at_work[work] += change
        before = time
    return {work: seconds for work, seconds in found.items() if seconds > 0}


def broken_down(events: Sequence[Event], times: int) -> dict[str, Any]:
    """What a side tells of so many updates in a row: seconds of one by work, the longest first.

    The updates last as long as the event that is named `UPDATES`.
    """
    [whole] = [event for event in events if event.work.name == UPDATES]
    found = sorted(spent(events, whole.start, whole.stop).items(), key=lambda each: -each[1])
    return {BREAKDOWN: [(*work, seconds / times) for work, seconds in found]}


def _innermost(events: Iterable[Event]) -> list[Event]:
    """The events cut where others of their thread lie within them, so that none overlap."""
    parts = []
    open_events: list[Event] = []
    since = 0.0  # up to where the innermost open event has been cut

    def close_until(time: float) -> None:
        nonlocal since
        while open_events and open_events[-1].stop <= time:
            done = open_events.pop()
            parts.append(done._replace(start=since))
            since = max(since, done.stop)

    for event in sorted(events, key=lambda event: (event.thread, event.start, -event.stop)):
        if open_events and open_events[-1].thread != event.thread:
            close_until(float("inf"))
        close_until(event.start)
        if open_events:
            outer = open_events[-1]
            parts.append(outer._replace(start=since, stop=event.start))
            event = event._replace(stop=min(event.stop, outer.stop))
            if outer.work.kind == "attention":
                event = event._replace(work=outer.work)
            elif outer.work.kind == "optimizer":
                event = event._replace(work=Work("optimizer", event.work.name))
        open_events.append(event)
        since = event.start
    close_until(float("inf"))
    return [part for part in parts if part.start < part.stop]


_WAITING = Work("waiting", "waiting")

# XLA. An instruction: its name, its opcode, and what follows; a computation's first line.
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = .*?[\])}] ([a-z][a-z-]*)\((.*)")
_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_OP_NAME, _CALLS = re.compile(r'op_name="([^"]*)"'), re.compile(r"(?:calls|to_apply)=%?([\w.-]+)")
# Events of these span those of other instructions.
_CONTAINERS = {"while", "call", "conditional"}
_NO_WORK = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "iota", "reshape"}
_MOVES = {
    "copy", "transpose", "slice", "concatenate", "gather", "pad", "broadcast", "dynamic-slice", "dynamic-update-slice",
    "reverse", "convert",
}  # fmt: skip
# The model's attention, but for the layers that make queries, keys and values, and the output of their heads.
_ATTENTION = re.compile(r"/attn/(?!c_attn|c_proj|[qkv]/)")


def work_of_instructions(program: str) -> dict[str, Work]:
    """What each instruction of a compiled program does, by its name: `program` is XLA's text of it.

    Fused instructions are a product where one of them is, a reduction likewise, and a copy where none computes. Work is
    named as the model names it, all blocks alike, and by the first of the instruction's own name.
    """
    bodies: dict[str, list[str]] = {}
    instructions, computation = [], ""
    for line in program.splitlines():
        if head := _COMPUTATION.match(line):
            computation = head[1]
        elif instruction := _INSTRUCTION.match(line):
            name, opcode, rest = instruction.groups()
            bodies.setdefault(computation, []).append(opcode)
            of, calls = (found[1] if (found := pattern.search(rest)) else "" for pattern in (_OP_NAME, _CALLS))
            instructions.append((name, opcode, of, calls))
    works = {}
    for name, opcode, of, calls in instructions:
        opcodes = bodies.get(calls, []) if opcode == "fusion" else [opcode]
        works[name] = Work(_kind_of_opcodes(opcodes, of), _in_words(name, of))
    return works


def events_of_planes(planes: Iterable[Any], works: Mapping[str, Work]) -> list[Event]:
    """The events of a JAX trace, as `jax.profiler.ProfileData` has its planes, that `works` knows, and `UPDATES`.

    XLA:CPU starts some products and goes on: those end where an event of its own says so. What is left of them is put
    on a thread of its own.
    """
    traced = [
        (thread, event.name, event.start_ns / 1e9, (event.start_ns + event.duration_ns) / 1e9, dict(event.stats))
        for thread, line in enumerate(line for plane in planes for line in plane.lines)
        for event in line.events
    ]
    ends = {stats.get("_c"): start for _, name, start, _, stats in traced if name.startswith("end: ")}
    events = []
    for thread, name, start, stop, stats in traced:
        work = Work(None, UPDATES) if name == UPDATES else works.get(stats.get("hlo_op", ""))
        if work is not None:
            events.append(Event(thread, start, stop, work))
            if (end := ends.get(stats.get("_p", ""), stop)) > stop:
                events.append(Event(-len(events), stop, end, work))
    return events


def _kind_of_opcodes(opcodes: Iterable[str], of: str) -> str | None:
    done = set(opcodes) - _NO_WORK
    if done & _CONTAINERS:
        return None
    if f"/{OPTIMIZER}/" in of:
        return "optimizer"
    if done <= _MOVES:
        return "copies"
    if _ATTENTION.search(of):
        return "attention"
    if done & {"dot", "convolution", "custom-call"}:
        return "products"
    return "reductions" if done & {"reduce", "reduce-window"} else "elementwise"


def _in_words(name: str, of: str) -> str:
    """``forward attn/c_attn/dot_general (ynn_fusion)``."""
    way = "backward " if "transpose(jvp(" in of else "forward " if "jvp(" in of else ""
    path = re.sub(r"^jit\([^()]*\)/|(transpose\()?jvp\([^()]*\)+/|GPT[.\w]*/|h_\d+/", "", of.split(";")[0])
    return f"{way}{path} ({re.sub(r'[.0-9]+$', '', name)})".strip()


# PyTorch. An operator is what the first pattern that its name holds says; other operators make an elementwise pass.
_OPERATORS = (
    (None, rf"^(autograd::|torch::|\w+Backward\d*$|{UPDATES}$|"
           r"## |Torch-Compiled|CompiledF|Pregraph|AOTDisp|TorchDynamo)"),
    ("optimizer", rf"^{OPTIMIZER}$|^Optimizer\."),
    ("attention", r"attention|bmm|aten::_softmax"),
    ("products", r"(^|[:._])(mm|addmm|linear|matmul|_mkl_linear|_linear_pointwise|linear_backward)$"),
    ("reductions", r"layer_norm|softmax|nll_loss|cross_entropy|::(sum|mean|max|amax)|norm$|fused.*_(sum|mean)"),
    (None, r"^(aten::)?(view|_unsafe_view|reshape|_reshape_alias|t|transpose|as_strided|empty\w*|expand|slice|select|"
           r"unsqueeze|squeeze|narrow|detach\w*|alias|permute|resize_|item|_local_scalar_dense|lift_fresh|to|_to_copy|"
           r"resolve_conj|resolve_neg|result_type|unbind|set_|is_\w+|contiguous|clone|zeros\w*|ones\w*|split\w*|chunk|"
           r"embedding|dropout)$"),
    ("copies", r"::(copy_|cat|stack|index_select|index|gather|fill_|zero_|embedding_dense_backward|arange)"),
    ("copies", r"fused(_+(to_copy|clone|transpose|permute|(unsafe_)?view|copy|split|slice|cat|stack|t|expand))+_\d+$"),
)  # fmt: skip


def work_of_operator(name: str) -> Work:
    """What an event of PyTorch's profiler does. Containers such as ``aten::linear`` count by what lies within them."""
    kind = next((kind for kind, pattern in _OPERATORS if re.search(pattern, name)), "elementwise")
    return Work(kind, re.sub(r"_\d+$", "", re.sub(r"graph_\d+_", "", name)))
