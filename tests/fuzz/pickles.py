"""Assembles pickles, also hostile ones, and the files that hold them."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from typing import Any, NamedTuple

from hypothesis import strategies as st

MAGIC = 0x1950A86A20F9469CFC6C


class Raw(NamedTuple):
    """Opcodes that leave one value on the stack."""

    opcodes: bytes


def put(value: Any) -> bytes:
    """The opcodes of a plain value, or of a `Raw` one."""
    if isinstance(value, Raw):
        return value.opcodes
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        body = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8b" + struct.pack("<i", len(body)) + body
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, str):
        body = value.encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(body)) + body
    if isinstance(value, bytes):
        return b"B" + struct.pack("<I", len(value)) + value
    if isinstance(value, tuple):
        return b"(" + b"".join(map(put, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(put, value)) + b"e"
    pairs = (put(key) + put(item) for key, item in value.items())
    return b"}(" + b"".join(pairs) + b"u"


def named(name: str, how: str = "GLOBAL") -> Raw:
    """A name, `module:function`."""
    module, _, own = name.partition(":")
    if how == "STACK_GLOBAL":
        return Raw(put(module) + put(own) + b"\x93")
    return Raw(f"c{module}\n{own}\n".encode("utf-8", "replace"))


CALLS = ("REDUCE", "STACK_GLOBAL", "NEWOBJ", "NEWOBJ_EX", "OBJ", "INST", "BUILD")


def called(name: str, args: tuple[Any, ...] = (), how: str = "REDUCE") -> Raw:
    """A call of a name, by one of the ways that pickles have."""
    target = named(name, how).opcodes
    if how == "OBJ":
        return Raw(b"(" + target + b"".join(map(put, args)) + b"o")
    if how == "INST":
        return Raw(b"(" + b"".join(map(put, args)) + b"i" + target[1:])
    if how == "NEWOBJ_EX":
        return Raw(target + put(args) + b"}\x92")
    if how == "BUILD":
        return Raw(
            target + b")\x81" + put({"__setstate__": named(name), "x": args}) + put(args) + b"b"
        )
    return Raw(target + put(args) + (b"\x81" if how == "NEWOBJ" else b"R"))


def storage(kind: str = "torch:FloatStorage", key: Any = "0", count: Any = 12, *more: Any) -> Raw:
    """A reference to a storage."""
    return Raw(put(("storage", named(kind), key, "cpu", count, *more)) + b"Q")


def tensor(
    of: Any = None, offset: Any = 0, size: Any = (3, 4), stride: Any = (4, 1), dtype: Any = None
) -> Raw:
    """A tensor, by default the whole of the storage `0`."""
    args = (of or storage(), offset, size, stride, False, {})
    if dtype:
        return called("torch._utils:_rebuild_tensor_v3", (*args, named(dtype)))
    return called("torch._utils:_rebuild_tensor_v2", args)


def pickled(value: Any) -> bytes:
    return b"\x80\x04" + put(value) + b"."


def zipped(entries: list[tuple[str, bytes]], packing: int = zipfile.ZIP_STORED) -> bytes:
    """An archive; two entries may have one name."""
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", packing) as archive:
        warnings.simplefilter("ignore")
        for name, content in entries:
            archive.writestr(name, content)
    return file.getvalue()


FORMS = ("zip", "old", "script", "plain", "packed")


def held(form: str, content: bytes) -> bytes:
    """A file of some form with a pickle, and 48 bytes in the storage `0`."""
    values = bytes(range(48))
    if form == "plain":
        return content
    if form == "old":
        head = pickled(MAGIC) + pickled(1001) + pickled({"little_endian": True})
        return head + content + pickled(["0"]) + struct.pack("<q", 12) + values
    entries = [("a/data.pkl", content), ("a/byteorder", b"little"), ("a/data/0", values)]
    if form == "script":
        entries += [("a/constants.pkl", content), ("a/constants/0", values), ("a/code/x.py", b"x")]
    if form == "packed":
        return zipped([("model.ckpt", zipped(entries))], zipfile.ZIP_DEFLATED)
    return zipped(entries)


HOSTILE = (
    *("canary:sing", "canary:sing", "late_canary:sing", "late_canary:song", "canary:Bird.sing"),
    *("os:system", "posix:system", "nt:system", "os:_exit", "os:remove", "os:mkdir", "sys:exit"),
    *("builtins:eval", "builtins:exec", "builtins:__import__", "builtins:open", "builtins:getattr"),
    *("builtins:compile", "builtins:breakpoint", "builtins:type", "builtins:setattr"),
    *("__builtin__:eval", "__builtin__:apply", "__builtin__:file", "io:open", "os:fdopen"),
    *("subprocess:Popen", "subprocess:run", "pty:spawn", "socket:create_connection"),
    *("copyreg:add_extension", "copyreg:_reconstructor", "copyreg:__newobj__", "pickle:loads"),
    *("importlib:import_module", "runpy:run_path", "webbrowser:open", "antigravity:fly", "this:s"),
    *("torch:load", "torch.hub:load", "torch.jit:load", "torch.storage:_load_from_bytes"),
    *(
        "numpy:load",
        "numpy.core.multiarray:_reconstruct",
        "torch.serialization:load",
        "joblib:load",
    ),
    *("operator:attrgetter", "operator:methodcaller", "functools:partial", "functools:reduce"),
    *(
        "collections:OrderedDict.fromkeys",
        "torch._utils:__dict__",
        "torch:Size.__class__",
        ":",
        "a:",
    ),
    *(
        "torch._tensor:Tensor.__setstate__",
        "types:FunctionType",
        "code:interact",
        "..:..",
        "é:\x7f",
    ),
)
KNOWN = (
    *("collections:OrderedDict", "torch:Size", "_codecs:encode", "builtins:set", "numpy:dtype"),
    *("torch._utils:_rebuild_tensor_v2", "torch._utils:_rebuild_tensor_v3", "torch:float32"),
    *("torch._utils:_rebuild_tensor", "torch._utils:_rebuild_parameter", "torch:FloatStorage"),
    *("torch._utils:_rebuild_parameter_with_state", "torch._tensor:_rebuild_from_type_v2"),
    *("torch._utils:_rebuild_qtensor", "torch._utils:_rebuild_anything", "numpy:ndarray"),
    *("numpy.core.multiarray:_reconstruct", "numpy._core.multiarray:scalar", "torch:device"),
    *("numpy._core.numeric:_frombuffer", "torch.jit._pickle:restore_type_tag", "torch:Tensor"),
    *("torch.jit._pickle:build_intlist", "torch.storage:UntypedStorage", "__builtin__:bytes"),
)
NUMBERS = st.sampled_from(
    [0, 1, 2, 3, 4, 12, -1, 2**31, 2**40, 2**62, 2**63, 2**64, 10**30, True, 1.5, None, "x", (1,)]
)
PLAIN = NUMBERS | st.sampled_from(
    [
        *(
            "",
            "0",
            "f4",
            "<",
            "storage",
            "module",
            "latin1",
            "touch canary.txt",
            "\ud800",
            "a\nb",
            "é",
        ),
        *(b"", b"0123", b"\xff" * 8, float("nan"), False, {}, [], (), "_modules", "x" * 2000),
    ]
)
NAMES = st.sampled_from(HOSTILE) | st.sampled_from(KNOWN)
KEYS = st.sampled_from(
    [
        *("a", "a.b", "", 0, 2**70, None, (1, 2), named("os:system"), "_modules", "_parameters"),
        *("_buffers", "_content", "_val", "_non_persistent_buffers_set", "\ud800", 1.5),
    ]
)


def _larger(values: Any) -> Any:
    args = st.lists(values, max_size=7).map(tuple)
    return st.one_of(
        st.builds(called, NAMES, args, st.sampled_from(CALLS)),
        st.builds(
            lambda made, state: Raw(put(made) + put(state) + b"b"),
            st.builds(called, NAMES),
            values,
        ),
        st.builds(lambda key, item: Raw(b"}(" + put(key) + put(item) + b"u"), KEYS, values),
        st.builds(lambda one: Raw(put(one) + b"Q"), args),
        st.builds(storage, st.sampled_from(["torch:FloatStorage", "os:system"]), values, values),
        st.builds(tensor, values, values, args, args),
        st.lists(values, max_size=4),
        args,
    )


VALUES = st.recursive(
    PLAIN | st.builds(named, NAMES, st.sampled_from(["GLOBAL", "STACK_GLOBAL"])),
    _larger,
    max_leaves=12,
)
# Single opcodes with and without arguments, in any order.
SOUP = st.lists(
    st.sampled_from(
        [
            *(
                bytes([each])
                for each in b"0123()]}NtldeabsuoQR.\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92"
            )
        ]
        + [
            *(
                b"\x93",
                b"\x94",
                b"K\x01",
                b"h\x00",
                b"h\x01",
                b"q\x00",
                b"q\x01",
                b"r\xff\xff\xff\x7f",
            ),
            *(
                b"j\xff\xff\xff\xff",
                b"p99999999999\n",
                b"g0\n",
                b"Pos\n",
                b"I01\n",
                b"S'a'\n",
                b"F1\n",
            ),
        ]
        + [
            *(b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00", b"\x97", b"\x98", b"\x80\x05"),
            *(
                b"\x95" + b"\xff" * 8,
                b"\x8e" + b"\xff" * 7 + b"\x7f",
                b"B\xff\xff\xff\xff",
                b"V\\ud800\n",
            ),
        ]
        + [
            *(
                b"\x96\x00\x00\x00\x00\x10\x00\x00\x00",
                b"\x8b\xff\xff\xff\x7f",
                b"\x8a\xff",
                b"T\0\0\0\xff",
            ),
            *(named(name).opcodes for name in HOSTILE),
        ]
        + [called(name, ("x",)).opcodes for name in (*HOSTILE, *KNOWN)]
        + [put(value) for value in ("a", ("x",), {"a": 1}, [1], ("storage",), ())]
        + [storage().opcodes, tensor().opcodes, b"iposix\nsystem\n", b"icanary\nsing\n"]
    ),
    max_size=25,
).map(lambda many: b"\x80\x04" + b"".join(many) + b".")


def _beside(value: Any) -> bytes:
    return pickled({"state_dict": {"w": tensor()}, "x": value})


PICKLES = st.builds(_beside, VALUES) | st.builds(pickled, VALUES) | SOUP
TYPES = st.sampled_from(
    [
        *("torch:FloatStorage", "torch:LongStorage", "torch:ByteStorage", "torch:BoolStorage"),
        *(
            "torch.storage:UntypedStorage",
            "torch:QInt8Storage",
            "torch:ComplexFloatStorage",
            "os:x",
        ),
    ]
)
SIZES = st.lists(NUMBERS, max_size=4).map(tuple) | NUMBERS
TENSORS = st.builds(
    lambda of, offset, size, stride, dtype: pickled(
        {"w": tensor(), "x": tensor(of, offset, size, stride, dtype)}
    ),
    st.builds(
        lambda kind, key, count, view: storage(kind, key, count, *view),
        TYPES,
        st.sampled_from(["0", "1", "../0", 0, None]),
        st.sampled_from([12, 12, 12, 48, 6]) | NUMBERS,
        st.sampled_from([(), (), (None,)]) | st.tuples(st.tuples(st.just("1"), NUMBERS, NUMBERS)),
    ),
    NUMBERS,
    SIZES,
    SIZES,
    st.sampled_from(
        [None, None, "torch:float32", "torch:float8_e4m3fn", "torch:uint16", "os:system"]
    ),
)
ENTRIES = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("a/data.pkl", "a/data/0", "a/byteorder", "a/constants.pkl", "a/constants/0"),
                *("../../x", "/etc/passwd", "a/data/../0", "b/data.pkl", "data.pkl", "x.ckpt", "é"),
            ]
        ),
        st.sampled_from([pickled({"w": tensor()}), bytes(48), b"little", b"big", b"", b"x" * 5000]),
    ),
    max_size=6,
)


def patched(content: bytes, changes: list[tuple[int, int, int]]) -> bytes:
    """An archive with fields of its entries' headers overwritten."""
    data = bytearray(content)
    places = [
        place
        for mark in (b"PK\1\2", b"PK\3\4", b"PK\5\6")
        for place in range(len(data))
        if data.startswith(mark, place)
    ]
    for number, field, value in changes:
        start = places[number % len(places)] + field
        data[start : start + 4] = struct.pack("<I", value)
    return bytes(data[: len(content)])


PATCHES = st.lists(
    st.tuples(
        st.integers(0, 30),
        st.sampled_from([4, 6, 8, 10, 14, 16, 18, 20, 22, 24, 26, 28, 30, 34, 42]),
        st.sampled_from([0, 1, 8, 12, 14, 48, 99, 2**16, 2**20, 2**31, 2**32 - 1]),
    ),
    min_size=1,
    max_size=3,
)
