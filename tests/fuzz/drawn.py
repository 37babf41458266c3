"""What is drawn: changes of files and of documents, odd values."""

import copy
import functools
import itertools
import json

from hypothesis import strategies as st

# What a file may have become.
bits = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 7)), min_size=1, max_size=4)
bytes_changes = st.one_of(
    st.tuples(st.just("truncate"), st.integers(0, 10**6)),
    st.tuples(st.just("flip"), bits),
    st.tuples(st.just("write"), st.tuples(st.integers(0, 10**6), st.binary(max_size=40))),
    st.tuples(st.just("insert"), st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=40))),
    st.tuples(st.just("replace"), st.binary(max_size=60)),
    st.tuples(st.just("zero"), st.none()),
    st.tuples(st.just("remove"), st.none()),
    st.tuples(st.just("folder"), st.none()),
    st.tuples(st.just("loop"), st.none()),
)


def change(path, how):
    """Do to a file what was drawn."""
    kind, detail = how
    data = bytearray(path.read_bytes())
    if kind in ("remove", "folder", "loop"):
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "loop":
            path.symlink_to(path)
        return
    if kind == "truncate":
        data = data[: detail % (len(data) + 1)]
    elif kind == "flip":
        for place, bit in detail:
            if data:
                data[place % len(data)] ^= 1 << bit
    elif kind == "write":
        place = detail[0] % (len(data) + 1)
        data[place : place + len(detail[1])] = detail[1]
    elif kind == "insert":
        place = detail[0] % (len(data) + 1)
        data[place:place] = detail[1]
    else:
        data = bytearray(detail) if kind == "replace" else bytearray(len(data))
    path.write_bytes(data)


odd = st.sampled_from((
    None, True, False, 0, -1, 1, 2, 7, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, float("inf"), float("nan"), "", "x",
    "0", "é", "\ud800", "a" * 1000, [], {}, [[]], {"": 0}, "gpt2", "char", "uint16", "/etc/passwd", "../x", "\0",
))  # fmt: skip
odder = st.recursive(odd, lambda of: st.lists(of, max_size=3) | st.dictionaries(st.text(max_size=4), of, max_size=3))
json_changes = st.lists(
    st.tuples(st.sampled_from(["set", "remove", "add"]), st.integers(0, 10**6), odder), min_size=1, max_size=3
)


def places(document, at=()):
    """The path of every value in a JSON document."""
    yield at
    if isinstance(document, dict | list):
        items = document.items() if isinstance(document, dict) else enumerate(document)
        for key, value in items:
            yield from places(value, (*at, key))


def changed(document, changes):
    """A JSON document after the changes that were drawn."""
    for kind, number, drawn in changes:
        value = copy.deepcopy(drawn)  # one object may be drawn twice, and would be put into itself
        paths = [path for path in itertools.islice(places(document), 2000) if path]
        if not paths:
            return document
        *parents, last = paths[number % len(paths)]
        within = functools.reduce(lambda part, key: part[key], parents, document)
        if kind == "remove":
            del within[last]
        elif kind == "set":
            within[last] = value
        elif isinstance(within, dict):
            within[f"{last}x"] = value
        else:
            within.append(value)
    return document


def change_json(path, changes):
    path.write_text(json.dumps(changed(json.loads(path.read_text()), changes)))
