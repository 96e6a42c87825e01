"""The zoo: equal to the library, except where the library is wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from conftest import invoke, tiny_run
from genkit_zoo.lookup import ExactCodebook
from torch.multiprocessing.spawn import spawn
from torch.nn import functional as F
from vector_quantize_pytorch import FSQ, LFQ, ResidualVQ, SimVQ, VectorQuantize
from vector_quantize_pytorch.vector_quantize_pytorch import sample_vectors

import genkit
from genkit import Level
from genkit.errors import OptionError, PluginError
from genkit.plugin.registry import registry
from genkit.settings import choose, specs
from genkit.testing.tools import met
from genkit.tokens.dataset import load_tokens, save_tokens
from genkit.tokens.encode import encode

LEVEL = Level(0, 8, 4)
NAMES = [
    component.name
    for plugin in registry().plugins
    if plugin.name == "zoo"
    for component in plugin.components
]


def build(name: str, level: Level = LEVEL, **options: Any) -> Any:
    torch.manual_seed(0)
    return choose("quantizer", {"name": name, **options}).build(level)


def latents(number: int = 0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return (torch.randn(3, 8, 4, 6, generator=generator) * scale).requires_grad_()


@pytest.mark.parametrize("revive", [0.0, 2.0])
@pytest.mark.parametrize("shared", [False, True])
def test_residual_vq_trains_like_the_library(shared: bool, revive: float) -> None:
    options = {"codebook_size": 16, "codebooks": 3, "shared": shared, "revive": revive}
    ours = build("residual-vq", kmeans_start=False, ema_decay=0.9, **options)
    torch.manual_seed(0)
    theirs = ResidualVQ(
        dim=8,
        codebook_size=16,
        num_quantizers=3,
        shared_codebook=shared,
        decay=0.9,
        commitment_weight=0.25,
        threshold_ema_dead_code=revive,
        rotation_trick=True,
    )
    _trains_alike(ours, theirs)


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_multi_head_vq_trains_like_the_library(update: str) -> None:
    ours = build("multi-head-vq", codebook_size=16, codebook_dim=4, update=update)
    torch.manual_seed(0)
    theirs = VectorQuantize(
        8,
        16,
        codebook_dim=4,
        heads=2,
        separate_codebook_per_head=True,
        decay=0.99,
        commitment_weight=0.25,
        threshold_ema_dead_code=1.0,
        rotation_trick=True,
        ema_update=update == "ema",
        learnable_codebook=update == "gradient",
    )
    _trains_alike(ours, theirs)


def _drawn(_: Any, latents: torch.Tensor, ends: torch.Tensor, number: int) -> torch.Tensor:
    drawn: torch.Tensor = sample_vectors(latents, number)
    return drawn


@patch.object(ExactCodebook, "_drawn", _drawn)
def _trains_alike(ours: Any, theirs: Any) -> None:
    """Revived codes are drawn as in the library here; our own drawing is tested elsewhere."""
    theirs.load_state_dict(ours.inner.state_dict())
    for step in range(6):
        mine, other = latents(step, 1 + step), latents(step, 1 + step)
        torch.manual_seed(step)
        out = ours(mine)
        torch.manual_seed(step)
        expected, indices, loss = theirs(other.flatten(2).transpose(1, 2))
        assert torch.equal(out.indices.flatten(1, 2), indices)
        assert torch.allclose(out.latents.flatten(2).transpose(1, 2), expected, atol=1e-5)
        assert torch.allclose(out.loss, loss.sum(), rtol=1e-5)
        (out.latents.square().sum() + out.loss).backward()
        (expected.square().sum() + loss.sum()).backward()
        assert torch.allclose(mine.grad, other.grad, atol=1e-4, rtol=1e-4)
    for (name, mine), other in zip(
        ours.inner.state_dict().items(), theirs.state_dict().values(), strict=True
    ):
        assert torch.allclose(mine.float(), other.float(), atol=1e-4, rtol=1e-4), name


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("bits", [1, 4, 7])
def test_the_entropies_of_signs_match_the_library(bits: int, spherical: bool) -> None:
    """Values and gradients; theirs clamps logarithms, hence the tolerance."""
    options = {"bits": bits, "codebooks": 2, "temperature": 0.5, "diversity": 0.7}
    ours = build("bsq" if spherical else "lfq", **options, entropy_weight=0.1)
    theirs = LFQ(
        dim=8,
        codebook_size=2**bits,
        num_codebooks=2,
        entropy_loss_weight=0.1,
        commitment_loss_weight=0.25,
        diversity_gamma=0.7,
        spherical=spherical,
    )
    theirs.load_state_dict(ours.inner.state_dict())
    mine, other = latents(), latents()
    out = ours(mine)
    expected, indices, loss = theirs(other, inv_temperature=2.0 / (bits**0.5 if spherical else 1))
    if not spherical:
        assert torch.allclose(out.loss, loss, atol=1e-4)
    assert torch.equal(out.indices, indices.long())
    scale = bits**-0.5 if spherical else 1.0
    assert torch.allclose(out.latents, expected, atol=1e-5), scale
    grad = torch.autograd.grad(out.loss, mine)[0]
    if not spherical:
        assert torch.allclose(grad, torch.autograd.grad(loss, other)[0], atol=1e-4)
    # The definition, with the full table of assignments.
    entered = ours.inner.project_in(mine.flatten(2).transpose(1, 2)).reshape(-1, 2, bits)
    if spherical:
        entered = F.normalize(entered, dim=-1)
    signs = ((torch.arange(2**bits)[:, None] & ours.inner.mask) != 0).float() * 2 - 1
    table = (2 * entered @ (signs * scale).T / 0.5).softmax(-1)
    single = -(table * table.clamp(min=1e-9).log()).sum(-1).mean()
    mean = table.mean(0)
    batch = -(mean * mean.log()).sum(-1).mean()
    whole = 0.1 * (single - 0.7 * batch)
    commitment = 0.25 * (entered - entered.sign() * scale).square().mean()
    assert torch.allclose(out.loss, whole + commitment, atol=1e-4)


def test_the_entropy_loss_of_many_signs_is_exact() -> None:
    """Compares loss and gradient at 2^16 codes with those from the full table of assignments."""
    quantizer = build("lfq", Level(0, 16, 4), bits=16, diversity=1.0, commitment_weight=0.0)
    generator = torch.Generator().manual_seed(0)
    mine = (torch.randn(2, 16, 2, 4, generator=generator) * 0.02).requires_grad_()
    other = mine.detach().clone().requires_grad_()
    loss = quantizer(mine).loss
    entered = other.flatten(2).transpose(1, 2).flatten(0, 1)
    signs = ((torch.arange(2**16)[:, None] & quantizer.inner.mask) != 0).float() * 2 - 1
    logs = (2 * entered @ signs.T / 0.01).double().log_softmax(-1)
    mean = logs.exp().mean(0).clamp(min=1e-300)
    single = -(logs.exp() * logs).sum(-1).mean()
    whole = 0.1 * (single + (mean * mean.log()).sum()).float()
    assert torch.allclose(loss, whole, atol=1e-4)
    one, two = torch.autograd.grad(loss, mine)[0], torch.autograd.grad(whole, other)[0]
    assert torch.allclose(one, two, atol=1e-4 * float(two.abs().max()) + 1e-6)


def test_a_start_from_few_latents_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    build("residual-vq", codebook_size=100)(latents())
    out, err = capfd.readouterr()
    assert out + err == ""


def test_two_to_the_twenty_signs_fit_in_memory() -> None:
    """A table of latents by codes would take 3 GB."""
    quantizer = build("lfq", Level(0, 20, 4), bits=20)
    images = torch.randn(8, 20, 10, 10, requires_grad=True)
    out = quantizer(images)
    (out.latents.sum() + out.loss).backward()
    assert out.indices.max() >= 2**19
    assert images.grad is not None
    assert images.grad.isfinite().all()


def _mean_entropy(rank: int, folder: str) -> None:
    with met(rank, folder, 2):
        quantizer, mine = build("lfq", bits=3), latents(rank)
        out = quantizer(mine)
        out.loss.backward()
        torch.save((out.loss, mine.grad), Path(folder) / f"{rank}.pt")


@pytest.mark.slow
def test_the_mean_entropy_includes_all_processes(tmp_path: Path) -> None:
    """Two processes with half the batch each give the same loss and gradients as one."""
    spawn(_mean_entropy, (str(tmp_path),), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    both = torch.cat([latents(0), latents(1)]).detach().requires_grad_()
    whole = build("lfq", bits=3)(both)
    whole.loss.backward()
    assert torch.allclose(sum(loss for loss, _ in parts) / 2, whole.loss, atol=1e-6)
    # Training averages the gradients of processes.
    assert torch.allclose(torch.cat([grad for _, grad in parts]) / 2, both.grad, atol=1e-6)


@pytest.mark.parametrize("name", ["residual-vq", "grouped-residual-vq"])
def test_a_shared_codebook_is_revived_from_all_images(name: str) -> None:
    quantizer = build(name, codebook_size=512, shared=True, ema_decay=0.5, revive=2.0)
    for step in range(4):
        each = latents(step)
        quantizer(each)
    codebooks = {
        id(module.embed): module
        for module in quantizer.modules()
        if isinstance(module, ExactCodebook)
    }
    parts = each.detach().permute(0, 2, 3, 1).flatten(1, 2).chunk(len(codebooks), dim=2)
    for codebook, part in zip(codebooks.values(), parts, strict=True):
        # Most codes are unused; some of them were moved to latents of each image.
        for image in part:
            assert (image[:, None] == codebook.embed[0]).all(2).any()
        assert not codebook.embed_avg.requires_grad


@pytest.mark.parametrize("name", ["residual-vq", "grouped-residual-vq"])
def test_eval_mode_does_not_start_the_codes(name: str) -> None:
    quantizer = build(name, codebook_size=16).eval()
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    quantizer(latents())
    after = quantizer.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not any(bool(value) for key, value in after.items() if key.endswith("initted"))
    assert len(quantizer(latents()).indices.unique()) > 4


def test_indices_decode_to_learned_values() -> None:
    quantizer = build("latent", values=[4, 3])
    with torch.no_grad():
        for values in quantizer.inner.values_per_latent:
            values.add_(torch.randn_like(values))
    quantizer.eval()
    out = quantizer(latents())
    assert torch.equal(quantizer.decode(out.indices), out.latents)
    nearest = quantizer.inner.project_in(latents().flatten(2).transpose(1, 2))
    entered = quantizer.inner.project_out(
        torch.stack(
            [
                values[(nearest[..., i, None] - values).abs().argmin(-1)]
                for i, values in enumerate(quantizer.inner.values_per_latent)
            ],
            dim=-1,
        )
    )
    assert torch.allclose(out.latents.flatten(2).transpose(1, 2), entered, atol=1e-6)


def test_the_share_of_noisy_values_is_the_configured_one() -> None:
    """The library always uses half, whatever the option."""
    quantizer = build("zoo-fsq", Level(0, 2, 4), values=[9, 9], noise=0.1)
    plain = build("zoo-fsq", Level(0, 2, 4), values=[9, 9])
    images = torch.randn(4, 2, 32, 32)
    noisy = quantizer(images).latents != plain(images).latents
    assert 0.08 < noisy.float().mean() < 0.12


def test_scalars_and_simvq_match_the_library() -> None:
    ours = build("zoo-fsq", values=[5, 4, 3])
    fsq = FSQ([5, 4, 3], dim=8, preserve_symmetry=True)
    fsq.load_state_dict(ours.inner.state_dict())
    expected, indices = fsq(latents())
    out = ours(latents())
    assert torch.equal(out.indices, indices.long())
    assert torch.allclose(out.latents, expected, atol=1e-6)
    sim = build("simvq", codebook_size=16)
    theirs = SimVQ(8, 16, channel_first=True, input_to_quantize_commit_loss_weight=0.25)
    theirs.load_state_dict(sim.inner.state_dict())
    expected, indices, loss = theirs(latents())
    out = sim(latents())
    assert torch.equal(out.indices, indices)
    assert torch.allclose(out.latents, expected, atol=1e-5)
    assert torch.allclose(out.loss, loss)


OTHER = {"gradient": "straight-through", "update": "gradient", "values": [4, 3], "revive": 0.0}
NEEDS: dict[tuple[str, str], dict[str, Any]] = {
    ("zoo-fsq", "rotate"): {"values": [4, 4]},
    ("zoo-fsq", "noise"): {"noise": 0.2},
    ("multi-head-vq", "ema_decay"): {"ema_decay": 0.5},
    ("multi-head-vq", "orthogonal_weight"): {"update": "gradient"},
    ("residual-vq", "revive"): {"codebook_size": 64, "ema_decay": 0.5, "revive": 2.0},
    ("grouped-residual-vq", "revive"): {"codebook_size": 64, "ema_decay": 0.5, "revive": 2.0},
}


def _trace(name: str, options: dict[str, Any]) -> list[torch.Tensor]:
    """The outputs and gradients of a few training steps, and the final state."""
    quantizer, found = build(name, **options), []
    sgd = torch.optim.SGD(quantizer.parameters(), 0.1) if list(quantizer.parameters()) else None
    for step in range(4):
        torch.manual_seed(step)
        each = latents(step, 1.0 + 3 * step)
        out = quantizer(each)
        (out.latents.square().mean() + out.loss).backward()
        if sgd:
            sgd.step()
            sgd.zero_grad()
        found += [out.latents.detach(), out.loss.detach(), each.grad]
    return [*found, *quantizer.state_dict().values()]


@pytest.mark.parametrize(
    ("name", "option"),
    [
        (name, spec.path[0])
        for name in NAMES
        for spec in specs(registry().component("quantizer", name).config, {})
    ],
)
def test_every_option_changes_something(name: str, option: str) -> None:
    small = {"codebook_size": 8} if "vq" in name else {}
    base = {**small, **NEEDS.get((name, option), {})}
    spec = next(
        spec
        for spec in specs(registry().component("quantizer", name).config, base)
        if spec.path[0] == option
    )
    if option in OTHER:
        other = OTHER[option]
    elif spec.type is bool:
        other = not spec.value
    else:
        other = spec.value / 2 if isinstance(spec.value, float) else spec.value // 2
        other = other or spec.type(2)
    one, two = _trace(name, base), _trace(name, {**base, option: other})
    same = len(one) == len(two) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(one, two, strict=True)
    )
    assert not same


@pytest.mark.parametrize("name", NAMES)
def test_a_quantizer_of_the_zoo_trains_in_bf16(name: str, tmp_path: Path) -> None:
    sized = {"codebook_size": 16} if "vq" in name else {}
    settings = {"quantizer": {"name": name, **sized}, "mixed_precision": "bf16", "steps": 4}
    rows = tiny_run(tmp_path / "run", settings).rows
    assert rows[-1]["step"] == 4
    assert 5 < rows[-1]["validation"]["psnr"] < 40
    # The search runs in float32, so the saved model finds the same codes without autocast.
    tokenizer = genkit.load(tmp_path / "run")
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    out = tokenizer(images)
    assert torch.allclose(tokenizer.decode(out.indices), out.images, atol=1e-5)


def test_indices_of_several_codebooks_work_everywhere(tmp_path: Path) -> None:
    """Through training, inspect, evaluate and token files, with errors for wrong indices."""
    quantizer = {"name": "residual-vq", "codebook_size": 16, "codebooks": 3}
    tiny_run(tmp_path / "run", {"quantizer": quantizer})
    assert "3 x 16 codes" in invoke("inspect", tmp_path / "run")[1]
    code, text = invoke("evaluate", tmp_path / "run", "--images", "8")
    assert code == 0
    assert "of 3 x 16 codes in use" in text
    tokenizer = genkit.load(tmp_path / "run")
    assert tokenizer.codebooks == [(3, 16), (3, 16)]
    assert tokenizer.bits_per_pixel == pytest.approx(3 * 4 * (1 / 16 + 1 / 64))
    faces = choose("dataset", "faces").build((32, 32), 0).split("heldout")
    tokens = encode(tokenizer, faces, batch_size=64)
    assert tokens.levels[0].shape[1:] == (8, 8, 3)
    save_tokens(tokens, tmp_path / "tokens.safetensors")
    again = load_tokens(tmp_path / "tokens.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(tokens.levels, again.levels, strict=True))
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    with pytest.raises(genkit.GenkitError, match=r"must be integers \[B, h, w, 3\], not"):
        tokenizer.decode([each[..., 0] for each in tokenizer.encode(images)])
    with pytest.raises(genkit.GenkitError, match="must lie between 0 and 15"):
        tokenizer.decode([each + 16 for each in tokenizer.encode(images)])


def test_a_missing_library_is_an_error_with_advice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in [name for name in sys.modules if name.startswith("genkit_zoo.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    with pytest.raises(PluginError, match=r"pip install 'genkit-vq\[zoo\]'"):
        build("lfq")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("grouped-residual-vq", {"groups": 3}, "8 channels cannot be split into 3 groups"),
        ("zoo-fsq", {"symmetric": False, "noise": 0.5}, "need symmetric values"),
        ("zoo-fsq", {"rotate": True}, "the same number of values in every dimension"),
        ("latent", {"values": [1000] * 4}, "do not fit a 31-bit index"),
        ("multi-head-vq", {"orthogonal_weight": 1.0}, "needs update=gradient"),
    ],
)
def test_invalid_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        build(name, **options)
