"""The arithmetic that a run sets for the whole program, and the precision of its networks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, rows, same, tiny_run, weights
from genkit_avqvae.blocks import act
from genkit_discriminators import PatchGANOptions, StyleGANOptions
from genkit_discriminators.patchgan import PatchGAN
from genkit_discriminators.stylegan import StyleGAN
from genkit_vqgan.blocks import Attention, Block
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from genkit.errors import OptionError
from genkit.ops import GroupNorm
from genkit.run.options import TrainingOptions, layered, resolve_run
from genkit.training.numerics import check_tf32, numerics

# Operations that PyTorch lists as without a deterministic form on a GPU, as dispatched.
UNDETERMINED = ("_adaptive_avg_pool2d_backward", "grid_sampler", "reflection_pad", "max_unpool")


def run(**settings: Any) -> TrainingOptions:
    return resolve_run(layered(None, TINY, settings))


def state() -> list[Any]:
    cudnn = torch.backends.cudnn
    return [
        cudnn.benchmark,
        cudnn.deterministic,
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cuda.matmul.fp32_precision,
    ]


def test_deterministic_algorithms_are_set_and_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = state()
    with numerics(run(deterministic=True)):
        assert state()[:3] == [False, True, True]
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert state() == before
    with numerics(run()):
        assert state()[:3] == [True, False, False]
    assert state() == before


def test_tf32_is_set_and_put_back() -> None:
    before = state()
    with numerics(run(tf32=True)):
        assert state()[3] == "tf32"
    assert state() == before


@pytest.mark.parametrize(
    ("device", "capability", "fits"),
    [("cpu", (8, 0), False), ("cuda:0", (7, 5), False), ("cuda:0", (8, 6), True)],
)
def test_tf32_needs_a_gpu_that_has_it(
    device: str, capability: tuple[int, int], fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    if fits:
        check_tf32(torch.device(device))
        return
    with pytest.raises(OptionError, match=f"capability 8.0.*{device}: leave --tf32 out"):
        check_tf32(torch.device(device))


def test_a_cpu_refuses_tf32_before_it_trains(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--tf32 needs an NVIDIA GPU"):
        tiny_run(tmp_path / "run", {"tf32": True, "device": "cpu"})
    assert not (tmp_path / "run").exists()


class Operations(TorchDispatchMode):
    """The names of all operations inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("size", [32, 24, 10])
def test_stylegan_has_only_operations_with_a_deterministic_form(size: int) -> None:
    """Its replicated borders have one in `F.pad`, which PyTorch chooses by itself."""
    images = torch.randn(2, 3, size, size)
    with Operations() as found:
        StyleGAN(StyleGANOptions(width=(4, 4)), 3)(images).sum().backward()
    assert "convolution_backward" in found.names
    assert not [name for name in found.names if name.startswith(UNDETERMINED)]


@pytest.mark.slow
def test_deterministic_runs_train_on_a_cpu_as_others(tmp_path: Path) -> None:
    settings = {
        "discriminator": {"name": "stylegan", "width": [4, 4]},
        **{"discriminator_head_start": 0, "steps": 2},
    }
    tiny_run(tmp_path / "plain", settings)
    tiny_run(tmp_path / "run", settings, {"deterministic": True})
    assert same(weights(tmp_path / "run"), weights(tmp_path / "plain"))


class AsOnCUDA(TorchFunctionMode):
    """Autocast sends norms to float32, as CUDA's does and a CPU's does not."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is F.group_norm and torch.is_autocast_enabled("cpu"):
            args = [each.float() if isinstance(each, Tensor) else each for each in args]
        return function(*args, **(kwargs or {}))


def dtypes(net: nn.Module, kinds: tuple[type, ...]) -> list[torch.dtype]:
    """The dtypes of the outputs of modules of these kinds in a pass in bfloat16."""
    found: list[torch.dtype] = []
    for module in net.modules():
        if isinstance(module, kinds):
            module.register_forward_hook(lambda *args: found.append(args[2].dtype))
    images = torch.randn(2, 8, 16, 16)
    with AsOnCUDA(), torch.autocast("cpu", torch.bfloat16):
        net(F.conv2d(images, torch.randn(8, 8, 1, 1)))
    return found


ACTIVE = (nn.SiLU, nn.LeakyReLU, nn.GroupNorm)


@pytest.mark.parametrize(
    "net",
    [
        Block(8, 8),
        nn.Sequential(Attention(8)),
        act(8, "group"),
        PatchGAN(PatchGANOptions(width=(8, 8), strides=(1, 1, 1)), 8),
    ],
    ids=["block", "attention", "aren", "patchgan"],
)
def test_norms_and_activations_stay_in_bfloat16_under_cudas_autocast(net: nn.Module) -> None:
    found = dtypes(net, ACTIVE)
    assert found
    assert {*found} == {torch.bfloat16}


def test_plain_group_norms_would_not() -> None:
    plain = nn.Sequential(nn.GroupNorm(2, 8), nn.SiLU())
    assert dtypes(plain, ACTIVE) == [torch.float32, torch.float32]


@pytest.mark.parametrize("affine", [True, False])
def test_group_norm_is_pytorchs(affine: bool) -> None:
    torch.manual_seed(0)
    ours, theirs = GroupNorm(2, 8, 1e-6, affine), nn.GroupNorm(2, 8, 1e-6, affine)
    assert [*ours.state_dict()] == [*theirs.state_dict()]
    x = torch.randn(3, 8, 5, 5)
    assert torch.equal(ours(x), theirs(x))
    half = ours(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), theirs(x), rtol=0.02, atol=0.02)


def test_validation_is_in_float32_with_and_without_an_average(tmp_path: Path) -> None:
    """After one step the average is the model itself."""
    found = []
    for ema in (0.0, 0.9):
        out = tmp_path / str(ema)
        tiny_run(out, {"steps": 1, "mixed_precision": "bf16", "ema": ema})
        found.append(rows(out)[-1]["validation"])
    assert found[0] == found[1]
