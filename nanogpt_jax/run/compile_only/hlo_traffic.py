"""Bytes that a compiled XLA program moves: over the interconnect, by kind of collective, and through memory.

Read from the program's text, by these rules. An instruction counts as often as it runs: a loop's body as often as the
compiler knows or its condition says that it turns (once where neither does), a branch as if taken. A collective that
the compiler has cut into steps of several fusions has one channel and counts once. Of an array of S bytes in a group of
n devices each sends S(n-1)/n to gather the whole or to exchange all with all, S(n-1)/n of the unreduced array to reduce
and scatter, 2S(n-1)/n to reduce everywhere, and S to pass it on. Of a group that lies in h hosts, of as many devices
each, (h-1)/(n-1) of that goes between hosts: an array enters a host once, by the adapters of all its devices, and is
passed on inside; of an exchange of all with all, what is for other hosts. Memory traffic is what every instruction
reads and writes outside the chip's on-chip memory, whole arrays even where a part would do: more than there is, if
anything.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+(?:e\d+m\d+\w*)?)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(
    r"\b(body|calls|to_apply|true_computation|false_computation|branch_computations)=(\{[^}]*\}|%[\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_NOT_WORK = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id",
}  # fmt: skip


class Traffic(NamedTuple):
    """Bytes of one device, in one run of the program."""

    collectives: dict[str, float]
    between_hosts: float  # of those
    memory: float


class _Instruction(NamedTuple):
    name: str
    type: str
    op: str
    rest: str


class _Sent(NamedTuple):
    kind: str
    size: float
    between_hosts: float


def traffic(text: str, of_a_host: int | None = None) -> Traffic:
    """What a program moves, from the text of a compiled module (`compiled.as_text()`).

    `of_a_host` is how many devices, side by side, are in one host; None for all.
    """
    computations, entry = _parsed(text)
    runs, fused = _runs(computations, entry)
    sent: dict[str, _Sent] = {}
    memory = 0.0
    for name, instructions in computations.items():
        types = {each.name: each.type for each in instructions}
        for each in instructions:
            kind = each.op.removesuffix("-start")
            if kind in KINDS and runs[name]:
                once = _sent(kind, each, name, of_a_host)
                all_ = once._replace(size=once.size * runs[name], between_hosts=once.between_hosts * runs[name])
                key = _found(r"channel_id=(\d+)", each.rest) or each.name
                sent[key] = max(sent.get(key, all_), all_, key=lambda one: one.size)
            if name not in fused and each.op not in _NOT_WORK and not each.op.endswith("-done"):
                operands = re.findall(r"%([\w.\-]+)", each.rest.partition("), ")[0])
                moved = sum(_in_memory(types[operand]) for operand in operands if operand in types)
                memory += runs[name] * (moved + _in_memory(each.type))
    collectives: dict[str, float] = defaultdict(float)
    for one in sent.values():
        collectives[one.kind] += one.size
    return Traffic(dict(collectives), sum(one.between_hosts for one in sent.values()), memory)


def _parsed(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations: dict[str, list[_Instruction]] = {}
    current: list[_Instruction] = []
    entry = ""
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            current = computations.setdefault(found[2], [])
            entry = found[2] if found[1] else entry
        elif found := _INSTRUCTION.match(line):
            current.append(_Instruction(*found.groups()))
    return computations, entry


def _runs(computations: dict[str, list[_Instruction]], entry: str) -> tuple[dict[str, int], set[str]]:
    """How often each computation runs, and those that are inside a fusion."""
    runs: dict[str, int] = defaultdict(int)
    fused: set[str] = set()

    def enter(name: str, times: int, in_fusion: bool) -> None:
        runs[name] += times
        if in_fusion:
            fused.add(name)
        for each in computations.get(name, ()):
            trips = _trips(each, computations) if each.op == "while" else 1
            for how, callees in _CALLED.findall(each.rest):
                if how == "to_apply" and each.op != "call":
                    continue  # what a reduction does with two numbers
                for callee in re.findall(r"%([\w.\-]+)", callees):
                    enter(callee, times * trips, in_fusion or how == "calls")

    enter(entry, 1, False)
    return runs, fused


def _trips(loop: _Instruction, computations: dict[str, list[_Instruction]]) -> int:
    """How often a loop turns: as the compiler notes it, else what its condition compares the counter with, else 1."""
    if noted := _found(_TRIPS, loop.rest):
        return int(noted)
    condition = computations.get(_found(r"condition=%([\w.\-]+)", loop.rest) or "", [])
    limits = [_found(r"^(\d+)\)", each.rest) for each in condition if each.op == "constant"]
    return int(limits[0]) if len(limits) == 1 and limits[0] else 1


def _sent(kind: str, instruction: _Instruction, computation: str, of_a_host: int | None) -> _Sent:
    """What each device of a collective's group sends, under the kind that it is."""
    size = sum(map(_size, _ARRAY.findall(_result(instruction))))

    def hosts_of(devices: list[int]) -> int:
        return len({device // of_a_host for device in devices}) if of_a_host else 1

    if kind == "collective-permute":
        return _Sent(kind, size, size if any(hosts_of(way) > 1 for way in ways_of(instruction.rest)) else 0.0)
    group = groups_of(instruction.rest)[0]  # the others lie in as many hosts
    n, hosts = len(group), hosts_of(group)
    if kind == "all-reduce" and "reduce-scatter" in computation:  # a TPU's way to write it: reduce, then slice
        kind = "reduce-scatter"
    elif kind == "reduce-scatter":
        size *= n  # the result is a share
    size *= (n - 1) / n * (2 if kind == "all-reduce" else 1)
    leaving = n - n / hosts if kind == "all-to-all" else hosts - 1
    return _Sent(kind, size, size * leaving / max(n - 1, 1))


def _result(instruction: _Instruction) -> str:
    """The type of what an instruction makes; the start of a collective has its operands and what it works with too."""
    type_ = instruction.type
    if not instruction.op.endswith("-start") or instruction.op == "all-reduce-start" or not type_.startswith("("):
        return type_
    deep, parts = 0, [""]
    for letter in type_[1:-1]:
        deep += (letter in "([{") - (letter in ")]}")
        if letter == "," and not deep:
            parts.append("")
        parts[-1] += letter
    return parts[1]


def groups_of(rest: str) -> list[list[int]]:
    """The groups of devices of a collective, from any of the three ways in which XLA writes them."""
    if found := re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?\)?)\))? \{([^}]*)\}", rest):
        sizes = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", found[1])}
        along = [[*sizes].index(axis) for axis in re.findall(r"'([^']+)'", found[3])]
        others = [axis for axis in range(len(sizes)) if axis not in along]
        devices = _counted(found[2] or f"[{math.prod(sizes.values())}]").reshape(*sizes.values())
        together = math.prod(devices.shape[axis] for axis in along)
        groups: list[list[int]] = devices.transpose(*others, *along).reshape(-1, together).tolist()
        return groups
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", rest):
        groups = _counted(found[2]).reshape(-1, int(found[1])).tolist()
        return groups
    if found := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", rest):
        return [[int(device) for device in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", found[1])]
    return [[0]]


def ways_of(rest: str) -> list[list[int]]:
    """From where to where a permute passes arrays on."""
    pairs = rest.partition("source_target_pairs={")[2].partition("}}")[0]
    return [[int(device) for device in way] for way in re.findall(r"(\d+),(\d+)", pairs)]


def _counted(iota: str) -> Int[np.ndarray, " n"]:
    """The devices that ``[2,8]T(1,0)`` means: 0 to 15 in two rows, read by columns."""
    dims, order = ([int(n) for n in re.findall(r"\d+", part)] for part in iota.partition("T")[::2])
    return np.arange(math.prod(dims)).reshape(dims).transpose(order or range(len(dims))).ravel()


def _in_memory(type_: str) -> float:
    """Bytes of a type's arrays that do not lie in on-chip memory, which layouts mark S(1)."""
    return sum(_size(array) for array in _ARRAY.findall(type_) if "S(" not in array[2])


def _size(array: tuple[str, str, str]) -> float:
    kind, dims, _ = array
    width = re.search(r"\d+", kind)
    bits = int(width[0]) if width else 8  # pred
    return math.prod(int(dim) for dim in dims.split(",") if dim) * bits / 8


def _found(pattern: str | re.Pattern[str], text: str) -> str | None:
    found = re.search(pattern, text)
    return found[1] if found else None
