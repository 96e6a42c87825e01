"""Muon: orthogonal steps, momentum and vectors, against a library's optimizers."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from genkit_optimizers.muon import Muon, _iterated, orthogonal
from timm.optim import get_optimizer_info
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from genkit.settings import choose


@pytest.mark.parametrize("shape", [(3, 8, 20), (2, 20, 8), (1, 16, 16)])
def test_steps_are_nearly_orthogonal(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape) * torch.tensor([1e-4, 1.0, 1e3])[: shape[0], None, None]
    (result,) = orthogonal([matrices])
    assert result.shape == shape
    singular = torch.linalg.svdvals(result)
    assert ((singular > 0.6) & (singular < 1.3)).all()
    # They keep the directions: the exact nearest orthogonal matrix is U V^T.
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    alike = torch.cosine_similarity(result.flatten(1), (u @ v).flatten(1))
    assert (alike > 0.95).all()


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_long_matrices_get_the_same_step_with_the_short_cut(rank: int) -> None:
    """Also where most singular values are close to zero."""
    torch.manual_seed(0)
    matrices = torch.randn(3, 16, rank) @ torch.randn(3, rank, 100)
    matrices += 1e-6 * torch.randn(3, 16, 100)
    matrices /= matrices.norm(dim=(1, 2), keepdim=True)
    (short,), exact = orthogonal([matrices]), _iterated(matrices.double()).float()
    assert torch.allclose(short, exact, atol=1e-4)
    assert torch.linalg.svdvals(short).max() < 1.3


def test_matrices_of_several_shapes_are_moved_together() -> None:
    """Those with one smaller side share the iteration, and get the step that they get alone."""
    torch.manual_seed(0)
    stacks = [torch.randn(2, 8, 20), torch.randn(1, 40, 8), torch.randn(3, 8, 8)]
    for together, alone in zip(orthogonal(stacks), stacks, strict=True):
        assert torch.allclose(together, orthogonal([alone])[0], atol=1e-5)


@pytest.mark.parametrize("name", ["muon", "adam"])
def test_more_layers_of_a_size_take_no_more_operations(name: str) -> None:
    """Each operation costs the host some 10 microseconds, however small it is."""
    counts = []
    for layers in (2, 6):
        net = nn.Sequential(*(nn.Conv2d(8, 8, 3) for _ in range(layers)))
        net.to(memory_format=torch.channels_last)
        optimizer = choose("optimizer", name).build(net, 0.01, torch.float32)
        for _ in range(2):
            for each in net.parameters():
                each.grad = torch.randn_like(each)
            with Operations() as found:
                optimizer.step()
        counts.append(len(found.names))
    assert counts[0] == counts[1] < 60


def test_no_gradient_gives_no_step() -> None:
    assert torch.equal(orthogonal([torch.zeros(1, 3, 4)])[0], torch.zeros(1, 3, 4))


class Operations(TorchDispatchMode):
    """The names of the operations inside, except views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3), nn.Flatten())


def trained(kind: str, steps: int = 4) -> dict[str, torch.Tensor]:
    from timm.optim import create_optimizer_v2

    net, x = model(), torch.randn(5, 3, 7, 7, generator=torch.Generator().manual_seed(1))
    if kind == "ours":
        optimizer: torch.optim.Optimizer = Muon(net.parameters(), 0.01, betas=(0.9, 0.95))
    elif kind == "library":
        # Its matrix step is a fifth of ours; its step for vectors is the same.
        optimizer = create_optimizer_v2(
            net.parameters(),
            opt="nmuon",
            lr=0.05,
            weight_decay=0.0,
            fallback_lr_scale=0.2,
            ns_coefficients="original",
        )
    else:
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01, betas=(0.9, 0.95))
    for _ in range(steps):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    return dict(net.named_parameters())


@pytest.mark.skipif(
    "fallback_lr_scale" not in inspect.signature(get_optimizer_info("nmuon").opt_class).parameters,
    reason="this timm cannot scale the step of its Muon",
)
def test_weights_move_like_the_librarys_up_to_rounding() -> None:
    start, ours, library = dict(model().named_parameters()), trained("ours"), trained("library")
    for name in ("0.weight", "2.weight"):
        before = start[name]
        a, b = ours[name] - before, library[name] - before
        # The library rounds to bfloat16.
        assert torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.99, name
        assert 0.85 < a.norm() / b.norm() < 1.15, name


def test_vectors_move_by_adam() -> None:
    ours, adam = trained("ours", 1), trained("adam", 1)
    for name in ("0.bias", "1.weight", "1.bias", "2.bias"):
        assert torch.allclose(ours[name], adam[name], atol=1e-6), name


def test_weights_decay() -> None:
    weight = nn.Parameter(torch.ones(4, 5))
    weight.grad = torch.zeros(4, 5)
    Muon([weight], 0.1, betas=(0.9, 0.99), weight_decay=0.5).step()
    assert torch.allclose(weight, torch.full((4, 5), 0.95))


def test_parameters_without_a_gradient_stay() -> None:
    weight = nn.Parameter(torch.ones(4, 5))
    Muon([weight], 0.1, betas=(0.9, 0.99), weight_decay=0.5).step()
    assert torch.equal(weight, torch.ones(4, 5))


def test_channels_last_gets_the_same_step() -> None:
    steps = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(6, 4, 3, 3).to(memory_format=layout))
        weight.grad = torch.randn(6, 4, 3, 3).to(memory_format=layout)
        Muon([weight], 0.1, betas=(0.9, 0.99)).step()
        steps.append(weight.detach())
    assert torch.allclose(*steps, atol=1e-6)


def test_tables_of_codes_move_by_adam() -> None:
    moved = []
    for kind in ("muon", "adam"):
        torch.manual_seed(0)
        table = nn.Parameter(torch.randn(8, 4))
        table.by_adam = True
        table.grad = torch.randn(8, 4)
        optimizer = (
            Muon([table], 0.1, betas=(0.9, 0.99))
            if kind == "muon"
            else torch.optim.Adam([table], 0.1, betas=(0.9, 0.99))
        )
        optimizer.step()
        moved.append(table.detach())
    assert torch.allclose(*moved, atol=1e-6)


def test_a_closure_is_called_for_its_gradients_and_its_loss() -> None:
    weight = nn.Parameter(torch.ones(4, 5))

    def closure() -> float:
        loss = weight.square().sum()
        loss.backward()
        return float(loss.detach())

    assert Muon([weight], 0.1, betas=(0.9, 0.99)).step(closure) == 20
    assert not torch.equal(weight, torch.ones(4, 5))


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_embedding_tables_move_by_adam_by_default(kind: type[nn.Module]) -> None:
    moved = []
    for name in ("muon", "adam"):
        torch.manual_seed(0)
        module = nn.Sequential(kind(8, 4))
        table = module[0].weight
        table.grad = torch.randn(8, 4)
        choose("optimizer", name).build(module, 0.1, torch.float32).step()
        moved.append(table.detach())
    assert torch.allclose(*moved, atol=1e-6)
