"""A prior with its tokenizer: draws sequences of indices, and the images that they stand for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genkit.errors import OptionError
from genkit.interfaces import Conditioning, Rules
from genkit.layout import Layout
from genkit.ops.precision import double
from genkit.plugin.options import Part
from genkit.tokenizer import Tokenizer

# Images of a batch in sampling, unless said otherwise.
BATCH = 32
# A call's condition: classes by number or name, or vectors.
Classes = Sequence[int | str | None]


class Prior(nn.Module):
    """A model of the indices of a tokenizer, with that tokenizer.

    `size` is the height and width of its images, `classes` the names of its training classes, and
    `facts` describe its training. It draws in eval mode.
    """

    def __init__(
        self,
        part: Part,
        tokenizer: Tokenizer,
        size: tuple[int, int],
        classes: Sequence[str] = (),
        length: int = 0,
        channels: int = 0,
        model: nn.Module | None = None,
    ) -> None:
        """With vectors as a condition, an image has up to `length` of them, of `channels` values.

        Without a `model`, a new one is built from the `part`.
        """
        super().__init__()
        self.part, self.size, self.classes = part, size, list(classes)
        self.layout = Layout.of(tokenizer, *size)
        self.conditioning = Conditioning(len(self.classes), length, channels)
        self.model: Any = model or part.build(self.layout, self.conditioning)
        self.tokenizer = tokenizer
        self.facts: dict[str, Any] = {}

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.tokenizer.parameters()).device

    def generate(self, number: int, **how: Any) -> Tensor:
        """Draw images `[number, channels, H, W]` in [-1, 1]; `how` is passed on to `sample`."""
        indices = self.sample(number, **how)
        batches = zip(*(level.split(BATCH) for level in indices), strict=True)
        return torch.cat([self.tokenizer.decode(list(batch)) for batch in batches])

    def sample(
        self,
        number: int,
        *,
        seed: int = 0,
        classes: Classes | None = None,
        vectors: Tensor | None = None,
        kept: Sequence[Tensor] | None = None,
        first: int = 0,
        batch_size: int = BATCH,
        **rules: Any,
    ) -> list[Tensor]:
        """Draw the indices of images, as `Tokenizer.encode` returns them.

        Image i depends on `seed` and `first` + i alone, up to rounding, which a batch of another
        size may change. `classes` gives each image the number or the name of a class, or None;
        `vectors` `[number, T, C]` are the condition of a prior that was trained with some. `kept`
        holds indices to keep, -1 where one is drawn, for one image or for each. `rules` are the
        fields of `genkit.interfaces.Rules`: `temperature`, `top_k`, `top_p`, `guidance` and so on.
        """
        if type(number) is not int or number < 1:
            raise OptionError(
                f"the number of images must be a whole number above 0, not {number!r}"
            )
        chosen = self.checked(rules, classes is not None or vectors is not None)
        condition = self.condition(number, classes, vectors)
        fixed = None if kept is None else self.layout.flatten(kept).to(self.device)
        if fixed is not None and len(fixed) not in (1, number):
            raise OptionError(f"the kept indices are of {len(fixed)} images, not of {number}")
        if fixed is not None:
            fixed = fixed.expand(number, -1)
        parts = []
        self.eval()
        with torch.no_grad():
            for start in range(0, number, batch_size):
                stop = min(start + batch_size, number)
                generators = [_generator(seed, first + image) for image in range(start, stop)]
                parts.append(
                    self.model.sample(
                        None if condition is None else condition[start:stop],
                        None if fixed is None else fixed[start:stop],
                        generators,
                        chosen,
                    )
                )
        return self.layout.unflatten(torch.cat(parts))

    def nats(self, indices: Sequence[Tensor], **given: Any) -> Tensor:
        """The negative log-likelihood `[B]` of images' indices in nats, float64.

        It is exact if the prior is; a masked prior gives an upper bound. `given` are the classes
        or the vectors, as in `nats_by_level`.
        """
        return self.nats_by_level(indices, **given).sum(1)

    @torch.no_grad()
    def nats_by_level(
        self,
        indices: Sequence[Tensor],
        *,
        classes: Classes | None = None,
        vectors: Tensor | None = None,
        batch_size: int = BATCH,
    ) -> Tensor:
        """Like `nats`, the share of each level `[B, levels]`, finest first."""
        self.tokenizer.check_indices(list(indices))
        sequence = self.layout.flatten(indices).to(self.device)
        condition = self.condition(len(sequence), classes, vectors)
        self.eval()
        parts = []
        for start in range(0, len(sequence), batch_size):
            stop = start + batch_size
            given = None if condition is None else condition[start:stop]
            parts.append(by_level(self.layout, self.model.nats(sequence[start:stop], given)))
        return torch.cat(parts)

    @property
    def exact(self) -> bool:
        """Whether `nats` are exact, not an upper bound."""
        return bool(self.model.exact)

    def checked(self, rules: dict[str, Any], conditioned: bool) -> Rules:
        """The rules of sampling; `OptionError` for one that this prior or draw has no use for."""
        known = {field.name for field in dataclasses.fields(Rules)}
        if unknown := sorted(set(rules) - known):
            raise OptionError(f"there is no rule '{unknown[0]}'; there are {', '.join(known)}")
        chosen = Rules(**{name: value for name, value in rules.items() if value is not None})
        for field in dataclasses.fields(Rules):
            # The schedule and the power belong to the guidance.
            rule = "guidance" if field.name.startswith("guidance") else field.name
            if rule not in self.model.rules and getattr(chosen, field.name) != field.default:
                raise OptionError(
                    f"the prior '{self.part.name}' does not use {field.name}: leave it out"
                )
        if chosen.guidance != 1 and not self.conditioning:
            raise OptionError("guidance needs a condition, and this prior was trained without any")
        if chosen.guidance != 1 and not conditioned:
            raise OptionError("guidance needs a condition: name classes or vectors to draw")
        return chosen

    def condition(
        self, number: int, classes: Classes | None, vectors: Tensor | None
    ) -> Tensor | None:
        """The condition of so many images on the device; `OptionError` if it does not fit."""
        kind = self.conditioning
        if classes is not None:
            if not kind.classes:
                raise OptionError("this prior was trained without classes")
            if len(classes) != number:
                raise OptionError(f"{len(classes)} classes do not fit {number} images")
            return torch.tensor([self._class(each) for each in classes], device=self.device)
        if vectors is None:
            return None
        if not kind.channels:
            raise OptionError("this prior was trained without vectors")
        found = list(vectors.shape)
        if len(found) != 3 or (found[0], found[2]) != (number, kind.channels):
            raise OptionError(
                f"the vectors have the shape {found}; {number} images need "
                f"[{number}, T, {kind.channels}]"
            )
        if found[1] > kind.length:
            raise OptionError(f"an image can have {kind.length} vectors, not {found[1]}")
        return vectors.to(self.device, torch.float32)

    def _class(self, given: int | str | None) -> int:
        if given is None:
            return -1
        if isinstance(given, str) and given in self.classes:
            return self.classes.index(given)
        if (
            isinstance(given, int | str)
            and str(given).isdecimal()
            and int(given) < len(self.classes)
        ):
            return int(given)
        names = ", ".join(self.classes[:10]) + (" …" if len(self.classes) > 10 else "")
        raise OptionError(
            f"there is no class {given!r}: the prior has {len(self.classes)}, by number from 0 or "
            f"by name: {names}"
        )


def by_level(layout: Layout, nats: Tensor) -> Tensor:
    """Sums float64 `[B, levels]`, finest level first, of the nats `[B, N]` of indices."""
    parts = double(nats).split([len(grid) for grid in reversed(layout.grids)], 1)
    return torch.stack([part.sum(1) for part in reversed(parts)], 1)


def _generator(seed: int, image: int) -> torch.Generator:
    """The random numbers of one image.

    A generator uses 32 bits of its seed. Those of one run's images must differ, or images would
    repeat, so the image's number is mapped one to one.
    """
    mixed = image * 0x9E3779B1 ^ (seed * 0x85EBCA6B + 0xC2B2AE35)
    return torch.Generator().manual_seed(mixed % 2**32)
