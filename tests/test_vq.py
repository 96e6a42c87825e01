"""The vector quantizer: gradients of each loss term, running averages, start, revival."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from genkit_avqvae import VQOptions
from genkit_avqvae.vq import VectorQuantizer

from genkit.interfaces import Level


def quantizer(channels: int = 4, **options: Any) -> VectorQuantizer:
    torch.manual_seed(0)
    return VectorQuantizer(VQOptions(**{"codebook_size": 8, **options}), Level(0, channels, 4))


def latents(seed: int = 1, batch: int = 2, channels: int = 4) -> torch.Tensor:
    return torch.randn(batch, channels, 6, 6, generator=torch.Generator().manual_seed(seed))


def test_the_commitment_weight_scales_the_encoders_term() -> None:
    """With `update` gradient the loss is w |z - sg(e)|^2 + |sg(z) - e|^2.

    So w scales only the latents' gradient.
    """
    gradients = {}
    for weight in (0.25, 1.0):
        q = quantizer(update="gradient", commitment_weight=weight, kmeans_start=False, revive=0)
        z = latents().requires_grad_()
        q(z).loss.backward()
        assert z.grad is not None
        assert q.codebook.grad is not None
        gradients[weight] = z.grad.norm(), q.codebook.grad.norm()
    assert torch.isclose(gradients[1.0][0], 4 * gradients[0.25][0])
    assert torch.isclose(gradients[1.0][1], gradients[0.25][1])


def test_the_ema_loss_is_only_the_commitment() -> None:
    q = quantizer(kmeans_start=False, commitment_weight=0.5).eval()
    z = latents()
    out = q(z)
    assert torch.isclose(out.loss, 0.5 * (z - out.latents).square().mean())


def test_gradients_pass_straight_through() -> None:
    q = quantizer().eval()
    z = latents().requires_grad_()
    weights = torch.randn_like(z)
    (q(z).latents * weights).sum().backward()
    assert z.grad is not None
    assert torch.allclose(z.grad, weights)


def test_codes_are_running_averages_of_their_latents() -> None:
    q = quantizer(kmeans_start=False, ema_decay=0.9, revive=0)
    z, codes = latents(), q.codebook.clone()
    out = q(z)
    flat, indices = z.permute(0, 2, 3, 1).flatten(0, 2), out.indices.flatten()
    start = len(flat) / 8
    for code in range(8):
        mine = flat[indices == code]
        count = 0.9 * start + 0.1 * len(mine)
        assert torch.allclose(
            q.codebook[code], (0.9 * start * codes[code] + 0.1 * mine.sum(0)) / count, atol=1e-5
        )


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_a_long_unused_code_keeps_its_position(decay: float) -> None:
    q = quantizer(kmeans_start=False, ema_decay=decay, revive=0)
    codes = q.codebook.clone()
    # All latents are near one code for so long that the others' averages would vanish.
    z = (codes[3] + 0.01)[None, :, None, None].expand(1, 4, 6, 6)
    for _ in range(200):
        q(z)
    assert torch.allclose(q.codebook[3], codes[3] + 0.01)
    others = torch.arange(8) != 3
    assert torch.equal(q.codebook[others], codes[others])
    # It follows latents again when they return.
    for _ in range(60):
        q((codes[5] + 0.01)[None, :, None, None].expand(1, 4, 6, 6))
    assert torch.allclose(q.codebook[5], codes[5] + 0.01, atol=1e-4)


def test_a_tiny_code_weight_survives_float16() -> None:
    q = quantizer(kmeans_start=False, ema_decay=0.0, revive=0).half()
    q(latents().half())
    assert q.codebook.isfinite().all()


def test_a_code_without_weight_keeps_its_position() -> None:
    """A code revived with a decay of 1 has no weight."""
    q = quantizer(kmeans_start=False, ema_decay=1.0, revive=1)
    for seed in range(4):
        q(latents(seed))
    assert q.codebook.isfinite().all()


def test_quantized_latents_have_the_layout_of_the_latents() -> None:
    q = quantizer(kmeans_start=False)
    z = latents().requires_grad_()
    plain, last = q(z), q(z.detach().to(memory_format=torch.channels_last))
    assert plain.latents.is_contiguous()
    assert last.latents.is_contiguous(memory_format=torch.channels_last)
    q.eval()
    assert torch.equal(q(z).latents, q.decode(q(z).indices))


def test_in_eval_mode_nothing_is_learned() -> None:
    q = quantizer().eval()
    before = {name: value.clone() for name, value in q.state_dict().items()}
    q(latents())
    assert all(torch.equal(value, before[name]) for name, value in q.state_dict().items())


def test_k_means_starts_the_codes_where_the_latents_are() -> None:
    """With eight tight clusters far from the origin, one forward pass puts a code in each."""
    centres = torch.eye(8) * 20 + 50
    z = (
        (centres[torch.arange(72) % 8] + 0.01 * torch.randn(72, 8))
        .view(2, 6, 6, 8)
        .permute(0, 3, 1, 2)
    )
    started, plain = quantizer(8), quantizer(8, kmeans_start=False, revive=0)
    assert len(started(z).indices.unique()) >= 7
    assert len(plain(z).indices.unique()) < 7
    assert started(z).loss < 10 < plain(z).loss


def test_the_start_happens_once() -> None:
    q = quantizer(revive=0)
    q(latents(1))
    copy = quantizer(revive=0)
    copy.load_state_dict(q.state_dict())
    before = copy.codebook.clone()
    copy(latents(2) + 100)
    # A restart would jump to the new latents; an average moves by a small step.
    assert (copy.codebook - before).abs().max() < 20


def test_dead_codes_are_moved_to_latents() -> None:
    far = latents() + 100
    revived, left = quantizer(kmeans_start=False, revive=2), quantizer(kmeans_start=False, revive=0)
    for q in (revived, left):
        for _ in range(5):
            q(far)
    assert len(revived(far).indices.unique()) == 8
    assert len(left(far).indices.unique()) < 4


def test_a_code_in_use_is_not_moved() -> None:
    q = quantizer(revive=1000)
    z = latents()
    q(z)
    before = q.codebook.clone()
    q(z)
    assert (q.codebook - before).abs().max() < 0.1


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_cosine_codes_lie_on_the_sphere_and_ignore_length(update: Any) -> None:
    q = quantizer(distance="cosine", update=update)
    q(latents())
    q.eval()
    out = q(latents())
    assert torch.allclose(out.latents.norm(dim=1), torch.ones(2, 6, 6), atol=1e-5)
    assert torch.equal(q(latents() * 7).indices, out.indices)


def test_codes_may_have_fewer_channels_than_latents() -> None:
    q = quantizer(codebook_dim=2)
    out = q(latents())
    assert q.codebook.shape == (8, 2)
    assert out.latents.shape == (2, 4, 6, 6)


def test_fewer_latents_than_codes_still_start() -> None:
    q = quantizer(codebook_size=64)
    out = q(torch.randn(1, 4, 2, 2))
    assert out.latents.isfinite().all()


def test_rotation_rotates_the_gradient_with_the_code() -> None:
    """For z = (1, 0) and e = (0, 2): the gradient at e, rotated back by 90 degrees, times 2."""
    q = quantizer(2, codebook_size=2, gradient="rotation", kmeans_start=False).eval()
    q.codebook.copy_(torch.tensor([[0.0, 2.0], [-9.0, -9.0]]))
    z = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).requires_grad_()
    out = q(z)
    assert torch.allclose(out.latents.flatten(), torch.tensor([0.0, 2.0]))
    (out.latents.flatten() * torch.tensor([3.0, 5.0])).sum().backward()
    assert z.grad is not None
    assert torch.allclose(z.grad.flatten(), 2 * torch.tensor([5.0, -3.0]), atol=1e-5)


def test_rotation_is_straight_through_for_a_latent_on_its_code() -> None:
    q = quantizer(gradient="rotation", kmeans_start=False).eval()
    z = q.codebook[:6].view(1, 6, 1, 4).permute(0, 3, 1, 2).clone().requires_grad_()
    weights = torch.randn_like(z)
    (q(z).latents * weights).sum().backward()
    assert z.grad is not None
    assert torch.allclose(z.grad, weights, atol=1e-5)


def test_one_matrix_moves_all_linear_codes() -> None:
    """With `linear` only the matrix is trained, so codes that were not selected move too."""
    q = quantizer(update="linear", kmeans_start=False, revive=0)
    assert [name for name, _ in q.named_parameters()] == ["linear"]
    basis, before = q.codebook.clone(), q.decode(torch.arange(8).view(1, 1, 8))
    optimizer = torch.optim.SGD(q.parameters(), lr=0.5)
    picked = q(latents()[:, :, :1, :1])
    picked.loss.backward()
    optimizer.step()
    after = q.decode(torch.arange(8).view(1, 1, 8))
    assert torch.equal(q.codebook, basis)
    unpicked = [code for code in range(8) if code not in picked.indices]
    assert unpicked
    assert ((after - before)[0, :, 0, unpicked].abs().amax(0) > 1e-4).all()


def test_dead_linear_codes_are_moved_to_latents() -> None:
    q = quantizer(update="linear", kmeans_start=False, revive=2)
    with torch.no_grad():
        assert q.linear is not None
        q.linear.copy_(torch.randn(4, 4))
    far = latents() + 100
    for _ in range(6):
        q(far)
    assert len(q(far).indices.unique()) == 8


def test_the_entropy_loss_matches_its_formula() -> None:
    options = {"kmeans_start": False, "commitment_weight": 0.0, "entropy_temperature": 0.3}
    q = quantizer(entropy_weight=0.5, **options).eval()
    z = latents().double()
    codes = q.codebook.double()
    width = 0.3 * codes.var(0).sum()
    flat = z.permute(0, 2, 3, 1).flatten(0, 2)
    shares = (-(torch.cdist(flat, codes) ** 2) / width).softmax(1)
    entropies = -(shares * shares.log()).sum(1)
    mean = shares.mean(0)
    expected = 0.5 * (entropies.mean() + (mean * mean.log()).sum())
    assert torch.isclose(q(z.float()).loss.double(), expected, atol=1e-5)


def test_the_entropy_loss_increases_code_usage() -> None:
    """Latents near two codes, trained by this loss alone, spread over more codes."""
    used = {}
    for weight in (0.0, 1.0):
        q = quantizer(
            2, entropy_weight=weight, entropy_temperature=0.1, kmeans_start=False, revive=0
        ).eval()
        angles = torch.arange(8) * torch.pi / 4
        q.codebook.copy_(torch.stack([angles.cos(), angles.sin()], 1))
        z = (torch.randn(2, 2, 6, 6) * 0.1 + 0.7).requires_grad_()
        optimizer = torch.optim.Adam([z], lr=0.05)
        for _ in range(200):
            optimizer.zero_grad()
            q(z).loss.backward()
            optimizer.step()
        used[weight] = len(q(z).indices.unique())
    assert used[1.0] > used[0.0]


@pytest.mark.parametrize("update", ["ema", "gradient", "linear"])
def test_every_loss_trains_with_every_update(update: Any) -> None:
    """Codes are modified in place in the forward pass, which must not break autograd."""
    q = quantizer(update=update, entropy_weight=0.1, gradient="rotation", revive=0.1)
    for seed in range(6):
        z = latents(seed).requires_grad_()
        out = q(z)
        (out.loss + out.latents.square().sum()).backward()
        assert z.grad is not None
        assert z.grad.isfinite().all()


def test_the_entropy_loss_samples_latents_and_accepts_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    q = quantizer(entropy_weight=1.0, kmeans_start=False).eval()
    whole = q(latents(batch=64)).loss
    monkeypatch.setattr("genkit_avqvae.vq._ENTROPY_TERMS", 2**12)
    assert torch.isclose(q(latents(batch=64)).loss, whole, atol=0.05)
    assert q(latents()[:0]).indices.shape == (0, 6, 6)


def test_product_takes_the_code_with_the_largest_product() -> None:
    q = quantizer(8, distance="product", kmeans_start=False).eval()
    latents = torch.randn(4, 8, 6, 6)
    with torch.no_grad():
        q.codebook.mul_(torch.rand(len(q.codebook), 1) + 0.1)
        found = q(latents).indices
    products = latents.permute(0, 2, 3, 1).double() @ q.codebook.double().T
    assert torch.equal(found, products.argmax(-1))
    nearest = quantizer(8, kmeans_start=False).eval()
    nearest.load_state_dict(q.state_dict())
    assert not torch.equal(found, nearest(latents).indices)


def test_averaged_cosine_codes_are_normalised() -> None:
    """A running average of weights leaves codes shorter than 1."""
    q = quantizer(distance="cosine", kmeans_start=False).eval()
    expected = q(latents())
    q.codebook.mul_(0.5)
    out = q(latents())
    assert torch.equal(out.indices, expected.indices)
    assert torch.allclose(out.latents, expected.latents, atol=1e-6)
