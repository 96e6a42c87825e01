"""Presets of published tokenizers have the published numbers of parameters."""

from __future__ import annotations

import pytest
import torch
from test_vqgan import attention, block, conv, counted

import genkit
from genkit import Level
from genkit.run.options import layered, resolve_run


def published_encoder(widths: list[int], blocks: int, latent: int) -> int:
    """Parameters of the published encoder with attention at the coarsest size, by arithmetic."""
    total, width = conv(3, widths[0], 3), widths[0]
    for size, out in enumerate(widths):
        coarsest = size == len(widths) - 1
        for _ in range(blocks):
            total += block(width, out) + coarsest * attention(out)
            width = out
        total += 0 if coarsest else conv(width, width, 3)
    total += 2 * block(width, width) + attention(width)
    return total + 2 * width + conv(width, latent, 3)


def published_decoder(widths: list[int], blocks: int, latent: int) -> int:
    """Parameters of the published decoder, which has one more block at each size."""
    width = widths[-1]
    total = conv(latent, width, 3) + 2 * block(width, width) + attention(width)
    for size, out in reversed(list(enumerate(widths))):
        for _ in range(blocks + 1):
            total += block(width, out) + (size == len(widths) - 1) * attention(out)
            width = out
        total += conv(width, width, 3) if size else 0
    return total + 2 * width + conv(width, 3, 3)


def test_the_preset_has_the_published_models_parameters() -> None:
    """Its configuration: ch 128, ch_mult 1 1 2 2 4, two blocks, attention at 16."""
    run = resolve_run(layered("vqgan"))
    with torch.device("meta"):
        encoder = run.encoder.build(3)
        decoder = run.decoder.build(encoder.levels, 3)
    widths = [128, 128, 256, 256, 512]
    # Each also has a 1x1 convolution next to the codes.
    expected = (
        published_encoder(widths, 2, 256) + conv(256, 256, 1),
        published_decoder(widths, 2, 256) + conv(256, 256, 1),
    )
    assert (counted(encoder), counted(decoder)) == expected == (29_363_968, 42_515_587)
    assert encoder.levels == [Level(0, 256, 16)]
    assert run.size == (256, 256)
    # With the codebook these are the published 72.1 million.
    assert sum(expected) + 1024 * 256 == 72_141_699


@pytest.mark.parametrize(
    ("preset", "millions"),
    [
        ("taming-f16", 72.14),
        ("vqgan", 72.14),
        ("taming-f16-16384", 76.07),
        ("taming-gumbel-f8", 69.00),
        ("ldm-f8-16384", 67.72),
        ("ldm-f4", 55.32),
        # Published: 585 MB in float32.
        ("amused-f16", 146.24),
        # Published: 72 M and 70 M.
        ("llamagen-f16", 71.88),
        ("llamagen-f8", 70.11),
        # Published: 888 MB in float32, the weights and their averages.
        ("ibq-16384", 110.98),
        ("maskgit-f16", 54.52),
        ("open-magvit2-f16", 115.13),
        ("simvq-f8", 72.54),
    ],
)
def test_presets_have_the_published_sizes(preset: str, millions: float) -> None:
    with torch.device("meta"):
        tokenizer = genkit.Tokenizer(resolve_run(layered(preset)).tokenizer)
    # A fixed table of codes is a buffer.
    values = sum(each.numel() for each in tokenizer.state_dict().values())
    assert round(values / 1e6, 2) == pytest.approx(millions)
