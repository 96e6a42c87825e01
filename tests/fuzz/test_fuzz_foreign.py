"""Checkpoints of strangers: whatever they hold is read as data or refused; nothing of it runs."""

from __future__ import annotations

import copyreg
import pickle
import struct
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz import pickles
from fuzz.counts import FULL, QUICK, counted
from fuzz.mutations import assembled, changed, changes, spoilt
from fuzz.pickles import FORMS, Raw, called, held, named, pickled, put, storage, tensor, zipped
from fuzz.watch import explore, watched
from hypothesis import strategies as st
from safetensors.torch import save_file

from genkit.errors import CheckpointError
from genkit.files import printable
from genkit.foreign.bounded import room
from genkit.foreign.read import Foreign, read_checkpoint

NEVER = ("import", "compile", "code.__new__", "marshal.loads", "ctypes.dlopen", "os.listdir")
Check = Callable[[bytes], Foreign | None]


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Any]]:
    """A list of the calls of functions that pickles name; one of their modules is not imported."""
    heard: list[Any] = []
    module = types.ModuleType("canary")
    vars(module).update(sing=lambda *args, **options: heard.append(args), heard=heard)
    folder = tmp_path_factory.mktemp("canary")
    (folder / "late_canary.py").write_text("import canary\ncanary.heard.append('late')\n")
    sys.path.insert(0, str(folder))
    sys.modules["canary"] = module
    yield heard
    sys.path.remove(str(folder))
    del sys.modules["canary"]
    sys.modules.pop("late_canary", None)


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Reads files of every form once, which imports codecs."""
    path = tmp_path_factory.mktemp("warm") / "warm.ckpt"
    pickles = (b"\x80\x02V\\u00e9\n.", pickled({"w": tensor()}), pickled({"é": tensor()}))
    files = [held(form, content) for form in FORMS for content in pickles]
    # A name in the old code page of zip archives.
    files.append(zipped([("x/data.pkl", b"\x80")]).replace(b"x/data", b"\xe9/data"))
    for file in files:
        path.write_bytes(file)
        with suppress(CheckpointError):
            read_checkpoint(path)


@pytest.fixture
def check(canary: list[Any], warm: None, tmp_path: Path) -> Check:
    """Reads a file of some content; fails if it does anything but return tensors or refuse it."""
    path = tmp_path / "foreign.ckpt"

    def read() -> Foreign | None:
        try:
            return read_checkpoint(path)
        except CheckpointError as error:
            text = str(error).removeprefix(f"'{path}'")
        assert printable(text) == text
        assert 15 < len(text) < 500
        return None

    def check(content: bytes) -> Foreign | None:
        path.write_bytes(content)
        before = set(sys.modules)
        with watched([path], seconds=5, megabytes=300, never=NEVER):
            found = read()
        assert not canary, canary
        assert set(sys.modules) == before
        if found:
            values = found.tensors.values()
            assert sum(each.numel() * each.element_size() for each in values) <= room(len(content))
            for each in values:  # It touches every byte.
                each.contiguous().flatten().view(torch.uint8).sum()
        return found

    return check


@counted("pickles")
def test_hostile_pickles(check: Check, count: int) -> None:
    explore(
        st.builds(held, st.sampled_from(FORMS), pickles.PICKLES), lambda case: check(case), count
    )


@counted("tensors")
def test_tensors_of_any_size(check: Check, count: int) -> None:
    forms = st.sampled_from(["zip", "old", "script"])
    explore(st.builds(held, forms, pickles.TENSORS), lambda case: check(case), count)


@counted("archives")
def test_mutated_archives(check: Check, count: int) -> None:
    whole = pickled({"w": tensor()})
    packing = st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    real = [held(form, whole) for form in ("zip", "script", "packed")]
    real.append(zipped([("a/data.pkl", whole), ("a/data/0", bytes(48))], zipfile.ZIP_DEFLATED))
    cases = st.builds(zipped, pickles.ENTRIES, packing) | st.builds(
        pickles.patched, st.sampled_from(real), pickles.PATCHES
    )
    explore(cases, lambda case: check(case), count)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@counted("spoilt")
def test_spoilt_files(check: Check, tmp_path: Path, count: int) -> None:
    paths = [tmp_path / name for name in ("new", "old", "script", "safe")]
    state = {"net": {"w": torch.randn(3, 4), "b": torch.ones(2).bfloat16()}, "epoch": 3}
    torch.save(state, paths[0])
    torch.save(state, paths[1], _use_new_zipfile_serialization=False)
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(paths[2]))
    save_file(state["net"], paths[3])
    contents = [path.read_bytes() for path in paths]
    assert all(check(content) for content in contents)
    entries = {
        "w": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]},
        "b": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [48, 52]},
    }
    headers = st.builds(
        lambda todo, off: assembled(changed(entries, todo), {}, bytes(52), off),
        changes,
        st.sampled_from([0, 0, 0, -1, 1, 2**40]),
    )
    flips = st.builds(
        flipped,
        st.sampled_from(contents),
        st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=4),
    )
    cases = flips | headers | st.one_of(*map(spoilt, contents))
    explore(cases, lambda case: check(case), count)


def flipped(content: bytes, places: list[tuple[float, int]]) -> bytes:
    """A file with bits of some bytes flipped; a place is a share of its length."""
    data = bytearray(content)
    for place, bits in places:
        data[min(int(place * len(data)), len(data) - 1)] ^= bits
    return bytes(data)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", pickles.CALLS)
def test_every_way_to_call_a_function(check: Check, how: str, form: str) -> None:
    calls = [called(name, ("touch x",), how) for name in (*pickles.HOSTILE[:3], "os:system")]
    found = check(held(form, pickled({"x": calls, "w": tensor()})))
    if form != "plain":
        assert found
        assert found.tensors["w"].shape == (3, 4)


@pytest.mark.parametrize("opcode", [b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\x00\x00\x00"])
def test_extensions_that_this_process_knows(check: Check, opcode: bytes) -> None:
    copyreg.add_extension("canary", "sing", 1)  # type: ignore[no-untyped-call]
    try:
        # Its object is cached: an unpickler takes it without asking for a name.
        with suppress(AttributeError, pickle.UnpicklingError):
            pickle.loads(b"\x80\x02" + opcode + b".")
        assert check(b"\x80\x02" + opcode + put(("x",)) + b"R.") is None
    finally:
        copyreg.remove_extension("canary", "sing", 1)  # type: ignore[no-untyped-call]
        copyreg._extension_cache.clear()  # type: ignore[attr-defined]


def test_the_chain_that_gets_at_functions_by_attributes(check: Check) -> None:
    builtin = called("builtins:getattr", (named("builtins:__dict__"), "get"))
    function = called("builtins:getattr", (builtin, "eval"))
    chained = Raw(put(function) + put(("canary.sing()",)) + b"R")
    assert check(held("zip", pickled({"w": tensor(), "x": chained})))


COUNT = 15_000
BIG = b"(" + b"K\x01" * COUNT + b"t\x94"
PAIRS = b"]\x94(" + b"K\x01K\x02\x86" * COUNT + b"e"
TEXT = b"X" + struct.pack("<I", 2**24) + b"a" * 2**24 + b"\x94"
BOMBS = {
    "lists in lists": b"]" * COUNT + b"a" * (COUNT - 1),
    "tuples in tuples": b")" + b"\x85" * COUNT,
    "dicts in dicts": b"}K\x01" * COUNT + b"}" + b"s" * COUNT,
    "states in states": b"cos\nsystem\n\x94" + b")R" + b"h\x00)\x81" * COUNT + b"b" * COUNT,
    "marks": b"(" * COUNT,
    "calls of results": b"cos\nsystem\n" + b")R" * COUNT,
    "arguments in arguments": b"cos\nsystem\n\x94" + b"h\x00" * COUNT + b")" + b"R\x85" * COUNT,
    "a type in a type": named("torch._tensor:_rebuild_from_type_v2").opcodes
    + b"\x94"
    + b"h\x00ctorch\nTensor\n" * 3000
    + b")N"
    + b"(NNNt" * 3000,
    "long arguments": b"cos\nsystem\n\x94" + BIG + b"0h\x00h\x01R" * COUNT,
    "long lists of pairs": b"ccollections\nOrderedDict\n\x94" + PAIRS + b"0h\x00h\x01\x85R" * COUNT,
    "long texts": b"c_codecs\nencode\n\x94" + TEXT + b"0h\x00h\x01\x85R" * COUNT,
    "doubled lists": b"]\x94" + b"".join(b"](h%ch%ce\x94" % (each, each) for each in range(50)),
    "one module many times": b"cos\nsystem\n\x94)R}(X\x08\x00\x00\x00_modules}"
    + b"".join(b"M" + struct.pack("<H", each) + b"h\x00" for each in range(COUNT))
    + b"ub\x94]("
    + b"h\x01" * COUNT
    + b"e",
    "a list in itself": b"]\x94h\x00a",
    "one hash": b"}("
    + b"".join(
        b"\x8a\x0c" + (each * (2**61 - 1)).to_bytes(12, "little") + b"N"
        for each in range(3 * COUNT)
    )
    + b"u",
    "a far place in the memo": b"Nr\xff\xff\xff\x7f",
    "long bytes": b"\x8e" + struct.pack("<Q", 2**40),
    "long bytearray": b"\x96" + struct.pack("<Q", 2**34),
    "longest bytes": b"\x8e" + struct.pack("<Q", 2**63 - 1),
    "a long text": b"\x8d" + struct.pack("<Q", 2**30),
    "a long number": b"\x8b" + struct.pack("<i", 2**31 - 1),
    "a negative number of bytes": b"\x8b" + struct.pack("<i", -5),
    "a long frame": b"\x95" + struct.pack("<Q", 2**63),
    "many digits": b"I" + b"9" * 10**6 + b"\n",
}


@pytest.mark.parametrize("name", BOMBS)
def test_small_files_that_would_take_much_time_or_memory(check: Check, name: str) -> None:
    assert check(b"\x80\x04" + BOMBS[name] + b".") is None
    assert check(held("zip", b"\x80\x04}X\x01\x00\x00\x00w" + BOMBS[name] + b"s.")) is None


@pytest.mark.parametrize(
    "wrong",
    [
        tensor(size=(3, 5)),
        tensor(size=(13,), stride=(1,)),
        tensor(stride=(5, 1)),
        tensor(offset=1),
        tensor(offset=-1),
        tensor(offset=2**63),
        tensor(size=(-3, 4)),
        tensor(size=(3,)),
        tensor(size="34", stride="41"),
        tensor(size=(True, 4)),
        tensor(stride=(-4, 1)),
        tensor(stride=(2**62, 1)),
        tensor(size=(2**40, 2**40), stride=(0, 0)),
        tensor(size=(2**13, 2**13), stride=(0, 0)),
        tensor(size=(0, 2**62), stride=(1, 1)),
        tensor(size=(1,) * 65, stride=(1,) * 65),
        tensor(storage(count=11), size=(2, 4)),
        tensor(storage(count=13)),
        tensor(storage(count=-1), size=(0,), stride=(1,)),
        tensor(storage(count=2**40), size=(1,), stride=(1,)),
        tensor(dtype="torch:int32"),
        tensor(storage("torch:DoubleStorage"), size=(1,), stride=(1,)),
        tensor(storage(key="1"), size=(1,), stride=(1,)),
        tensor(storage("torch.storage:UntypedStorage", count=48), dtype="torch:float64"),
        tensor(storage("torch.storage:UntypedStorage", count=48), dtype="os:system"),
        tensor(storage("torch:FloatStorage", "0", 12, ("1", 6, 7))),
        tensor(storage("torch:FloatStorage", "0", 12, ("1", 6, 6))),
        tensor(
            storage("torch.storage:UntypedStorage", "0", 48, ("1", 2, 40)),
            size=(2,),
            stride=(1,),
            dtype="torch:float32",
        ),
        tensor("0"),
        tensor(called("os:system", ("touch x",))),
    ],
    ids=range(30),
)
@pytest.mark.parametrize("form", ["zip", "old", "script"])
def test_tensors_that_their_storage_does_not_hold(check: Check, wrong: Raw, form: str) -> None:
    assert check(held(form, pickled({"x": wrong}))) is None


def test_tensors_at_the_ends_of_their_storage(check: Check) -> None:
    right = {
        "all": tensor(size=(12,), stride=(1,)),
        "last": tensor(offset=11, size=(), stride=()),
        "none": tensor(offset=12, size=(0,), stride=(1,)),
        "same": tensor(size=(2**10, 12), stride=(0, 1)),
    }
    part = tensor(storage("torch:FloatStorage", "0", 12, ("1", 6, 6)), size=(6,), stride=(1,))
    for form in ("zip", "old", "script"):
        found = check(held(form, pickled(right | {"part": part})))
        assert found
        values = torch.frombuffer(bytearray(range(48)), dtype=torch.float32)
        assert torch.equal(found.tensors["all"], values)
        assert torch.equal(found.tensors["last"], values[11])
        assert torch.equal(found.tensors["part"], values[6:])


def test_a_large_storage_and_the_end_of_a_file(check: Check) -> None:
    count = 2**22 + 1  # Longer than the longest list of entries.
    large = pickled({"w": tensor(storage(count=count), size=(count,), stride=(1,))})
    values = torch.arange(count, dtype=torch.float32)
    data = values.numpy().tobytes()
    found = check(zipped([("a/data.pkl", large), ("a/data/0", data)]))
    assert found
    assert torch.equal(found.tensors["w"], values)
    far = pickled({"w": tensor(storage(count=2**40), size=(2,), stride=(1,))})
    content = held("old", far)
    assert check(content.replace(struct.pack("<q", 12), struct.pack("<q", 2**40))) is None


def test_a_list_in_itself_is_followed_once(check: Check) -> None:
    cyclic = Raw(b"]\x94h\x00aK\x05a")
    found = check(held("zip", pickled({"x": cyclic, "w": tensor()})))
    assert found
    assert found.facts == {"x": [None, 5]}


def test_the_depth_of_nesting(check: Check) -> None:
    def nested(levels: int) -> bytes:
        return pickled({"w": tensor(), "x": Raw(b"]" * levels + b"a" * (levels - 1))})

    assert check(held("zip", nested(63)))
    assert check(held("zip", nested(64))) is None


def test_archives_that_would_unpack_to_much_more(check: Check, tmp_path: Path) -> None:
    count = 2**26 + 2**22
    zeros, few = bytes(count), count // 4
    large = tensor(storage(count=few), size=(few,), stride=(1,))
    packing = zipfile.ZIP_DEFLATED
    bomb = zipped([("a/data.pkl", pickled({"w": large})), ("a/data/0", zeros)], packing)
    assert check(bomb) is None
    with pytest.raises(CheckpointError, match="its entries unpack to over"):
        read_checkpoint(tmp_path / "foreign.ckpt")
    assert check(zipped([("x.ckpt", zeros)], packing)) is None
    # It states a size of 48 bytes in every place that states one.
    whole = ("a/data.pkl", pickled({"w": tensor()}))
    bomb = zipped([whole, ("a/data/0", zeros)], packing)
    assert check(bomb.replace(struct.pack("<I", count), struct.pack("<I", 48))) is None


def test_archives_with_a_false_list_of_entries(check: Check) -> None:
    whole = ("a/data.pkl", pickled({"w": tensor()}))
    assert check(zipped([whole, ("a/data/0", bytes(48)), ("a/data/0", bytes(48))])) is None
    two = [whole, ("a/data/0", bytes(48))]
    for packing in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        assert check(zipped(two, packing)) is None
    # The second entry lies at the place of the first.
    content = bytearray(zipped([*two, ("a/other", b"")]))
    last = content.rindex(b"PK\1\2")
    assert check(bytes(content))
    content[last + 42 : last + 46] = bytes(4)
    assert check(bytes(content)) is None
    many = zipped([whole, ("a/data/0", bytes(48))] + [(f"a/{each}", b"") for each in range(300)])
    assert check(many)
    # Its entries share their bytes.
    start = many.rindex(b"PK\5\6")
    assert (
        check(many[:start] + struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 9, 9, 2**31, 0, 0)) is None
    )


def test_a_list_of_entries_that_is_too_long(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [("a/data.pkl", pickled({"w": tensor()})), ("a/data/0", bytes(48))]
    content = zipped(whole + [(f"a/{each}", b"") for each in range(300)])
    monkeypatch.setattr("genkit.foreign.archive.DIRECTORY", 1000)
    assert check(content) is None


def test_twenty_thousand_cases_with_foreign_files() -> None:
    names = ("pickles", "tensors", "archives", "spoilt")
    assert sum(FULL[name] for name in names) >= 20_000
    assert sum(QUICK[name] for name in names) >= 500
