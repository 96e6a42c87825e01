"""Imported tokenizers beside the classes of the libraries that they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import genkit
from genkit.importing import import_model, recognise

pytestmark = pytest.mark.slow

SIZES: dict[str, Any] = {
    "embed_dim": 8,
    "num_embeddings": 64,
    "latent_channels": 16,
    "base_channels": 32,
    "num_res_blocks": 1,
}


def randomised(model: Any) -> Any:
    """The model in eval mode, with weights as large as trained ones."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=max(0.05, parameter[0].numel() ** -0.5))
    return model.eval()


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max())


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def test_janus(images: torch.Tensor, tmp_path: Path) -> None:
    from transformers import JanusVQVAEConfig
    from transformers.models.janus.modeling_janus import JanusVQVAE

    config = JanusVQVAEConfig(**SIZES, channel_multiplier=[1, 2, 2], num_patches=8)
    model = randomised(JanusVQVAE(config))
    # transformers brings codes to length 1 when it decodes them, but not when it compares them.
    model.quantize.embedding.weight.copy_(F.normalize(model.quantize.embedding.weight))
    model.save_pretrained(tmp_path / "in")
    assert recognise(tmp_path / "in").family == "janus"
    tokenizer = genkit.load(import_model(tmp_path / "in", tmp_path / "out"))
    expected = model.encode(images)
    indices = tokenizer.encode(images)
    assert torch.equal(indices[0].flatten(), expected.image_tokens.flatten())
    quantizer: Any = tokenizer.quantizers[0]
    latents = [quantizer.decode(indices[0])]
    assert close(tokenizer.decoder(latents), model.decode(indices[0].flatten(1)))


@torch.no_grad()
@pytest.mark.parametrize("whole", [False, True])
def test_chameleon(whole: bool, images: torch.Tensor, tmp_path: Path) -> None:
    from transformers import ChameleonConfig, ChameleonModel, ChameleonVQVAEConfig
    from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

    config = ChameleonVQVAEConfig(**SIZES, channel_multiplier=[1, 1, 2], resolution=32)
    if whole:
        words = {"<image>": 4, **{f"IMGIMG{chr(65 + n)}Z": 5 + n for n in range(4)}}
        language = ChameleonModel(
            ChameleonConfig(
                vq_config=config.to_dict(),
                vocab_size=32,
                hidden_size=32,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                vocabulary_map=words,
            )
        )
        model = randomised(language.vqmodel)
        language.save_pretrained(tmp_path / "in", max_shard_size="300KB")
        assert (tmp_path / "in" / "model.safetensors.index.json").exists()
    else:
        model = randomised(ChameleonVQVAE(config))
        model.save_pretrained(tmp_path / "in")
    found = recognise(tmp_path / "in")
    assert (found.family, found.can_decode) == ("chameleon", False)
    tokenizer = genkit.load(import_model(tmp_path / "in", tmp_path / "out"))
    expected = model.encode(images)
    assert torch.equal(tokenizer.encode(images)[0].flatten(), expected.image_tokens.flatten())
    quantizer: Any = tokenizer.quantizers[0]
    between = quantizer.enter(tokenizer.encoder(images)[0])
    assert close(between, model.quant_conv(model.encoder(images)))


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {"block_out_channels": [16, 32, 32], "layers_per_block": 2, "vq_embed_dim": 4},
        {"block_out_channels": [32, 32], "mid_block_add_attention": False},
    ],
    ids=str,
)
def test_diffusers(options: dict[str, Any], images: torch.Tensor, tmp_path: Path) -> None:
    from diffusers import VQModel

    levels = len(options["block_out_channels"])
    model = randomised(
        VQModel(
            down_block_types=["DownEncoderBlock2D"] * levels,
            up_block_types=["UpDecoderBlock2D"] * levels,
            latent_channels=8,
            num_vq_embeddings=64,
            norm_num_groups=8,
            **options,
        )
    )
    model.save_pretrained(tmp_path / "in")
    tokenizer = genkit.load(import_model(tmp_path / "in", tmp_path / "out"))
    latents = model.encode(images).latents
    indices = model.quantize(latents)[2][2]
    found = tokenizer.encode(images)
    assert torch.equal(found[0].flatten(), indices.flatten())
    expected = model.decode(latents).sample
    quantizer: Any = tokenizer.quantizers[0]
    codes = [quantizer.decode(found[0])]
    assert close(tokenizer.decoder(codes), expected)
