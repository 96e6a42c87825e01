"""Checkpoints: self-describing, strict, and clear about what is wrong with them."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import same
from safetensors.torch import load_file, save_file

import genkit
from genkit.checkpoint.header import read_header
from genkit.checkpoint.model import fingerprint
from genkit.errors import CheckpointError, GenkitError
from genkit.plugin.registry import Registry, registry
from genkit.run.options import layered, resolve_run
from genkit.tokens.dataset import Tokens, load_tokens, save_tokens
from genkit.tokens.rows import Rows

IMAGES = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1


def build(**settings: Any) -> genkit.Tokenizer:
    torch.manual_seed(0)
    small = {
        "encoder": {"width": [8], "latent_channels": 8, "base_channels": 8},
        "decoder": {"width": [8]},
    }
    return genkit.Tokenizer(resolve_run(layered(None, small, settings))).eval()


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite a model file with changed metadata."""
    metadata, _ = read_header(path)
    info = json.loads(metadata["genkit"])
    change(info)
    save_file(load_file(path), path, {"format": "pt", "genkit": json.dumps(info)})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    genkit.save(build(encoder={"attention": "pixel"}), path)
    return path


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("attention", ["none", "pixel"])
@pytest.mark.parametrize(
    "quantizer", [{"name": "vq", "codebook_size": 16}, {"name": "fsq", "bins": 3}]
)
def test_a_loaded_model_computes_the_same(
    levels: int, attention: str, quantizer: dict[str, Any], tmp_path: Path
) -> None:
    tokenizer = build(encoder={"levels": levels, "attention": attention}, quantizer=quantizer)
    genkit.save(tokenizer, tmp_path / "m.safetensors")
    loaded = genkit.load(tmp_path / "m.safetensors")
    assert loaded.options.encoder == tokenizer.options.encoder
    indices = loaded.encode(IMAGES)
    assert [tuple(level.shape) for level in indices] == [
        (2, 32 // s, 48 // s) for s in (4, 8, 16)[:levels]
    ]
    assert all(level.dtype == torch.int64 for level in indices)
    assert all(torch.equal(a, b) for a, b in zip(indices, tokenizer.encode(IMAGES), strict=True))
    with torch.no_grad():
        out = loaded(IMAGES)
    images = loaded.decode(indices)
    assert torch.allclose(images, out.images, atol=1e-5)
    assert images.shape == IMAGES.shape
    assert images.abs().max() <= 1


def test_a_run_directory_loads(trained: Path) -> None:
    assert genkit.load(trained).codebook_sizes == [16, 16]


def test_inspect_reads_without_torch(model: Path) -> None:
    code = (
        "import sys, json, genkit; info = genkit.inspect(sys.argv[1]); "
        "assert not {'torch', 'safetensors', 'numpy'} & set(sys.modules); print(json.dumps(info))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code, model], capture_output=True, text=True, check=True
    ).stdout
    info = json.loads(printed)
    tokenizer = genkit.load(model)
    floats = [
        value.numel() for value in tokenizer.state_dict().values() if value.is_floating_point()
    ]
    assert info["parameters"]["total"] == sum(floats)
    assert info["parameters"]["trainable"] == sum(
        parameter.numel() for parameter in tokenizer.parameters()
    )
    assert info["components"]["encoder"]["name"] == "aren"
    assert info["components"]["encoder"]["distribution"].startswith("genkit-vq ")
    assert info["components"]["encoder"]["options"]["attention"]["options"] == {
        "dim": 32,
        "norm": "logn",
    }
    assert info["levels"] == [
        {"stride": 4, "channels": 8, "codebook_size": 512},
        {"stride": 8, "channels": 8, "codebook_size": 512},
    ]


def test_a_missing_plugin_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    genkit.save(build(quantizer={"name": "fsq", "bins": 3}), path)
    monkeypatch.setenv("GENKIT_PLUGINS", "avqvae,datasets")
    registry.cache_clear()
    with pytest.raises(genkit.MissingComponent) as caught:
        genkit.load(path)
    monkeypatch.undo()
    registry.cache_clear()
    message = str(caught.value)
    assert "needs the quantizer 'fsq', saved with 'genkit-vq-fsq 0.1.0'" in message
    assert "Installed: vq" in message
    assert "pip install" not in message
    assert genkit.load(path).codebook_sizes[0] == 3**8


WRONG = [
    ("is no tokenizer", lambda info: info.pop("components"), "lists no components"),
    ("newer schema", lambda info: info.update(schema=99), "schema 99; this genkit reads up to 1"),
    ("odd schema", lambda info: info.update(schema="x"), "schema 'x'"),
    (
        "unknown option",
        lambda info: info["components"]["encoder"]["options"].update(depth=3),
        "no option 'encoder.depth'",
    ),
    (
        "odd value",
        lambda info: info["components"]["encoder"]["options"].update(levels="two"),
        "must be a whole number",
    ),
    ("odd component", lambda info: info["components"].update(encoder=3), "names no encoder"),
    (
        "odd options",
        lambda info: info["components"]["encoder"].update(options=[]),
        "does not describe its",
    ),
    (
        "other sizes",
        lambda info: info["components"]["encoder"]["options"].update(latent_channels=9),
        "do not fit the model",
    ),
    (
        "other levels",
        lambda info: info["components"]["encoder"]["options"].update(levels=1),
        "do not fit the model",
    ),
    ("odd levels", lambda info: info.update(levels=[3]), "does not describe a tokenizer"),
    ("odd versions", lambda info: info.update(versions=3), "does not describe a tokenizer"),
    (
        "empty width",
        lambda info: info["components"]["encoder"]["options"].update(width=[]),
        "is empty",
    ),
    (
        "unknown attention",
        lambda info: info["components"]["encoder"]["options"]["attention"].update(name="z"),
        "attention 'z'",
    ),
]


@pytest.mark.parametrize(
    ("change", "message"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG]
)
def test_wrong_metadata_is_reported(
    model: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    rewrite(model, change)
    with pytest.raises(GenkitError, match=message):
        genkit.load(model)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 200, -1, -1000])
def test_a_truncated_file_is_an_error(model: Path, length: int) -> None:
    model.write_bytes(model.read_bytes()[:length])
    for read in (genkit.load, genkit.inspect):
        with pytest.raises(CheckpointError, match=r"cut short|damaged|not a safetensors|is empty"):
            read(model)


@pytest.mark.parametrize(
    "content",
    [
        b"not at all a checkpoint",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 9) + b'{"a": 1}\n',
        struct.pack("<Q", 40) + b"[" * 40,
        struct.pack("<Q", 22) + b'{"__metadata__": null}',
    ],
)
def test_other_files_are_reported_as_not_a_checkpoint(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    for read in (genkit.load, genkit.inspect):
        with pytest.raises(CheckpointError):
            read(path)


def test_third_party_safetensors_are_recognized(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="that genkit did not write"):
        genkit.load(tmp_path / "x.safetensors")


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        genkit.load(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"folder without model\.safetensors"):
        genkit.load(tmp_path)


def test_failed_saving_keeps_the_old_file(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = model.read_bytes()

    def fails(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("genkit.checkpoint.model.save_file", fails)
    with pytest.raises(GenkitError, match="cannot be written: No space left"):
        genkit.save(build(), model)
    assert model.read_bytes() == before
    assert [path.name for path in model.parent.iterdir()] == [model.name]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 32, 32), "must be floats"),
        (torch.zeros(1, 1, 32, 32), "must be floats"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "from_pixels"),
        (torch.zeros(1, 3, 30, 32), "multiples of 8"),
        (torch.full((1, 3, 32, 32), 200.0), "must lie in"),
        (torch.full((1, 3, 32, 32), torch.nan), "must lie in"),
    ],
)
def test_images_that_cannot_be_encoded(images: torch.Tensor, message: str) -> None:
    with pytest.raises(GenkitError, match=message):
        build().encode(images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_of_any_float_type_are_encoded(dtype: torch.dtype) -> None:
    tokenizer = build()
    rounded = IMAGES.to(dtype)
    indices, expected = tokenizer.encode(rounded), tokenizer.encode(rounded.float())
    assert all(torch.equal(a, b) for a, b in zip(indices, expected, strict=True))
    small = [level.to(torch.int16) for level in indices]
    assert torch.equal(tokenizer.decode(small), tokenizer.decode(expected))


def test_no_images_give_no_indices() -> None:
    tokenizer = build()
    indices = tokenizer.encode(torch.zeros(0, 3, 32, 32))
    assert [tuple(level.shape) for level in indices] == [(0, 8, 8), (0, 4, 4)]
    assert tokenizer.decode(indices).shape == (0, 3, 32, 32)


def test_loading_and_saving_keeps_the_metadata(trained: Path, tmp_path: Path) -> None:
    genkit.save(genkit.load(trained), tmp_path / "again.safetensors")
    facts = genkit.inspect(tmp_path / "again.safetensors")["training"]
    assert facts == genkit.inspect(trained)["training"]
    assert facts["resolution"] == 32


@pytest.mark.parametrize("path", ["file/model.safetensors", "", "/proc/x/model.safetensors"])
def test_an_unwritable_path(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(GenkitError, match=r"cannot be written|needs a name"):
        genkit.save(build(), path)


def test_indices_that_cannot_be_decoded() -> None:
    tokenizer = build()
    fine, coarse = tokenizer.encode(IMAGES)
    for indices, message in (
        ([fine], "list of 2 tensors, one per level, not 1"),
        ([coarse, fine], "must be"),
        ([fine + 512, coarse], "between 0 and 511"),
        ([fine - 600, coarse], "between 0 and 511"),
        ([fine[:1], coarse], "must be"),
        (fine, "not one tensor"),
        ([fine.float(), coarse], "must be integers"),
        ([fine.flatten(), coarse], "must be integers"),
        ([fine.tolist(), coarse], "not list"),
    ):
        with pytest.raises(GenkitError, match=message):
            tokenizer.decode(indices)


def test_the_registry_can_be_rebuilt() -> None:
    assert Registry().names("quantizer") == registry().names("quantizer")


def assert_same_model(one: Path, other: Path) -> None:
    """The same tensors and metadata; the order of the header's keys may differ."""
    assert read_header(one) == read_header(other)
    assert same(load_file(one), load_file(other))


class Sharded(torch.nn.Module):
    """A wrapper as used for training on several devices."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tokenizer: torch.compile(tokenizer, backend="eager"),
        torch.nn.DataParallel,
        torch.optim.swa_utils.AveragedModel,
        lambda tokenizer: Sharded(torch.compile(tokenizer, backend="eager")),
    ],
    ids=["compiled", "parallel", "averaged", "both"],
)
def test_a_wrapped_tokenizer_is_saved_without_its_wrapper(
    wrap: Callable[[torch.nn.Module], torch.nn.Module], tmp_path: Path
) -> None:
    genkit.save(build(), tmp_path / "plain")
    genkit.save(wrap(build()), tmp_path / "wrapped")
    assert_same_model(tmp_path / "wrapped", tmp_path / "plain")


def test_compiled_parts_do_not_change_the_saved_file(tmp_path: Path) -> None:
    # Batch norms also have buffers.
    tokenizer = build(encoder={"name": "timm", "model": "test_resnet"})
    genkit.save(tokenizer, tmp_path / "plain")
    tokenizer.encoder = torch.compile(tokenizer.encoder, backend="eager")
    tokenizer.decoder = torch.compile(tokenizer.decoder, backend="eager")
    genkit.save(tokenizer, tmp_path / "compiled")
    assert_same_model(tmp_path / "compiled", tmp_path / "plain")


def test_a_model_that_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    changed = build()
    convolution = next(m for m in changed.decoder.modules() if isinstance(m, torch.nn.Conv2d))
    torch.nn.utils.parametrizations.weight_norm(convolution)
    for wrong, message in (
        (changed, "differ from the model that its options describe, first 'decoder"),
        (build().to("meta"), "lies on the meta device"),
        (torch.nn.Linear(1, 1), "takes a genkit.Tokenizer, not Linear"),
    ):
        with pytest.raises(GenkitError, match=message):
            genkit.save(wrong, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_the_callers_default_device_does_not_matter(model: Path) -> None:
    with torch.device("meta"):
        tokenizer = genkit.load(model)
    assert all(value.device.type == "cpu" for value in tokenizer.state_dict().values())
    assert fingerprint(tokenizer) == fingerprint(genkit.load(model))


def test_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    genkit.save(build(), "~/model.safetensors")
    assert fingerprint(genkit.load("~/model.safetensors")) == fingerprint(build())
    tokens = Tokens.of(Rows([torch.zeros(1, 2, 2, dtype=torch.int32)], ["a"]), model="m")
    save_tokens(tokens, "~/tokens.safetensors")
    assert load_tokens("~/tokens.safetensors").names == ["a"]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_tokenizer_of_any_precision_has_a_fingerprint(dtype: torch.dtype) -> None:
    assert len({fingerprint(build().to(dtype)), fingerprint(build())}) == 2
