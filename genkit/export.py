"""Export of a tokenizer as PyTorch or ONNX graphs, which run without genkit."""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import genkit
from genkit.errors import GenkitError
from genkit.files import replacing, write_text
from genkit.models import RGB
from genkit.plugin.installing import to_install
from genkit.size import Resolution, parsed_size
from genkit.tokenizer import Tokenizer

# Sizes for tracing and checking a graph: the number of images, and height and width in strides of
# the coarsest level.
_TRACED = (2, 4, 6)
_CHECKED = ((1, 4, 6), (3, 2, 5), (2, 7, 3))
# The first versions of PyTorch whose graphs take images of any size, and batches of any size.
_ANY_SIZE, _ANY_NUMBER = "2.13", "2.10"


Pair = tuple[int, int]


class Encode(nn.Module):
    """Images `[B, channels, H, W]` to a tuple of indices per level, finest first."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = copy.deepcopy(tokenizer)
        # A graph keeps all weights of its module, even unused ones.
        del self.tokenizer.decoder

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Encode images in [-1, 1]."""
        return tuple(self.tokenizer.encode(images))


class Decode(nn.Module):
    """Indices, one argument per level, to images `[B, channels, H, W]`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = copy.deepcopy(tokenizer)
        del self.tokenizer.encoder, self.tokenizer.fusions

    def forward(self, *indices: Tensor) -> Tensor:
        """Decode the indices, finest first."""
        return self.tokenizer.decode(list(indices))


def export(
    tokenizer: Tokenizer,
    folder: Path,
    resolution: Resolution | None = None,
    batch_size: int | None = None,
    onnx: bool = False,
) -> dict[str, Any]:
    """Write `encode.pt2` and `decode.pt2`, or `.onnx`, and `metadata.json`; return the latter.

    The graphs take any number of images, unless `batch_size` fixes it. Height and width may be any
    multiples of the coarsest stride, from twice the stride on, unless `resolution` fixes them. The
    graphs do not check their inputs. Raises `GenkitError` if a tokenizer cannot be exported or a
    library is not installed.
    """
    if onnx:
        _need("onnx", "onnxscript")
    fixed = None if resolution is None else parsed_size(resolution).pair
    _check_version(fixed, batch_size)
    tokenizer = copy.deepcopy(tokenizer).cpu().float().eval()
    graphs = dict(zip(("encode", "decode"), _graphs(tokenizer, fixed, batch_size), strict=True))
    names = [f"level{index}" for index in range(len(tokenizer.levels))]
    suffix = "onnx" if onnx else "pt2"
    for name, graph in graphs.items():
        inputs, outputs = (["images"], names) if name == "encode" else (names, ["images"])
        with replacing(folder / f"{name}.{suffix}") as temporary:
            if onnx:
                _save_onnx(graph, temporary, inputs, outputs)
            else:
                with temporary.open("wb") as file:
                    torch.export.save(graph, file)
    metadata = _metadata(tokenizer, fixed, batch_size, [f"{name}.{suffix}" for name in graphs])
    write_text(folder / "metadata.json", json.dumps(metadata, indent=2) + "\n")
    return metadata


def _graphs(
    tokenizer: Tokenizer, resolution: Pair | None, batch_size: int | None
) -> tuple[ExportedProgram, ...]:
    stride = tokenizer.levels[-1].stride
    batch, height, width = Dim("batch"), Dim("height"), Dim("width")

    def open_sizes(covered: int, first: int) -> dict[int, Any]:
        """The dynamic dimensions: the batch, and rows and columns of `covered` pixels each."""
        times = stride // covered
        grid = {} if resolution else {first: times * height, first + 1: times * width}
        return grid if batch_size else {0: batch, **grid}

    example = _images(tokenizer, _TRACED, resolution, batch_size)
    indices = tuple(tokenizer.encode(example))
    try:
        with torch.no_grad():
            graphs = (
                torch.export.export(
                    Encode(tokenizer), (example,), dynamic_shapes=(open_sizes(1, 2),), strict=False
                ),
                torch.export.export(
                    Decode(tokenizer),
                    indices,
                    dynamic_shapes=(
                        tuple(open_sizes(level.stride, 1) for level in tokenizer.levels),
                    ),
                    strict=False,
                ),
            )
            for graph in graphs:
                _forget_where(graph)
            _check(tokenizer, graphs, resolution, batch_size)
    except Exception as error:  # Tracing a third party's component can raise anything.
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if "Constraints violated" in str(error):
            reason = (
                "a component fixes a size (len(x) does, x.shape[0] does not); "
                "fix the sizes of all with --resolution and --batch-size"
            )
        elif "Guard failed" in str(error):
            reason = f"its graph does not take all sizes ({reason}); fix them with --resolution"
        raise GenkitError(f"the model cannot be exported: {reason}") from error
    return graphs


def _forget_where(graph: ExportedProgram) -> None:
    """Remove this machine's source locations from a graph's operations."""
    for module in graph.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            for key in ("stack_trace", "source_fn_stack", "from_node"):
                node.meta.pop(key, None)


def _check(
    tokenizer: Tokenizer,
    graphs: tuple[ExportedProgram, ExportedProgram],
    resolution: Pair | None,
    batch_size: int | None,
) -> None:
    """Raise if a graph's results differ from the tokenizer's at sizes that were not traced."""
    encode, decode = (graph.module() for graph in graphs)
    for size in _CHECKED:
        images = _images(tokenizer, size, resolution, batch_size)
        indices = tokenizer.encode(images)
        for own, level in zip(indices, encode(images), strict=True):
            # Either code is right where two are equally near within rounding.
            if own.shape != level.shape or (own != level).float().mean() > 0.01:
                raise ValueError("its graph gives other indices")
        again, expected = decode(*indices), tokenizer.decode(indices)
        if not torch.allclose(again, expected, atol=1e-3):
            raise ValueError("its graph gives other images")


def _images(
    tokenizer: Tokenizer,
    size: Sequence[int],
    resolution: Pair | None,
    batch_size: int | None,
) -> Tensor:
    stride, (count, height, width) = tokenizer.levels[-1].stride, size
    shape = resolution or (height * stride, width * stride)
    generator = torch.Generator().manual_seed(0)
    return torch.rand(batch_size or count, tokenizer.channels, *shape, generator=generator) * 2 - 1


def _save_onnx(graph: ExportedProgram, path: Path, inputs: list[str], outputs: list[str]) -> None:
    try:
        torch.onnx.export(
            graph,
            (),
            path,
            input_names=inputs,
            output_names=outputs,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    except Exception as error:  # A third party's operator may have no ONNX counterpart.
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise GenkitError(f"the model cannot be written as ONNX: {reason}") from error


def _metadata(
    tokenizer: Tokenizer,
    resolution: Pair | None,
    batch_size: int | None,
    files: list[str],
) -> dict[str, Any]:
    stride = tokenizer.levels[-1].stride
    free = {"minimum": 2 * stride, "multiple_of": stride}
    height, width = resolution or (free, free)
    return {
        "files": files,
        "images": {
            "dtype": "float32",
            "layout": f"[batch, {tokenizer.channels}, height, width]",
            "channels": "RGB" if tokenizer.channels == RGB else tokenizer.channels,
            "range": [-1, 1],
            "batch": batch_size or {"minimum": 1},
            "height": height,
            "width": width,
        },
        "levels": [
            {
                "name": f"level{level.index}",
                "dtype": "int64",
                "layout": "[batch, height / stride, width / stride"
                + (", codebooks]" if count > 1 else "]"),
                "stride": level.stride,
                "codebooks": count,
                "codebook_size": size,
            }
            for level, (count, size) in zip(tokenizer.levels, tokenizer.codebooks, strict=True)
        ],
        "versions": {"genkit": genkit.__version__, "torch": str(torch.__version__)},
    }


def _check_version(resolution: Pair | None, batch_size: int | None) -> None:
    """Raise `GenkitError` if this version of PyTorch cannot leave sizes open."""
    if resolution is None and torch.__version__ < _ANY_SIZE:
        needed, wish, flag = _ANY_SIZE, "size", "--resolution"
    elif batch_size is None and torch.__version__ < _ANY_NUMBER:
        needed, wish, flag = _ANY_NUMBER, "number", "--batch-size"
    else:
        return
    raise GenkitError(
        f"a graph for images of any {wish} needs PyTorch {needed} or newer, "
        f"and this is {torch.__version__}: fix the {wish} with {flag}"
    )


def _need(*libraries: str) -> None:
    if missing := [name for name in libraries if importlib.util.find_spec(name) is None]:
        raise GenkitError(
            f"ONNX needs {' and '.join(missing)}, not installed here: "
            f"{to_install('genkit-vq[onnx]')}"
        )
