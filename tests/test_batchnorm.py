"""Batch norms synchronised over processes: what they compute, leave behind and pass back."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from genkit.testing.tools import met
from genkit.training.batchnorm import synchronise

SIZES = (3, 5)


def plain() -> nn.Module:
    return nn.BatchNorm2d(4)


def cumulative() -> nn.Module:
    return nn.BatchNorm2d(4, momentum=None)


def bare() -> nn.Module:
    return nn.BatchNorm2d(4, affine=False, track_running_stats=False)


def activated() -> nn.Module:
    from timm.layers import BatchNormAct2d

    return BatchNormAct2d(4, act_layer=nn.SiLU)


def flat() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4 * 9))


MADE: dict[str, Callable[[], nn.Module]] = {
    each.__name__: each for each in (plain, cumulative, bare, activated, flat)
}


def outcome(name: str, dtype: torch.dtype, first: int, last: int) -> dict[str, Tensor]:
    """Outputs, gradients and statistics after three passes over images `first` to `last` of eight.

    Gradients belong to a sum over images and include a gradient penalty.
    """
    torch.manual_seed(0)
    module = MADE[name]()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    module.to(dtype)
    synchronise(module)
    found: dict[str, Tensor] = {}
    for step in range(3):
        everything = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(step)) * 2 + 5
        x = everything.to(dtype, memory_format=torch.channels_last)[first:last].requires_grad_()
        out = module(x)
        assert out.is_contiguous(memory_format=torch.channels_last) or out.ndim == 2
        # Squares alone would give no gradient, since the norm fixes their sum.
        verdicts = out.pow(3).sum()
        (slope,) = torch.autograd.grad(verdicts, x, create_graph=True)
        (verdicts + slope.square().sum()).backward()
        assert x.grad is not None
        found |= {f"out{step}": out.detach(), f"slope{step}": slope.detach(), f"x{step}": x.grad}
    found |= {f"summed {key}": value.grad for key, value in module.named_parameters()}
    found |= {f"state {key}": value for key, value in module.state_dict().items()}
    return {key: value.contiguous() for key, value in found.items()}


def one(rank: int, folder: str, work: str) -> None:
    with met(rank, folder, len(SIZES)):
        torch.save(globals()[work](rank), Path(folder) / f"{rank}.pt")


def together(folder: Path, work: Callable[[int], Any]) -> list[Any]:
    """The return value of each process."""
    spawn(one, (str(folder), work.__name__), nprocs=len(SIZES))
    return [torch.load(folder / f"{rank}.pt") for rank in range(len(SIZES))]


def everything(rank: int) -> dict[str, dict[str, Tensor]]:
    first = sum(SIZES[:rank])
    found = {
        f"{name} {dtype}": outcome(name, dtype, first, first + SIZES[rank])
        for name in MADE
        for dtype in (torch.float32, torch.float64)
    }
    return {**found, "quiet": {"same": torch.tensor(quiet(rank))}}


def quiet(rank: int) -> bool:
    """Whether norms in eval mode start no collective: only the first process calls one."""
    frozen = {name: made().eval() for name, made in MADE.items()}
    if rank == 0:
        for module in frozen.values():
            before = deepcopy(module)
            synchronise(module)
            x = torch.randn(1, 4, 3, 3)
            if not (torch.equal(module(x), before(x)) and _same(module, before)):
                return False
    return True


def _same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.slow
def test_processes_compute_what_one_with_all_images_does(tmp_path: Path) -> None:
    """Unequal shares, two orders of derivatives, statistics; no collective in eval mode."""
    parts = together(tmp_path, everything)
    assert all(part.pop("quiet")["same"] for part in parts)
    for case in parts[0]:
        name, kind = case.split()
        dtype = torch.float64 if kind.endswith("64") else torch.float32
        whole = outcome(name, dtype, 0, 8)
        assert whole.keys() == parts[0][case].keys()
        for key, value in whole.items():
            found = [part[case][key] for part in parts]
            if key.startswith("state"):
                assert torch.equal(*found), (case, key)
                joined = found[0]
            else:
                joined = sum(found) if key.startswith("summed") else torch.cat(found)
            loose = 1e-12 if dtype == torch.float64 else 1e-4
            torch.testing.assert_close(
                joined, value, rtol=loose, atol=loose * float(value.abs().max())
            )


def test_one_process_and_a_copy_are_unchanged() -> None:
    torch.manual_seed(0)
    before = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    after = deepcopy(before)
    synchronise(after)
    copy = deepcopy(after)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(before(x), after(x))
    assert _same(before, after)
    # The copy has its own statistics.
    assert not _same(copy, after)
    copy(x)
    assert _same(copy, after)


def mixed(rank: int) -> Tensor:
    """Outputs of half of the images under autocast."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    synchronise(module)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(torch.randn(4, 3, 6, 6)[2 * rank :][:2])
    assert isinstance(out, Tensor)
    assert out.dtype == torch.bfloat16
    return out.detach()


@pytest.mark.slow
def test_bf16_gives_the_same_up_to_rounding(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    with torch.autocast("cpu", torch.bfloat16):
        whole = module(torch.randn(4, 3, 6, 6))
    torch.testing.assert_close(torch.cat(together(tmp_path, mixed)), whole, rtol=1e-2, atol=1e-2)
