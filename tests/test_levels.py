"""Any number of levels, with and without attention, in both wirings, with every quantizer."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_run

import genkit
from genkit.plugin.registry import registry

CASES = [
    # Everything for the default quantizer. It is one module per level, so the others have one case.
    pytest.param(
        *case,
        id="-".join(map(str, case)),
        marks=() if case[0] == "vq" or case[1:] == (2, "pixel", "all") else pytest.mark.slow,
    )
    for case in itertools.product(
        registry().names("quantizer"), [1, 2, 3], ["none", "pixel"], ["finest", "all"]
    )
]


@pytest.mark.parametrize(("quantizer", "levels", "attention", "sees"), CASES)
def test_levels_train_save_load_encode_and_decode(
    quantizer: str, levels: int, attention: str, sees: str, tmp_path: Path
) -> None:
    config = registry().component("quantizer", quantizer).config
    sized = "codebook_size" in {field.name for field in dataclasses.fields(config)}
    settings: dict[str, Any] = {
        "steps": 2,
        "validate_every": 2,
        "encoder": {"levels": levels, "attention": attention, "latent_channels": 4},
        "quantizer": {"name": quantizer, **({"codebook_size": 16} if sized else {})},
        "decoder": {"sees": sees},
    }
    rows = tiny_run(tmp_path / "run", settings).rows
    assert len(rows[-1]["levels"]) == len(rows[-1]["epoch"]["levels"]) == levels
    tokenizer = genkit.load(tmp_path / "run")
    images = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    indices = tokenizer.encode(images)
    assert [tuple(each.shape[:3]) for each in indices] == [
        (2, 32 >> 2 + level, 48 >> 2 + level) for level in range(levels)
    ]
    several = [[count] if count > 1 else [] for count, _ in tokenizer.codebooks]
    assert [list(each.shape[3:]) for each in indices] == several
    out = tokenizer(images)
    assert all(torch.equal(a, b) for a, b in zip(indices, out.indices, strict=True))
    assert torch.allclose(tokenizer.decode(indices), out.images, atol=1e-5)
    genkit.save(tokenizer, tmp_path / "again.safetensors")
    again = genkit.load(tmp_path / "again.safetensors").encode(images)
    assert all(torch.equal(a, b) for a, b in zip(indices, again, strict=True))
    if levels > 1:
        # In the paper's wiring a coarser level reaches the picture only through the finest
        # indices; if the decoder sees all levels, the coarser indices matter too.
        other = [*indices[:-1], (indices[-1] + 1) % tokenizer.codebook_sizes[-1]]
        same = torch.equal(tokenizer.decode(other), tokenizer.decode(indices))
        assert same == (sees == "finest")
