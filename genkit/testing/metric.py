"""The contract of metrics."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from genkit.checks import shape, want
from genkit.evaluation.figures import keyed
from genkit.interfaces import Metric
from genkit.plugin.options import Part
from genkit.testing.device import also
from genkit.testing.tools import call, construct, first_failure, has, part, put

Pair = tuple[Tensor, Tensor]

SIGNATURE = "Metric(options, channels)"


def check_metric(
    name: str, *, channels: int = 3, processes: int = 2, gpu: bool = True, **options: Any
) -> None:
    """Check the metric `name`: finite figures that do not depend on the batches' order and sizes.

    Several processes that share the images must give the same figures; `processes=1` skips that
    check. The images have `channels` channels; `options` are the component's own.

    Everything is checked once more on a pretend GPU, in a process of its own; `gpu=False` skips
    that.
    """
    __tracebackhide__ = True
    chosen = part("metric", name, options)
    pairs = examples(channels)
    figures = _figures(chosen, channels, [pairs])
    _same(figures, _figures(chosen, channels, [pairs]), "of the same images again")
    _same(figures, _figures(chosen, channels, pieces(pairs, (1, 4, 2))), "in other batches")
    turned = [tensor.flip(0) for tensor in pairs]
    _same(figures, _figures(chosen, channels, [(turned[0], turned[1])]), "in another order")
    if processes > 1:
        _check_processes(name, channels, options, processes, figures)
    if gpu:
        also("metric", name, channels=channels, **options)


def examples(channels: int) -> Pair:
    """Seven images and their reconstructions, each worse than the one before."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(7, channels, 64, 96, generator=generator) * 2 - 1
    noise = torch.randn(images.shape, generator=generator)
    strength = torch.linspace(0.05, 0.5, 7)[:, None, None, None]
    return put(images), put((images + strength * noise).clamp(-1, 1))


def pieces(pairs: Pair, sizes: Iterable[int]) -> list[Pair]:
    """The pairs, split into batches of these sizes."""
    images, reconstructions = (tensor.split(list(sizes)) for tensor in pairs)
    return list(zip(images, reconstructions, strict=True))


def measured(chosen: Part, channels: int, batches: Sequence[Pair]) -> Any:
    """The result of a new metric on the batches."""
    metric = cast("Metric", chosen.build(channels))
    for images, reconstructions in batches:
        metric.update(images, reconstructions)
    return metric.result()


def _figures(chosen: Part, channels: int, batches: Sequence[Pair]) -> dict[str, float]:
    """The figures of a new metric on the batches, after checks."""
    __tracebackhide__ = True
    metric = construct(chosen, SIGNATURE, channels)
    label = has(metric, "label", "the displayed name of its figure")
    want(isinstance(label, str) and label, f"label must be text, not {label!r}")
    better = has(metric, "better", "'higher' or 'lower'")
    want(better in ("higher", "lower"), f"better must be 'higher' or 'lower', not {better!r}")
    digits = has(metric, "decimals", "the number of digits of its displayed figure")
    want(type(digits) is int and 0 <= digits <= 20, f"decimals must be an integer, not {digits!r}")
    details = getattr(metric, "details", {})
    want(
        isinstance(details, Mapping) and all(map(_plain, details.values())),
        f"details must be a dict of texts and numbers, for the record, not {details!r}",
    )
    for images, reconstructions in batches:
        before = images.clone(), reconstructions.clone()
        said = f"update(images {list(images.shape)}, reconstructions {list(reconstructions.shape)})"
        values = call(said, metric.update, images, reconstructions)
        want(
            torch.equal(images, before[0]) and torch.equal(reconstructions, before[1]),
            "update must not change its arguments: other metrics use the same tensors",
        )
        if values is not None:
            shape("the values that update returns", values, (len(images),), ", or be None")
    result = call("result()", metric.result)
    want(
        isinstance(result, int | float | Mapping),
        "result must return a number or a dict of numbers if there are images, not "
        f"{type(result).__name__}",
    )
    figures = keyed(chosen.name, result)
    for key, value in figures.items():
        want(
            value is not None and math.isfinite(value),
            f"the figure '{key}' of images and noisy copies must be finite, not {value}",
        )
    return cast("dict[str, float]", figures)


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _same(figures: Mapping[str, Any], others: Mapping[str, Any], where: str) -> None:
    __tracebackhide__ = True
    alike = figures.keys() == others.keys() and all(
        math.isclose(value, others[key], rel_tol=1e-4, abs_tol=1e-6)
        for key, value in figures.items()
    )
    want(
        alike,
        f"the figures must be the same {where}: {dict(others)}, not {dict(figures)}; keep sums, or "
        "features of single images, and combine all processes' values in result with "
        "genkit.distributed.all_sum or gather_rows",
    )


def _check_processes(
    name: str, channels: int, options: dict[str, Any], processes: int, figures: Mapping[str, Any]
) -> None:
    __tracebackhide__ = True
    with tempfile.TemporaryDirectory() as folder:
        settings = json.dumps(["metric", name, channels, options])
        failed = first_failure(Path(folder), settings, processes)
        want(
            failed is None,
            f"measuring in {processes} processes must work, even if one gets no image; one of "
            f"them ended with: {failed}",
        )
        for rank in range(processes):
            shared, alone = json.loads((Path(folder) / f"{rank}.json").read_text(encoding="utf-8"))
            where = f"in process {rank} of {processes} that share the images"
            _same(figures, keyed(name, shared), where)
            _same(figures, keyed(name, alone), f"{where}, where process 0 has them all")
