"""Checkpoints of other projects, read without their libraries, are what torch itself reads."""

from __future__ import annotations

import argparse
import hashlib
import io
import pickle
import sys
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from genkit.errors import CheckpointError
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
