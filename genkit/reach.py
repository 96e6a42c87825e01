"""How far a tokenizer's components see around a place of an image, measured.

A component is applied to noise and to a part of it. Outputs that are far enough from the part's
border are equal. The distance is the reach: it covers receptive fields, padding, and places that a
component counts from the border. Attention over all pixels or a norm over the image changes outputs
at any distance.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from genkit.interfaces import Level
from genkit.ops.precision import float32_by_default
from genkit.tokenizer import Tokenizer

Way = Literal["encode", "decode"]
_Network = Callable[[list[Tensor]], list[Tensor]]

# Lengths of the noise in pixels, tried in this order; a reach is at most half of one.
_LENGTHS = (256, 512, 1024, 2048)
# Smallest width of the noise in pixels and in latents of the coarsest level, and smallest length in
# such latents.
_WIDTH, _LATENTS, _LONG = 32, 2, 16
# Largest relative difference of equal outputs, in float64. Effects below it are far below the
# rounding of float32.
_TOLERANCE = 1e-9
# Quantizers compute in float32, so a few codes differ by rounding: this share of a line may.
_ROUNDED = 0.25
# Effects of convolutions fade with distance, by far more than this factor in a quarter of the
# noise; effects of attention over all pixels or of a norm over the image do not.
_FADED = 0.5


class Reach(NamedTuple):
    """How far from a tile's border outputs differ, in pixels; a multiple of the coarsest stride.

    None means at any distance, because `component` sees the whole image.
    """

    pixels: int | None
    component: str = ""


_known: WeakKeyDictionary[Tokenizer, dict[Way, tuple[list[int], Reach]]] = WeakKeyDictionary()


def reach(tokenizer: Tokenizer, way: Way) -> Reach:
    """The reach of `tokenizer.encode` or `tokenizer.decode`, measured once until weights change.

    Indices depend on the encoder, and on all coarser levels by fusions. A changed coarse code
    changes finer ones wherever fusions carry it, so the reaches of the parts add up.
    """
    versions = [each._version for each in (*tokenizer.parameters(), *tokenizer.buffers())]
    found = _known.setdefault(tokenizer, {})
    if way not in found or found[way][0] != versions:
        with torch.no_grad(), tokenizer.evaluating(), float32_by_default():
            measured = (_encoding if way == "encode" else _decoding)(tokenizer)
        found[way] = versions, measured
    return found[way][1]


def _encoding(tokenizer: Tokenizer) -> Reach:
    levels, options = tokenizer.levels, tokenizer.options
    unit = levels[-1].stride
    image = Level(0, tokenizer.channels, 1)
    encoder = _double(tokenizer.encoder)
    own = _distances(lambda inputs: encoder(inputs[0]), [image], levels, unit)
    if own is None:
        return Reach(None, f"the encoder '{options.encoder.name}'")
    total = 0
    for index in reversed(range(len(levels))):
        level = levels[index]
        total = max(total, own[index])
        if index + 1 < len(levels):
            fusion = _double(tokenizer.fusions[index])
            added = _distances(_fused(fusion), levels[index : index + 2], [level], unit)
            if added is None:
                return Reach(None, f"the fusion '{options.fusion.name}'")
            total += added[0]
        quantizer = _coded(tokenizer.quantizers[index])
        added = _distances(quantizer, [level], [level], unit, _ROUNDED)
        if added is None:
            return Reach(None, f"the quantizer '{options.quantizer.name}'")
        total += added[0]
    return Reach(_whole(total, unit))


def _decoding(tokenizer: Tokenizer) -> Reach:
    levels = tokenizer.levels
    unit = levels[-1].stride
    decoder = _double(tokenizer.decoder)
    image = Level(0, tokenizer.channels, 1)
    found = _distances(lambda inputs: [decoder(inputs)], levels, [image], unit)
    if found is None:
        return Reach(None, f"the decoder '{tokenizer.options.decoder.name}'")
    return Reach(_whole(found[0], unit))


def _double(module: nn.Module) -> nn.Module:
    """A copy on the CPU in float64, which some accelerators lack."""
    return copy.deepcopy(module).to("cpu", torch.float64)


def _fused(fusion: nn.Module) -> _Network:
    return lambda inputs: [fusion(*inputs)]


def _coded(quantizer: nn.Module) -> _Network:
    """The quantized latents that a decoder gets for some latents."""
    copied: Any = copy.deepcopy(quantizer).to("cpu")
    return lambda inputs: [copied.decode(copied(inputs[0].float()).indices)]


def _whole(pixels: int, unit: int) -> int:
    return -(-pixels // unit) * unit


def _distances(
    network: _Network,
    inputs: Sequence[Level],
    outputs: Sequence[Level],
    unit: int,
    share: float = 0.0,
) -> list[int] | None:
    """The distance from a border in pixels beyond which each output is equal; None without one."""
    width = max(_WIDTH, _LATENTS * unit)
    for least in _LENGTHS:
        length = _whole(max(least, _LONG * unit), unit)
        found = [0 for _ in outputs]
        for size in ((length, width), (width, length)):
            for profiles in _differences(network, inputs, outputs, size, unit, share):
                if any(_stays(profile) for profile in profiles):
                    return None
                for place, (profile, level) in enumerate(zip(profiles, outputs, strict=True)):
                    found[place] = max(found[place], _last(profile) * level.stride)
        if max(found) <= length // 2:
            return found
    return None


def _differences(
    network: _Network,
    inputs: Sequence[Level],
    outputs: Sequence[Level],
    size: tuple[int, int],
    unit: int,
    share: float,
) -> Iterator[list[Tensor]]:
    """For two cuts of noise, the largest difference of each output by its distance from the cut.

    They lie along the longer side. Differences that rounding explains are zero.
    """
    generator = torch.Generator().manual_seed(0)
    noise = [
        torch.randn(1, level.channels, *level.grid(*size), generator=generator, dtype=torch.float64)
        for level in inputs
    ]
    if inputs[0].stride == 1:  # An image.
        noise = [each.clamp(-1, 1) for each in noise]
    axis, length = (2, size[0]) if size[0] > size[1] else (3, size[1])
    whole = network(list(noise))
    # Cut off one unit before and one behind: places that a network counts shift by the least.
    for start, stop in ((unit, length), (0, length - unit)):
        pairs = zip(noise, inputs, strict=True)
        made = network([_part(each, level, axis, start, stop) for each, level in pairs])
        profiles = []
        for full, cut, level in zip(whole, made, outputs, strict=True):
            difference = (cut - _part(full, level, axis, start, stop)).abs()
            lines = difference.movedim(axis, 0).flatten(1).double()
            differs = lines > _TOLERANCE * full.abs().max()
            lines = lines.amax(1) * (differs.double().mean(1) > share)
            profiles.append(lines if start else lines.flip(0))
        yield profiles


def _last(profile: Tensor) -> int:
    """The number of lines up to the last one that differs."""
    places = profile.nonzero()
    return int(places.max()) + 1 if len(places) else 0


def _stays(profile: Tensor) -> bool:
    """Whether differences do not fade from the third quarter of the distance to the last one."""
    quarter = len(profile) // 4
    last, before = profile[-quarter:], profile[-2 * quarter : -quarter]
    return bool(last.min() > 0 and last.mean() > _FADED * before.mean())


def _part(values: Tensor, level: Level, axis: int, start: int, stop: int) -> Tensor:
    first, last = start // level.stride, stop // level.stride
    return values.narrow(axis, first, last - first).contiguous()
