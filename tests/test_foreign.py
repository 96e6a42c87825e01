"""Checkpoints of other projects, read without their libraries, are what torch itself reads."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import pickle
import sys
import tarfile
import types
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from genkit.errors import CheckpointError, GenkitError
from genkit.foreign import machine
from genkit.foreign.config import facts_of_yaml
from genkit.foreign.read import Foreign, read_checkpoint

FORMS = pytest.mark.parametrize("new", [True, False], ids=["zip", "old"])


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same type, shape, strides and bytes."""
    raw = [each.detach().contiguous().flatten().view(torch.uint8) for each in (one, other)]
    return (one.dtype, one.shape, one.stride()) == (
        other.dtype,
        other.shape,
        other.stride(),
    ) and torch.equal(*raw)


def the_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return list(found) == list(expected) and all(
        alike(found[name], expected[name]) for name in found
    )


def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    shared = torch.randn(6, 8)
    return OrderedDict(
        {
            "conv.weight": torch.randn(4, 3, 3, 3),
            "conv.last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
            "half": torch.randn(5).half(),
            "bf16": torch.randn(5).bfloat16(),
            "double": torch.randn(5).double(),
            "f8a": torch.randn(7).to(torch.float8_e4m3fn),
            "f8b": torch.randn(7).to(torch.float8_e5m2),
            "u16": torch.arange(5).to(torch.uint16),
            "long": torch.tensor(7),
            "bytes": torch.arange(9, dtype=torch.uint8),
            "bool": torch.tensor([True, False, True]),
            "empty": torch.zeros(0, 3),
            "whole": shared,
            "part": shared[2:4],
            "turned": shared.t()[1:, ::2],
            "expanded": torch.randn(3, 1).expand(3, 4),
            "parameter": nn.Parameter(torch.randn(3)),
        }
    )


@pytest.fixture
def foreign() -> Iterator[Callable[..., Any]]:
    """Makes classes in modules that exist until the fixture's `forget` is called."""
    made: list[str] = []

    def make(name: str, base: type = object, **members: Any) -> Any:
        module, _, own = name.rpartition(".")
        parts = module.split(".")
        for count in range(1, len(parts) + 1):
            package = ".".join(parts[:count])
            if package not in sys.modules:
                sys.modules[package] = types.ModuleType(package)
                made.append(package)
        kind = type(own, (base,), {"__module__": module, **members})
        setattr(sys.modules[module], own, kind)
        return kind

    def forget() -> None:
        for name in made:
            sys.modules.pop(name, None)

    make.forget = forget  # type: ignore[attr-defined]
    yield make
    forget()


def read_without(foreign: Any, path: Path) -> Foreign:
    """Read a file when the modules that it names are gone; none of them comes back."""
    foreign.forget()
    before = set(sys.modules)
    found = read_checkpoint(path)
    assert set(sys.modules) == before
    return found


@FORMS
def test_a_state_dict_is_what_torch_reads(tmp_path: Path, new: bool) -> None:
    path = tmp_path / "model.pt"
    torch.save(state(), path, _use_new_zipfile_serialization=new)
    found = read_checkpoint(path)
    assert the_same(found.tensors, state())
    if new:  # PyTorch cannot read its own float8 in the old form.
        assert the_same(found.tensors, torch.load(path, weights_only=True))
    assert found.format == ("PyTorch zip" if new else "PyTorch before 1.6")
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    addresses = [
        found.tensors[name].untyped_storage().data_ptr() for name in ("whole", "part", "turned")
    ]
    assert len(set(addresses)) == 1
    assert not any(each.requires_grad for each in found.tensors.values())


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {"a.b": torch.randn(3, 4).bfloat16(), "c": torch.arange(3)}
    save_file(tensors, path, {"format": "pt", "note": "x"})
    found = read_checkpoint(str(path))
    assert the_same(dict(sorted(found.tensors.items())), tensors)
    assert found.facts == {"format": "pt", "note": "x"}
    assert found.format == "safetensors"


@FORMS
def test_lightning_with_classes_that_are_missing(tmp_path: Path, foreign: Any, new: bool) -> None:
    attributes = foreign("pytorch_lightning.utilities.parsing.AttributeDict", dict)
    callback = foreign("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")
    config = foreign("omegaconf.dictconfig.DictConfig")
    sequence = foreign("omegaconf.listconfig.ListConfig")
    node = foreign("omegaconf.nodes.AnyNode")

    def wrapped(value: Any, parent: Any = None) -> Any:
        kind = {dict: config, list: sequence}.get(type(value), node)
        made = kind()
        made._parent, made._metadata = parent, argparse.Namespace(ref_type=Any, key=None)
        if kind is node:
            made._val = value
        elif kind is config:
            made._content = {key: wrapped(item, made) for key, item in value.items()}
        else:
            made._content = [wrapped(item, made) for item in value]
        return made

    settings = {"embed_dim": 256, "ddconfig": {"ch_mult": [1, 2, 4], "dropout": 0.0, "x": None}}
    hyper = attributes(settings | {"given": wrapped(settings)})
    model = state()
    path = tmp_path / "last.ckpt"
    torch.save(
        {
            "state_dict": model,
            "ema": model,
            "epoch": 3,
            "hyper_parameters": hyper,
            "callbacks": {callback: {"best_model_score": torch.tensor(0.5), "monitor": "val"}},
            "args": argparse.Namespace(vq_model="VQ-16", lr=np.float64(1e-4), steps=np.int64(3)),
            "metrics": defaultdict(list, {"loss": [1.5, float("inf")]}),
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}, "lr": (1, 2)}],
        },
        path,
        _use_new_zipfile_serialization=new,
    )
    found = read_without(foreign, path)
    for prefix in ("state_dict", "ema"):
        own = {
            name.removeprefix(f"{prefix}."): each
            for name, each in found.tensors.items()
            if name.startswith(f"{prefix}.")
        }
        assert the_same(own, model)
    name = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
    assert found.tensors[f"callbacks.{name}.best_model_score"].item() == 0.5
    assert torch.equal(found.tensors["optimizer_states.0.state.0.exp_avg"], torch.ones(2))
    assert found.facts == {
        "epoch": 3,
        "hyper_parameters": settings | {"given": settings},
        "callbacks": {name: {"monitor": "val"}},
        "args": {"vq_model": "VQ-16", "lr": 1e-4, "steps": 3},
        "metrics": {"loss": [1.5, float("inf")]},
        "optimizer_states": [{"lr": [1, 2]}],
    }


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
@FORMS
def test_a_pickled_module_of_a_class_that_is_missing(
    tmp_path: Path, foreign: Any, new: bool
) -> None:
    kind = foreign("dall_e.encoder.Encoder", nn.Module)
    module = kind()
    module.n_hid, module.shape, module.group = 8, (1, 2), None
    module.conv, module.tied = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
    module.blocks = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), module.tied)
    module.register_buffer("passing", torch.ones(2), persistent=False)
    module.up = module.tied
    module.itself = [module]
    path = tmp_path / "encoder.pkl"
    torch.save(module, path, _use_new_zipfile_serialization=new)
    found = read_without(foreign, path)
    expected = module.state_dict()
    assert found.tensors.keys() == expected.keys()
    assert all(alike(found.tensors[name], expected[name]) for name in expected)
    assert (found.facts["n_hid"], found.facts["shape"]) == (8, [1, 2])
    assert found.facts["conv"]["kernel_size"] == [3, 3]


class Halves(nn.Module):
    """A module with parts, a buffer, plain attributes and lists, for TorchScript."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.register_buffer("scale", torch.rand(3, 1, 1))
        self.numbers, self.depth = [1, 2], 5

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images * self.scale) * float(self.depth + len(self.numbers))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("how", ["script", "trace", "bfloat16"])
def test_torchscript_is_read_and_not_run(tmp_path: Path, how: str) -> None:
    torch.manual_seed(0)
    module = Halves().eval()
    if how == "trace":
        made = torch.jit.trace(module, torch.zeros(1, 3, 8, 8))
    else:
        made = torch.jit.script(module.bfloat16() if how == "bfloat16" else module)
    path = tmp_path / "model.jit"
    made.save(str(path))
    found = read_checkpoint(path)
    expected = torch.jit.load(str(path)).state_dict()
    assert found.format == "TorchScript"
    own = {name for name in found.tensors if not name.startswith("CONSTANTS.")}
    assert own == expected.keys()
    assert all(alike(found.tensors[name], expected[name]) for name in expected)
    if how == "script":
        assert (found.facts["numbers"], found.facts["depth"]) == ([1, 2], 5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_constants_of_a_frozen_module(tmp_path: Path) -> None:
    module = nn.Linear(3, 2).eval()
    path = tmp_path / "frozen.pt"
    torch.jit.freeze(torch.jit.script(module)).save(str(path))
    found = read_checkpoint(path).tensors
    assert {"CONSTANTS.c0", "CONSTANTS.c1"} <= found.keys()
    assert any(torch.equal(each, module.weight) for each in found.values())


def test_arrays_and_a_plain_pickle(tmp_path: Path) -> None:
    arrays = {
        "f": np.arange(6, dtype="f4").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "bool": np.array([True, False]),
        "scalar": np.array(3.5),
        "empty": np.zeros((0, 4), "u1"),
    }
    for protocol in (2, 3, 4, 5):
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(
            pickle.dumps(
                {**arrays, "text": np.array(["x"]), "at": np.float32(0.5), "ok": np.bool_(True)},
                protocol,
            )
        )
        found = read_checkpoint(path)
        assert found.format == "pickle"
        assert found.facts == {"at": 0.5, "ok": True}
        assert found.tensors.keys() == arrays.keys()
        for name, array in arrays.items():
            assert found.tensors[name].numpy().dtype == array.dtype.newbyteorder("=")
            assert np.array_equal(found.tensors[name].numpy(), array)


def rewritten(path: Path, change: Callable[[str, bytes], bytes | None], packing: int = 0) -> Path:
    """A copy of an archive with its entries changed; None leaves one out."""
    out = path.with_name(f"changed-{path.name}")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", packing) as new:
        for name in old.namelist():
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return out


def test_byte_order_and_packed_entries(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    tensors = {"a": torch.randn(3, 4), "b": torch.randn(4).bfloat16(), "c": torch.arange(3)}
    torch.save(tensors, path)
    widths = {"0": 4, "1": 2, "2": 8}

    def swapped(name: str, content: bytes) -> bytes:
        if name.endswith("/byteorder"):
            return b"big"
        if "/data/" in name:
            width = widths[name.rpartition("/")[2]]
            return (
                np.frombuffer(content, f"V{width}").view("u1").reshape(-1, width)[:, ::-1].tobytes()
            )
        return content

    big = rewritten(path, swapped)
    assert the_same(torch.load(big, weights_only=True), tensors)
    assert the_same(read_checkpoint(big).tensors, tensors)
    deflated = rewritten(path, lambda name, content: content, zipfile.ZIP_DEFLATED)
    assert the_same(read_checkpoint(deflated).tensors, tensors)
    # Files from before PyTorch 2.1 have no byte order.
    older = rewritten(path, lambda name, content: None if "byteorder" in name else content)
    assert the_same(read_checkpoint(older).tensors, tensors)
    wrong = rewritten(path, lambda name, content: b"middle" if "byteorder" in name else content)
    with pytest.raises(CheckpointError, match="byte order"):
        read_checkpoint(wrong)


def test_an_archive_without_checksums(tmp_path: Path) -> None:
    from torch.serialization import set_crc32_options

    path = tmp_path / "model.pt"
    set_crc32_options(False)
    try:
        torch.save(state(), path)
    finally:
        set_crc32_options(True)
    assert the_same(read_checkpoint(path).tensors, torch.load(path, weights_only=True))


@FORMS
def test_a_checkpoint_in_a_zip_archive(tmp_path: Path, new: bool) -> None:
    inner = io.BytesIO()
    torch.save({"state_dict": state()}, inner, _use_new_zipfile_serialization=new)
    path = tmp_path / "vq-f8.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.ckpt", inner.getvalue())
        archive.writestr("__MACOSX/._model.ckpt", b"x")
    found = read_checkpoint(path)
    assert found.format.endswith(", in a zip archive")
    expected = {f"state_dict.{name}": value for name, value in state().items()}
    assert found.tensors.keys() == expected.keys()
    assert all(alike(found.tensors[name], value) for name, value in expected.items())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other.ckpt", inner.getvalue())
    with pytest.raises(CheckpointError, match="unpack it"):
        read_checkpoint(path)


def test_a_tensor_alone_a_list_and_attributes(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    value = torch.randn(3)
    torch.save(value, path)
    assert torch.equal(read_checkpoint(path).tensors["tensor"], value)
    value.note = "kept by PyTorch"  # type: ignore[attr-defined]
    torch.save([value, {"b": nn.Parameter(value)}], path)
    assert the_same(read_checkpoint(path).tensors, {"0": value, "1.b": value})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: torch.zeros(2, dtype=torch.complex64), "is complex"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8), "is quantized"),
        (lambda: torch.eye(2).to_sparse(), "is sparse"),
        (lambda: torch.eye(2).to_sparse_csr(), "is sparse"),
        (lambda: torch.zeros(2, device="meta"), "lies on the meta device"),
        (lambda: torch.nested.nested_tensor([torch.ones(2)]), "is nested"),
        (lambda: torch.zeros(2, dtype=torch.complex64).conj(), "is a conjugate"),
    ],
    ids=range(7),
)
@FORMS
def test_tensors_of_other_kinds_are_refused_by_name(
    tmp_path: Path, make: Callable[[], Tensor], reason: str, new: bool
) -> None:
    path = tmp_path / "x.pt"
    torch.save({"net": {"odd": make()}}, path, _use_new_zipfile_serialization=new)
    with pytest.raises(CheckpointError, match=f"its tensor 'net.odd' {reason}"):
        read_checkpoint(path)


def test_more_tensors_are_refused_by_name(tmp_path: Path, foreign: Any) -> None:
    save_file({"odd": torch.zeros(2, dtype=torch.complex64)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="its tensor 'odd' is complex"):
        read_checkpoint(tmp_path / "x.safetensors")
    kind = foreign("their.Scaled", Tensor)
    torch.save({"odd": torch.ones(2).as_subclass(kind)}, tmp_path / "x.pt")
    foreign.forget()
    with pytest.raises(CheckpointError, match="its tensor 'odd' is of a class of its own"):
        read_checkpoint(tmp_path / "x.pt")
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"odd": torch.ones(2)}, 2))
    with pytest.raises(CheckpointError, match=r"its tensor 'odd' was pickled without torch\.save"):
        read_checkpoint(tmp_path / "x.pkl")
    # One element takes the place of millions of millions.
    torch.save({"odd": torch.ones(1).expand(2**20, 2**20)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="far larger than the file"):
        read_checkpoint(tmp_path / "x.pt")
    torch.save({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"two of its tensors have the name 'a\.b'"):
        read_checkpoint(tmp_path / "x.pt")


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as file:
        file.addfile(tarfile.TarInfo("storages"))


def _zipped(name: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(name, b"x")

    return write


def _cut(count: int, new: bool) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        torch.save({"a": torch.ones(99)}, path, _use_new_zipfile_serialization=new)
        path.write_bytes(path.read_bytes()[:count])

    return write


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: None, "there is no file"),
        (Path.mkdir, "there is no file"),
        (Path.touch, "it is empty"),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec"), "LFS pointer"),
        (lambda path: path.write_text("<!DOCTYPE html>"), "web page"),
        (lambda path: path.write_text("hello"), "it is no checkpoint"),
        (_tar, "tar archive"),
        (_zipped("weights.npy"), "without a checkpoint"),
        (_zipped("m/model.json"), "before PyTorch 1.4"),
        (_cut(600, True), "archive is damaged"),
        (_cut(200, False), "pickle is damaged"),
        (_cut(-9, False), "was cut short"),
        (lambda path: torch.save({"a": 1}, path), "holds no tensors"),
        (lambda path: path.write_bytes(b"\2\0\0\0\0\0\0\0{}"), "holds no tensors"),
        (lambda path: path.write_bytes(b"\2\0\0\0\0\0\0\0{}x"), "is damaged"),
        (lambda path: path.write_bytes(pickle.dumps([])), "holds no tensors"),
    ],
    ids=range(16),
)
def test_other_files_are_refused_with_a_reason(
    tmp_path: Path, write: Callable[[Path], None], reason: str
) -> None:
    path = tmp_path / "x.pt"
    write(path)
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)


def test_long_pickles_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({str(each): torch.ones(1) for each in range(20)}, tmp_path / "x.pt")
    monkeypatch.setattr(machine, "OPCODES", 500)
    with pytest.raises(CheckpointError, match="over 500 opcodes"):
        read_checkpoint(tmp_path / "x.pt")


@FORMS
def test_files_larger_than_the_memory(
    tmp_path: Path, new: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.pt"
    torch.save({"a": torch.ones(5)}, path, _use_new_zipfile_serialization=new)

    def full(*args: Any, **options: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", full)
        with pytest.raises(CheckpointError, match="takes 20 bytes, more memory than is free"):
            read_checkpoint(path)

    def none(*args: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(machine.Machine, "load", none)
    with pytest.raises(CheckpointError, match="takes more memory than is free"):
        read_checkpoint(path)


YAML = """
model:
  base_learning_rate: 4.5e-06
  target: taming.models.vqgan.VQModel
  params: &all
    embed_dim: 256
    ddconfig: {double_z: false, ch_mult: [1, 1, 2, 2, 4], dropout: 0.0, made: 2020-01-02}
again: *all
"""


def test_settings_beside_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(YAML)
    params = {
        "embed_dim": 256,
        "ddconfig": {"double_z": False, "ch_mult": [1, 1, 2, 2, 4], "dropout": 0.0},
    }
    assert facts_of_yaml(path) == {
        "model": {
            "base_learning_rate": 4.5e-06,
            "target": "taming.models.vqgan.VQModel",
            "params": params,
        },
        "again": params,
    }
    path.write_text(json.dumps({"a": [1, None, 1e-05], "b": "\t"}))
    assert facts_of_yaml(path) == {"a": [1, None, 1e-05], "b": "\t"}


@pytest.mark.parametrize(
    "text",
    [
        "- 1",
        "",
        "a: [",
        "a: !!python/object/apply:os.system [true]",
        "a: !!python/name:os.system",
        "[" * 50_000,
        "a:\n" + "- " * 20_000,
        '{"a":' * 50_000,
        "a: " + "x" * 2**18,
        "a: &a [x, x]\n"
        + "".join(
            f"a{each}: &a{each} [*a{each - 1 or ''}, *a{each - 1 or ''}]\n" for each in range(1, 49)
        ),
        "a: *a",
        "a: &a [*a]\n" + "b: *a\n" * 200,
        "a: " + "9" * 9000,
        "? [1, 2]\n: 3\n? {}\n: 1",
        "a: \x00",
    ],
    ids=range(15),
)
def test_settings_that_are_hostile_or_no_settings(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    before = set(sys.modules)
    with pytest.raises(GenkitError, match=r"x\.yaml"):
        facts_of_yaml(path)
    assert set(sys.modules) == before
    with pytest.raises(GenkitError, match="there is no file"):
        facts_of_yaml(tmp_path)


def test_settings_that_merge_again_and_again(tmp_path: Path) -> None:
    lines = ["a0: &a0 {x: 1}"]
    for each in range(1, 49):
        lines += [f"a{each}: &a{each}", f"  <<: [*a{each - 1}, *a{each - 1}]"]
    path = tmp_path / "x.yaml"
    path.write_text("\n".join(lines))
    try:  # PyYAML since 6.0.4 merges them fast.
        assert facts_of_yaml(path)["a48"] == {"x": 1}
    except CheckpointError as error:
        assert "merges too many" in str(error)  # noqa: PT017
