"""Measuring a prior: the bits that images take, beside how well its tokenizer keeps them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import torch

import genkit
from genkit.checkpoint.model import fingerprint
from genkit.checkpoint.prior import load_prior
from genkit.data.reading import batches, none_readable
from genkit.data.split import Subset
from genkit.data.vectors import Vectors
from genkit.devices import device_text, mixed, pick_device, precision_text
from genkit.errors import OptionError
from genkit.evaluation.bits import Likelihood
from genkit.evaluation.figures import result_of
from genkit.evaluation.images import data_text, evaluation_images, options_of
from genkit.evaluation.measurement import HashedSplit, chosen_metrics, describe
from genkit.evaluation.metrics import ARITHMETIC, psnr
from genkit.evaluation.record import SCHEMA


class PriorMeasurement:
    """A prior and the images to measure it on."""

    def __init__(
        self,
        checkpoint: str | os.PathLike[str],
        data: str | None = None,
        split: str | None = None,
        images: int | None = None,
        batch_size: int = 16,
        condition: str | None = None,
        samples: int | None = None,
        metrics: Sequence[str | Mapping[str, Any]] = (),
        rules: Mapping[str, Any] | None = None,
        device: str | None = None,
        mixed_precision: str = "no",
    ) -> None:
        self.checkpoint, self.images, self.batch_size = os.fspath(checkpoint), images, batch_size
        self.samples, self.rules = samples, dict(rules or {})
        self.metrics = chosen_metrics(metrics)
        if self.metrics and not samples:
            raise OptionError("distances are measured on samples: give --samples N")
        self.mixed_precision, self.device = mixed_precision, pick_device(device, mixed_precision)
        self.prior = load_prior(checkpoint)
        self.info = genkit.inspect(checkpoint)
        found, self.part, self.split, self.notes = evaluation_images(
            self.checkpoint,
            {**self.info, "channels": self.prior.tokenizer.channels},
            data,
            self.prior.size,
            split,
        )
        self.data_text = data_text(self.part)
        self.dataset = HashedSplit(found)
        self.vectors = None if condition is None else Vectors(condition)
        kind = self.prior.conditioning
        if bool(kind.channels) != (self.vectors is not None):
            raise OptionError(
                "the prior was trained with vectors: give --condition FILE"
                if kind.channels
                else "the prior was trained without vectors: leave out --condition"
            )
        if kind.classes and found.classes != self.prior.classes:
            raise OptionError(
                f"the prior knows other classes than {self.data_text} has: measure it on data "
                f"with {', '.join(self.prior.classes[:5])} …"
            )

    @torch.no_grad()
    def record(
        self, progress: Callable[[int, int], object] = lambda done, total: None
    ) -> dict[str, Any]:
        """Measure; returns the figures with everything that says what they were measured on.

        `progress` is called with the images done and their total: measured ones, then samples.
        """
        prior = self.prior.to(self.device)
        found = Likelihood(prior.layout, prior.size, prior.tokenizer.bits_per_pixel)
        wanted = len(self.dataset) if self.images is None else self.images
        kept: list[torch.Tensor] = []
        for numbers, batch in batches(
            self.dataset, wanted, self.batch_size, self.device, progress=progress
        ):
            indices = prior.tokenizer.encode(batch)
            kept.append(psnr(batch, prior.tokenizer.decode(indices)).double().cpu())
            condition = prior.condition(len(batch), *self._condition(numbers))
            with mixed(self.device, self.mixed_precision):
                found.add(prior.model.nats(prior.layout.flatten(indices), condition))
        if not kept:
            raise none_readable(self.dataset.problems, "images")
        return {
            "schema": SCHEMA,
            **found.figures(),
            **(self._distances(progress) if self.samples and self.metrics else {}),
            "exact": prior.exact,
            "psnr": float(torch.cat(kept).mean()),
            "protocol": {
                "evaluation": ARITHMETIC,
                "data": self.part.name,
                "split": self.split,
                "resolution": list(prior.size),
                "asked": self.images,
                "options": options_of(self.part),
                "fingerprint": self.dataset.fingerprint,
                "found": sum(map(len, kept)),
                **self.dataset.hashes(),
            },
            "unreadable": self.dataset.problems,
            "versions": {
                "genkit": genkit.__version__,
                "torch": str(torch.__version__),
                **{name: metadata.version(name) for name in ("numpy", "pillow")},
            },
            "model": {
                "path": self.checkpoint,
                "fingerprint": fingerprint(prior.model),
                "tokenizer": fingerprint(prior.tokenizer),
                "components": self.info["components"],
                "training": {key: prior.facts.get(key) for key in ("step", "seed")},
            },
            "batch_size": self.batch_size,
            "device": device_text(self.device),
            "precision": precision_text(prior.model, self.device, self.mixed_precision),
        }

    def _distances(self, progress: Callable[[int, int], object]) -> dict[str, Any]:
        """Figures of samples and as many training images, in the order of the seed."""
        assert self.samples
        prior, count = self.prior, self.samples
        built: dict[str, Any] = {
            name: part.build(prior.tokenizer.channels) for name, part in self.metrics.items()
        }
        for name, metric in built.items():
            if not hasattr(metric, "add_real"):
                raise OptionError(
                    f"the metric '{name}' compares images with their reconstructions: leave it "
                    "out, samples have no originals"
                )
        alone = [metric for metric in built.values() if not metric.has_reference]
        for images in self._training(count) if alone else ():
            for metric in alone:
                metric.add_real(images)
        kind = prior.conditioning
        for first in range(0, count, self.batch_size):
            numbers = range(first, min(first + self.batch_size, count))
            classes = [number % kind.classes for number in numbers] if kind.classes else None
            vectors = self.vectors.in_turn(numbers) if self.vectors else None
            with mixed(self.device, self.mixed_precision):
                indices = prior.sample(
                    len(numbers), first=first, classes=classes, vectors=vectors, **self.rules
                )
            for metric in built.values():
                metric.add(prior.tokenizer.decode(indices).float().clamp(-1, 1))
            progress(numbers[-1] + 1, count)
        figures: dict[str, Any] = {}
        how: dict[str, Any] = {}
        for name, metric in built.items():
            entries, described = result_of(name, metric)
            figures |= entries
            how |= described
        describe(how, self.metrics, built)
        for entry in how.values():
            entry["options"] |= {"rules": str(self.rules)}
        return {**figures, "metrics": how}

    def _training(self, count: int) -> Iterator[torch.Tensor]:
        """Batches of training images on the device."""
        split, _, _, _ = evaluation_images(
            self.checkpoint, self.info, None, self.prior.size, "train"
        )
        numbers = np.random.default_rng(0).permutation(len(split))[:count]
        for _, images in batches(
            Subset(split, numbers.tolist()), count, self.batch_size, self.device
        ):
            yield images

    def _condition(self, numbers: Sequence[int]) -> tuple[Any, Any]:
        """The classes and the vectors of images."""
        if self.vectors:
            names = [self.dataset.name(number) for number in numbers]
            self.vectors.check(names)
            return None, self.vectors.of(names)
        if self.prior.classes:
            return [self.dataset.label(number) for number in numbers], None
        return None, None
