"""Mutates the JSON of real files and assembles safetensors files around it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value] if levels % 2 else {"name": "vq", "kind": "quantizer", "options": value}
    return value


NASTY: list[Any] = [
    *(None, True, False, -1, 0, 1, 2, 3, 7, 2**16, 2**31, 2**63, 10**9, 10**15, 10**400),
    *(1.5, -0.0, 1e308, float("nan"), float("inf"), -float("inf")),
    *("", "\ud800", "\0", "../../x", "/etc/passwd", "x" * 5000, "1" * 5000, "é\n\x1b[31m", "-1"),
    *("hf://a/b", "none", "vq", "fsq", "timm", "aren", "lfq", "mirror", "pixel", "true", "1e400"),
    *("F32", "F4", "F6_E2M3", "F8_E8M0", "I64", "I32", "C64", "BOOL", "f32", "B"),
    *([], {}, [[]], [None], [-1], [0], [2**62, 2**62], [10**18] * 4, [1] * 300, [0, 10**400]),
    *({"name": "none"}, {"name": []}, {"name": "folder", "location": "/etc"}, _deep(301)),
    *(_deep(80), [2**40, 2**41], ["vq"], [4, 8, 16, 32], [16, 8], {"a": {"b": {"c": 1}}}),
]


class Change(NamedTuple):
    """One change to a JSON tree: an action at the place of this number."""

    place: int
    action: str
    value: Any


changes = st.lists(
    st.builds(
        Change,
        st.integers(0, 10**6),
        st.sampled_from(["put", "put", "put", "drop", "add", "rename", "shift", "double"]),
        st.one_of(
            st.sampled_from(NASTY),
            st.integers(),
            st.text(max_size=8),
            st.floats(),
            st.recursive(st.none() | st.integers(), st.lists, max_leaves=4),
        ),
    ),
    min_size=1,
    max_size=3,
)


def changed(tree: Any, todo: list[Change]) -> Any:
    """A copy of `tree` with these changes."""
    tree = copy.deepcopy(tree)
    for change in todo:
        places = list(_places(tree))
        if not places:
            return tree
        holder, key = places[change.place % len(places)]
        old = holder[key]
        if change.action == "put":
            holder[key] = copy.deepcopy(change.value)
        elif change.action == "drop":
            del holder[key]
        elif change.action == "shift" and type(old) is int:
            holder[key] = old + (change.place % 17) - 8
        elif change.action == "double" and isinstance(old, int | str | list):
            holder[key] = old * 2
        elif isinstance(holder, dict):
            holder[str(change.value)] = holder.pop(key) if change.action == "rename" else old
        else:
            holder.append(copy.deepcopy(change.value))
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    for key in keys:
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _places(tree[key])


class Parts(NamedTuple):
    """The parts of one of genkit's safetensors files."""

    tensors: dict[str, Any]
    info: Any
    body: bytes


def parts_of(path: Path) -> Parts:
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    return Parts(header, json.loads(header.pop("__metadata__")["genkit"]), content[end:])


def assembled(tensors: Any, info: Any, body: bytes, off: int = 0) -> bytes:
    """A safetensors file; its stated header length may be wrong by `off`."""
    table = tensors if isinstance(tensors, dict) else {}
    header = json.dumps({**table, "__metadata__": {"format": "pt", "genkit": json.dumps(info)}})
    return max(0, len(header) + off).to_bytes(8, "little") + header.encode() + body


@st.composite
def files(draw: Any, parts: Parts) -> bytes:
    """A file with wrong tensor entries, metadata, header length or end."""
    tensors, info, body, off = *parts, 0
    where = draw(st.sampled_from(["info"] * 6 + ["tensors"] * 3 + ["end", "length"]))
    if where == "info":
        info = changed(info, draw(changes))
    elif where == "tensors":
        few = dict(list(tensors.items())[: draw(st.integers(1, 4))])
        tensors = {**tensors, **changed(few, draw(changes))}
    elif where == "end":
        body = body[: draw(st.integers(0, len(body)))] + draw(st.binary(max_size=9))
    else:
        off = draw(st.sampled_from([-1, 1, -8, 2**20, 2**40, 2**63 - 2**20]))
    return assembled(tensors, info, body, off)


@st.composite
def spoilt(draw: Any, content: bytes) -> bytes:
    """A file that is truncated, has bytes changed, inserted or removed, or is random bytes."""
    start = int.from_bytes(content[:8], "little") + 8
    size = draw(st.one_of(st.integers(0, len(content)), st.integers(0, start)))
    kind = draw(st.sampled_from(["cut", "set", "in", "out", "any"]))
    extra = draw(st.binary(min_size=1, max_size=16))
    if kind == "any":
        return bytes(draw(st.binary(max_size=200)))
    tail = {"cut": b"", "in": extra + content[size:], "out": content[size + len(extra) :]}
    return content[:size] + tail.get(kind, extra + content[size + len(extra) :])
