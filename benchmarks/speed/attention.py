"""Sigmoid attention over all pixels, forward and backward, compared with softmax attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.jobs import table
from benchmarks.speed import timing
from benchmarks.speed.timing import Settings, Work
from genkit.ops import sigmoid_attention

TITLE = "Sigmoid attention"
Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]
BATCH = 4
# Query pixels N, key pixels M, channels of queries and keys d, channels of values e.
SIZES = [
    *((n, n, d, d) for n in (1024, 4096) for d in (64, 128, 256)),
    (4096, 1024, 128, 128),
    (1024, 4096, 128, 128),
    (4096, 4096, 32, 128),
]
NAMES = {
    "ours": "`genkit.ops.sigmoid_attention`",
    "naive": "naive",
    "compiled": "naive, `torch.compile`",
    "sdpa": "softmax, `scaled_dot_product_attention`",
    "products": "six bare products",
}


def measure(settings: Settings) -> dict[str, Any]:
    gpu = settings.device == "cuda"
    sizes = [(512, 512, 32, 32), (2048, 2048, 32, 32)] if settings.quick else SIZES
    return {
        "device": settings.device,
        "rows": [
            _row(size, dtype, settings)
            for dtype in (torch.float32, torch.bfloat16)
            for size in sizes
            # On a CPU, bfloat16 only at the sizes of interest.
            if gpu or dtype == torch.float32 or size[0] == size[1] >= 2048
        ],
    }


def _row(size: tuple[int, int, int, int], dtype: torch.dtype, settings: Settings) -> dict[str, Any]:
    n, m, d, e = size
    generator = torch.Generator().manual_seed(0)
    q, k, v, gradient = (
        torch.randn(BATCH, length, width, generator=generator).to(settings.device, dtype)
        for length, width in ((n, d), (m, d), (m, e), (n, e))
    )
    given = tuple(x.requires_grad_() for x in (q, k, v))
    ways: dict[str, Attend] = {"ours": sigmoid_attention, "naive": naive}
    if not settings.quick and size == (4096, 4096, 128, 128) and dtype == torch.float32:
        ways["compiled"] = torch.compile(naive)
    errors = {name: _error(way, given, gradient) for name, way in ways.items()}
    allowed = 0.05 if dtype == torch.bfloat16 else 1e-4
    if wrong := [name for name, error in errors.items() if not error < allowed]:
        raise AssertionError(f"{wrong} of {errors} are not sigmoid attention at {size}, {dtype}")
    ways["sdpa"] = softmax
    work = {name: both(way, given, gradient) for name, way in ways.items()}
    seconds = 1.0 if settings.quick else 6.0
    times = timing.interleaved({**work, "products": _products(given, gradient)}, seconds, (3, 50))
    # The operations of six products; ours computes one more.
    operations = 2 * BATCH * n * m * 3 * (d + e)
    return {
        "size": list(size),
        "dtype": str(dtype).removeprefix("torch."),
        "errors": errors,
        "multiples": timing.ratios(times, "sdpa"),
        "seconds": {name: timing.spread(each) for name, each in times.items()},
        "tflops": {name: operations / min(each) / 1e12 for name, each in times.items()},
        "memory": {name: timing.peak_memory(each) for name, each in work.items()},
    }


def naive(queries: Tensor, keys: Tensor, values: Tensor, bias: float) -> Tensor:
    """sigmoid(Q K^T / sqrt(d) + bias) V, computed directly."""
    scores = torch.matmul(queries, keys.transpose(1, 2)) * queries.shape[-1] ** -0.5
    return torch.matmul(torch.sigmoid(scores + bias), values)


def softmax(queries: Tensor, keys: Tensor, values: Tensor, bias: float) -> Tensor:
    """Softmax attention, which needs the same matrix products."""
    heads = (x[:, None] for x in (queries, keys, values))
    return F.scaled_dot_product_attention(*heads)[:, 0]


def both(way: Attend, given: tuple[Tensor, ...], gradient: Tensor) -> Work:
    """Forward and backward pass."""
    q, k, v = given
    bias = -math.log(k.shape[1])
    return lambda: torch.autograd.grad(way(q, k, v, bias), given, gradient)


def _products(given: tuple[Tensor, ...], gradient: Tensor) -> Work:
    """The products that every implementation needs: two forward, four backward."""
    q, k, v = (x.detach() for x in given)
    weights = q.new_zeros(BATCH, q.shape[1], k.shape[1])

    def work() -> None:
        for a, b in ((q, k), (gradient, v)):
            torch.bmm(a, b.transpose(1, 2), out=weights)
        for a in (v, k):
            torch.bmm(weights, a)
        for a in (gradient, q):
            torch.bmm(weights.transpose(1, 2), a)

    return work


def _error(way: Attend, given: tuple[Tensor, ...], gradient: Tensor) -> float:
    """The largest error of the result and its gradients, relative to the largest element.

    Measured on the first image against the naive form in float64.
    """
    bias = -math.log(given[1].shape[1])
    results = []
    for way_, dtype in ((way, gradient.dtype), (naive, torch.float64)):
        first = tuple(x.detach().to(dtype).requires_grad_() for x in given)
        out = way_(*(x if dtype == gradient.dtype else x[:1] for x in first), bias)
        grads = torch.autograd.grad(out, first, gradient[: len(out)].to(dtype))
        results.append([x[:1].detach().double() for x in (out, *grads)])
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*results, strict=True))


def page(figures: dict[str, Any], folder: Path) -> str:
    rows = figures["rows"]
    gpu = figures["device"] == "cuda"
    names = [name for name in NAMES if any(name in row["multiples"] for row in rows)]
    head = ["N, M, d, e", "dtype", *(NAMES[name] for name in names if name != "sdpa")]
    times = [
        [
            ", ".join(f"{number:,}" for number in row["size"]),
            row["dtype"],
            *(
                timing.cell(row["multiples"][name]) if name in row["multiples"] else ""
                for name in names
                if name != "sdpa"
            ),
        ]
        for row in rows
    ]
    held = [name for name in names if name != "products"]
    memory = [
        [
            *times[index][:2],
            *(
                f"{row['memory'][name] / 1e6:,.0f}" if name in row["memory"] else ""
                for name in held
            ),
            *([f"{row['tflops'][name]:.1f}" for name in ("ours", "sdpa")] if gpu else []),
            f"{row['errors']['ours']:.0e}, {row['errors']['naive']:.0e}",
        ]
        for index, row in enumerate(rows)
    ]
    also = ["TFLOP/s, ours", "softmax"] if gpu else []
    picture = _plot(rows, folder, "attention-gpu.png" if gpu else "attention.png")
    return "\n\n".join(
        [
            f"Forward and backward pass for {BATCH} images of N pixels that attend to M pixels. "
            "Times are relative to PyTorch's `scaled_dot_product_attention` on the same tensors, "
            "which applies a softmax to the same products. Where d and e differ, PyTorch has no "
            "tiled kernel here. genkit and the naive form were first compared with float64. genkit "
            "recomputes the weights in the backward pass: seven products instead of six.",
            table(head, times),
            "Peak memory in MB without the inputs, and the largest error of the result and its "
            "gradients relative to the largest element, for genkit and the naive form.",
            table(
                ["N, M, d, e", "dtype", *(NAMES[name] for name in held), *also, "errors"], memory
            ),
            f"![Time and memory](performance/{picture})",
        ]
    )


def _plot(rows: list[dict[str, Any]], folder: Path, name: str) -> str:
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    shown = [row for row in rows if row["size"][0] == row["size"][1]]
    labels = [
        f"N = {r['size'][0]:,}\nd = {r['size'][2]}, {r['size'][3]}\n{r['dtype']}" for r in shown
    ]
    figure, axes = plt.subplots(2, 1, figsize=(1.2 * len(shown) + 2, 7), sharex=True)
    for index, (way, colour) in enumerate({"ours": "C0", "naive": "C1", "sdpa": "C7"}.items()):
        places = [place + 0.27 * (index - 1) for place in range(len(shown))]
        label = {"ours": "ours", "naive": "naive", "sdpa": "softmax (SDPA)"}[way]
        times = [row["multiples"][way]["median"] for row in shown]
        axes[0].bar(places, times, 0.25, color=colour, label=label)
        axes[1].bar(
            places, [row["memory"][way] / 1e6 for row in shown], 0.25, color=colour, label=label
        )
    axes[0].set_ylabel("time, multiples of softmax")
    axes[1].set_ylabel("most memory at once, MB")
    axes[1].set_yscale("log")
    axes[1].set_xticks(range(len(shown)), labels, fontsize=8)
    axes[0].legend(frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(folder / name, dpi=120)
    plt.close(figure)
    return name
