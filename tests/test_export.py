"""Exported graphs: they run without genkit and compute what the tokenizer does."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import invoke, need
from safetensors.torch import load_file, save_file
from test_pairs import tokenizer as made_of

import genkit
from genkit.errors import GenkitError
from genkit.export import _ANY_SIZE, export
from genkit.plugin.installing import to_install
from genkit.plugin.registry import registry
from genkit.run.options import layered, resolve_run

SIZES = [(1, 16, 24), (3, 40, 16), (2, 32, 32)]

# A script that runs a graph in a process that cannot import genkit or a plugin.
RUN = """
import sys
import zipfile
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("genkit"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
try:
    import genkit
except ImportError:
    pass
else:
    raise SystemExit("genkit can be imported")
import torch
from pathlib import Path
from safetensors.torch import load_file, save_file
for folder in map(Path, sys.argv[1:]):
    tensors, results = load_file(folder / "images.safetensors"), {}
    encode, decode = (
        torch.export.load(folder / f"{name}.pt2").module() for name in ("encode", "decode")
    )
    for name, images in tensors.items():
        indices = encode(images)
        results |= {f"{name}.level{level}": values for level, values in enumerate(indices)}
        results[f"{name}.images"] = decode(*indices)
    save_file(results, folder / "results.safetensors")
assert not [name for name in sys.modules if name.startswith("genkit")]
"""

ANY_SIZE = pytest.mark.skipif(
    torch.__version__ < _ANY_SIZE,
    reason="this PyTorch cannot leave sizes open",
)
MODELS: dict[str, dict[str, Any]] = {
    "default": {"quantizer": {"codebook_size": 16}},
    "fsq": {"quantizer": {"name": "fsq", "bins": 3}},
    "cosine": {"quantizer": {"codebook_size": 16, "distance": "cosine", "codebook_dim": 4}},
}


def build(settings: dict[str, Any], channels: int = 3) -> genkit.Tokenizer:
    torch.manual_seed(0)
    small = {
        "encoder": {"width": [8], "latent_channels": 8, "base_channels": 8, "attention": "pixel"},
        "decoder": {"width": [8]},
    }
    return genkit.Tokenizer(resolve_run(layered(None, small, settings)), channels).eval()


def pictures(channels: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        f"{count}x{height}x{width}": torch.rand(count, channels, height, width, generator=generator)
        * 2
        - 1
        for count, height, width in SIZES
    }


def expected(tokenizer: genkit.Tokenizer, images: torch.Tensor) -> list[torch.Tensor]:
    indices = tokenizer.encode(images)
    return [*indices, tokenizer.decode(indices)]


@ANY_SIZE
@pytest.mark.slow
@pytest.mark.parametrize("models", [["default"], ["fsq", "cosine"]], ids=str)
def test_graphs_run_without_genkit_and_compute_the_same(models: list[str], tmp_path: Path) -> None:
    tokenizers = {name: build(MODELS[name]) for name in models}
    for name, tokenizer in tokenizers.items():
        metadata = export(tokenizer, tmp_path / name)
        assert metadata == json.loads((tmp_path / name / "metadata.json").read_text())
        assert metadata["files"] == ["encode.pt2", "decode.pt2"]
        assert metadata["images"]["height"] == {"minimum": 16, "multiple_of": 8}
        assert [level["stride"] for level in metadata["levels"]] == [4, 8]
        assert [level["codebook_size"] for level in metadata["levels"]] == tokenizer.codebook_sizes
        save_file(pictures(), tmp_path / name / "images.safetensors")
    command = [sys.executable, "-c", RUN, *(str(tmp_path / name) for name in tokenizers)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    for name, tokenizer in tokenizers.items():
        results = load_file(tmp_path / name / "results.safetensors")
        for size, images in pictures().items():
            fine, coarse, again = expected(tokenizer, images)
            assert torch.equal(results[f"{size}.level0"], fine)
            assert torch.equal(results[f"{size}.level1"], coarse)
            assert torch.allclose(results[f"{size}.images"], again, atol=1e-5)
        check_no_local_path(tmp_path / name)


def check_no_local_path(folder: Path) -> None:
    for file in folder.iterdir():
        content = file.read_bytes()
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                content = b"".join(archive.read(name) for name in archive.namelist())
        for place in (Path(genkit.__file__).parent.parent, Path(torch.__file__).parent.parent):
            assert str(place).encode() not in content


# Operations that only occur in losses.
LOSSES = r"mse_loss|aten\.(dist|dot)\.|log_softmax|xlogy"
# Larger than the traced images, and more latents than one chunk of the commitment loss.
LARGE = [(5, 64, 64), (1, 128, 160), (1, 256, 256)]


def check_large(tokenizer: genkit.Tokenizer, tmp_path: Path, minimum: int) -> None:
    """Export a tokenizer and run its graphs on large, small and minimal images."""
    export(tokenizer, tmp_path)
    graphs = [torch.export.load(tmp_path / f"{name}.pt2") for name in ("encode", "decode")]
    for part in graphs[0].graph_module.modules():
        operations = {str(node.target) for node in part.graph.nodes}
        assert not [name for name in operations if re.search(LOSSES, name)]
    encode, decode = (graph.module() for graph in graphs)
    for count, height, width in [*LARGE, (3, 6 * minimum, 2 * minimum), (1, minimum, minimum)]:
        images = torch.rand(count, 3, height, width) * 2 - 1
        *indices, made = expected(tokenizer, images)
        for found, own in zip(encode(images), indices, strict=True):
            # If two codes are equally near up to rounding, either is right.
            assert (found == own).float().mean() > 0.99
        assert torch.allclose(decode(*indices), made, atol=1e-3)


@ANY_SIZE
@pytest.mark.slow
@pytest.mark.parametrize("entropy_weight", [0.0, 0.1])
def test_graphs_of_the_default_model_take_large_images(
    entropy_weight: float, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    settings = {"quantizer": {"entropy_weight": entropy_weight}}
    tokenizer = genkit.Tokenizer(resolve_run(layered(None, settings))).eval()
    check_large(tokenizer, tmp_path, 16)


@ANY_SIZE
@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"encoder": {"attention": "pixel", "levels": 3}},
        {"encoder": {"name": "timm"}, "decoder": {"name": "residual"}},
        {"encoder": {"name": "vqgan", "width": [32]}, "decoder": {"name": "vqgan", "width": [32]}},
    ],
    ids=["aren", "timm", "vqgan"],
)
def test_graphs_of_every_encoder_and_decoder_take_large_images(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    tokenizer = genkit.Tokenizer(resolve_run(layered(None, settings))).eval()
    check_large(tokenizer, tmp_path, 2 * tokenizer.levels[-1].stride)


@ANY_SIZE
@pytest.mark.slow
@pytest.mark.parametrize("name", registry().names("quantizer"))
def test_graphs_of_every_quantizer_take_large_images(name: str, tmp_path: Path) -> None:
    """With default options, except for `fsq`, which would have too many codes."""
    torch.manual_seed(0)
    few = {"encoder": {"latent_channels": 8}, "quantizer": {"bins": 3}} if name == "fsq" else {}
    settings = layered(None, {"quantizer": {"name": name}}, few)
    check_large(genkit.Tokenizer(resolve_run(settings)).eval(), tmp_path, 16)


@ANY_SIZE
@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"distance": "cosine"},
        {"distance": "product"},
        {"codebook_dim": 8},
        {"update": "gradient", "gradient": "rotation"},
        {"update": "linear"},
    ],
    ids=str,
)
def test_graphs_of_every_kind_of_vq_take_large_images(
    options: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    settings = layered(None, {"quantizer": options})
    check_large(genkit.Tokenizer(resolve_run(settings)).eval(), tmp_path, 16)


@ANY_SIZE
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "channels"), [("default", 1), ("default", 5), *((name, 3) for name in MODELS)]
)
def test_onnx_graphs_compute_the_same(name: str, channels: int, tmp_path: Path) -> None:
    need("onnx", "onnxscript", "onnxruntime")
    import onnxruntime

    tokenizer = build(MODELS[name], channels)
    metadata = export(tokenizer, tmp_path, onnx=True)
    encode, decode = (onnxruntime.InferenceSession(tmp_path / file) for file in metadata["files"])
    for images in pictures(channels).values():
        fine, coarse, again = expected(tokenizer, images)
        found = encode.run(["level0", "level1"], {"images": images.numpy()})
        assert np.array_equal(found[0], fine)
        assert np.array_equal(found[1], coarse)
        (made,) = decode.run(["images"], {"level0": found[0], "level1": found[1]})
        assert np.allclose(made, again, atol=1e-4)
    check_no_local_path(tmp_path)


@pytest.mark.parametrize(
    ("needed", "sizes", "message"),
    [
        ("_ANY_SIZE", {"batch_size": 2}, "of any size needs .*: fix the size with --resolution"),
        (
            "_ANY_NUMBER",
            {"resolution": 32},
            "any number needs .*: fix the number with --batch-size",
        ),
    ],
)
def test_an_older_pytorch_without_dynamic_sizes_is_reported(
    needed: str,
    sizes: dict[str, int],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"genkit.export.{needed}", "99")
    with pytest.raises(GenkitError, match=message):
        export(build({}), tmp_path, **sizes)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")
def test_a_resolution_fixes_height_and_width(trained: Path, tmp_path: Path) -> None:
    code, text = invoke(
        "export", trained, "--out", tmp_path / "out", "--resolution", "16", "--batch-size", "5"
    )
    assert code == 0
    assert "for 5 images with 16 x 16 pixels" in text
    metadata = json.loads((tmp_path / "out" / "metadata.json").read_text())
    assert metadata["images"]["height"] == metadata["images"]["width"] == 16
    assert metadata["images"]["batch"] == 5
    encode = torch.export.load(tmp_path / "out" / "encode.pt2").module()
    images = torch.zeros(5, 3, 16, 16)
    found = encode(images)
    assert all(map(torch.equal, found, genkit.load(trained).encode(images)))
    with pytest.raises(AssertionError, match="Guard failed"):
        encode(torch.zeros(4, 3, 16, 16))


def test_wrong_export_options_are_reported(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("onnx")
    out = ("--out", tmp_path / "out")
    code, text = invoke("export", trained, *out, "--resolution", "20")
    assert (code, "not a multiple of the coarsest level's stride, 8" in text) == (2, True)
    assert "does not exist" in invoke("export", tmp_path / "nothing", *out)[1]
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *a: None if name == "onnxscript" else find(name, *a),
    )
    code, text = invoke("export", trained, *out, "--onnx")
    assert code == 1
    assert text == f"ONNX needs onnxscript, not installed here: {to_install('genkit-vq[onnx]')}"
    assert not (tmp_path / "out").exists()


@ANY_SIZE
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda x: x if float(x.sum()) > 0 else -x, "the model cannot be exported: "),
        (lambda x: x.reshape(len(x), *x.shape[1:]), r"a component fixes a size \(len"),
    ],
)
def test_untraceable_models_are_reported(
    changed: Callable[[torch.Tensor], torch.Tensor], message: str, tmp_path: Path
) -> None:
    tokenizer = build(MODELS["default"])
    forward = tokenizer.encoder.forward
    tokenizer.encoder.forward = lambda images: forward(changed(images))
    with pytest.raises(GenkitError, match=message) as caught:
        export(tokenizer, tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@ANY_SIZE
@pytest.mark.slow
@pytest.mark.parametrize("onnx", [False, True])
@pytest.mark.parametrize(
    ("encoder", "quantizer", "decoder"),
    [
        ("timm", "vq", "residual"),
        ("vqgan", "vq", "vqgan"),
        *(("aren", name, "mirror") for name in registry().names("quantizer")),
    ],
)
def test_every_component_is_exported_for_all_sizes(
    encoder: str, quantizer: str, decoder: str, onnx: bool, tmp_path: Path
) -> None:
    """`export` itself compares graph and tokenizer at sizes that were not traced."""
    made = made_of(encoder, quantizer, decoder, 2).eval()
    metadata = export(made, tmp_path, onnx=onnx)
    assert metadata["images"]["height"] == {"minimum": 16, "multiple_of": 8}
    assert [level["codebooks"] for level in metadata["levels"]] == [c for c, _ in made.codebooks]
