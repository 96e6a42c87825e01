"""The contract of features: the networks that distances between sets of images use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from genkit.checks import finite, shape, want
from genkit.models import RGB
from genkit.testing.device import also
from genkit.testing.tools import build, call, has, part, put

_OUTPUTS = ("features", "spatial", "logits")


def check_features(name: str, *, gpu: bool = True, **options: Any) -> None:
    """Check the features `name`: one row of numbers per image, which depends on that image alone.

    `options` are the component's own.

    Everything is checked once more on a pretend GPU, in a process of its own; `gpu=False` skips
    that.
    """
    __tracebackhide__ = True
    network = build(part("features", name, options), "Features(options)").eval()
    label = has(network, "label", "the displayed name of the network")
    want(isinstance(label, str) and label, f"label must be text, not {label!r}")
    frechet = has(network, "frechet", "the name of the Fréchet distance of its features")
    want(isinstance(frechet, str) and frechet, f"frechet must be text, such as FD, not {frechet!r}")
    details = has(network, "details", "what identifies the network: a hash of its weights")
    want(
        isinstance(details, Mapping)
        and all(isinstance(value, str | int | float) for value in details.values()),
        f"details must be a dict of texts and numbers, for the record, not {details!r}",
    )
    widths = has(network, "widths", "the number of values of each of its outputs")
    want(
        isinstance(widths, Mapping) and "features" in widths and set(widths) <= {*_OUTPUTS},
        f"widths must have 'features', and may have 'spatial' and 'logits', not {widths!r}",
    )
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (4, RGB, 64, 96), generator=generator, dtype=torch.uint8)
    _check_outputs(network, put(images), widths)
    if gpu:
        also("features", name, **options)


def _check_outputs(network: Any, images: torch.Tensor, widths: Mapping[str, int]) -> None:
    __tracebackhide__ = True
    before = images.clone()
    with torch.no_grad():
        found = call(f"forward(images uint8 {list(images.shape)})", network, images)
        want(torch.equal(images, before), "forward must not change its input images")
        want(
            isinstance(found, Mapping) and found.keys() == widths.keys(),
            f"forward must return a dict with the outputs {', '.join(widths)}",
        )
        alone = [network(image[None]) for image in images]
    for output, values in found.items():
        shape(f"the output '{output}'", values, (len(images), widths[output]))
        want(
            values.dtype == torch.float32,
            f"the output '{output}' must be float32, not {values.dtype}",
        )
        finite(f"the output '{output}'", values)
        single = torch.cat([each[output] for each in alone])
        want(
            torch.allclose(values, single, rtol=1e-3, atol=1e-3 * float(single.abs().max())),
            f"the output '{output}' of an image must not depend on the others of its batch",
        )
        want(
            not torch.allclose(single[0], single[1], rtol=0, atol=0),
            f"the output '{output}' must differ between images",
        )
