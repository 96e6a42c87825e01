"""The quantizer with a logit for each code: draws, temperature, divergence."""

from __future__ import annotations

import math

import pytest
import torch
from genkit_vqgan import CategoricalOptions
from genkit_vqgan.categorical import Categorical

from genkit import Level


def test_categorical_draws_in_training_and_takes_the_largest_logit_otherwise() -> None:
    torch.manual_seed(0)
    quantizer = Categorical(CategoricalOptions(codebook_size=16), Level(0, 8, 4))
    latents = torch.randn(2, 8, 5, 5)
    one, other = quantizer(latents).indices, quantizer(latents).indices
    assert not torch.equal(one, other)
    quantizer.eval()
    out = quantizer(latents)
    assert torch.equal(out.indices, quantizer.logits(latents).argmax(1))
    assert torch.equal(out.latents, quantizer.decode(out.indices))


def test_categorical_anneals_its_temperature() -> None:
    options = CategoricalOptions(
        codebook_size=4, temperature=2.0, final_temperature=0.5, anneal=2, straight_through=False
    )
    quantizer = Categorical(options, Level(0, 4, 4))
    latents, found = torch.randn(8, 4, 4, 4), []
    for _ in range(4):
        torch.manual_seed(1)
        found.append(quantizer(latents).latents)
    # At the same noise a lower temperature is nearer to one code.
    nearness = [
        torch.cdist(each.permute(0, 2, 3, 1).flatten(0, 2), quantizer.codebook).amin(1).mean()
        for each in found
    ]
    assert nearness[0] > nearness[1] > nearness[2] == nearness[3]


def test_categorical_counts_the_divergence_from_even_probabilities() -> None:
    quantizer = Categorical(CategoricalOptions(codebook_size=8, kl_weight=2.0), Level(0, 4, 4))
    latents = torch.zeros(1, 4, 2, 2)
    with torch.no_grad():
        quantizer.logits.bias.zero_()
        assert float(quantizer(latents).loss) == pytest.approx(0, abs=1e-6)
        quantizer.logits.bias[0] = 100.0
        assert float(quantizer(latents).loss) == pytest.approx(2 * math.log(8), rel=1e-5)
