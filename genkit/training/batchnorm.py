"""Batch norms with statistics over the images of all processes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from genkit.distributed import all_sum, process, processes


def synchronise(module: nn.Module) -> None:
    """Make every batch norm in `module` normalise over the images of all processes in training.

    Outputs, running statistics, gradients and second derivatives then equal those of one process
    with all the images. Nothing changes in eval mode, with one process, or in the names of the
    state. PyTorch's SyncBatchNorm refuses CPU tensors and has no second derivative, which R1 needs.
    """
    if processes() == 1:
        return
    forward: Callable[..., Tensor] = _forward
    if "torch._dynamo" in sys.modules:
        # A compiler, where one is loaded, cannot look into collective operations.
        forward = torch.compiler.disable(_forward)
    for norm in module.modules():
        if isinstance(norm, _BatchNorm) and not isinstance(norm, nn.SyncBatchNorm):
            # Set on the instance, so a subclass keeps what its forward adds: timm's activation.
            # A partial's copy, as an average of the module has it, holds the copy of the norm.
            vars(norm)["forward"] = partial(forward, norm, norm.forward)


def _forward(norm: nn.Module, forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    if not norm.training:
        return forward(*args, **kwargs)
    with _Everywhere():
        return forward(*args, **kwargs)


class _Everywhere(TorchFunctionMode):
    """Inside it, `F.batch_norm` in training normalises over all processes."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        chosen = _batch_norm if function is F.batch_norm else function
        return chosen(*args, **(kwargs or {}))


def _batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """`F.batch_norm` of this process's inputs `[B, C, …]`, with statistics of all processes."""
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    wide = x if x.dtype == torch.float64 else x.float()
    count, mean, var = _moments(wide)
    with torch.no_grad():
        for running, now in ((running_mean, mean), (running_var, var * count / (count - 1))):
            if running is not None:
                running.mul_(1 - momentum).add_(now.to(running.dtype), alpha=momentum)
    scale = (var + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.to(scale.dtype)
    shift = -mean * scale
    if bias is not None:
        shift = shift + bias.to(shift.dtype)
    across = (1, -1, *[1] * (x.ndim - 2))
    return torch.addcmul(shift.view(across), wide, scale.view(across)).to(x.dtype)


def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The number of values in each channel, their mean and variance, over all processes.

    One exchange gathers the processes' own moments, and the formula of Chan et al. 1979 joins them
    without losing digits to a large mean.
    """
    axes = [axis for axis in range(x.ndim) if axis != 1]
    own_var, own_mean = torch.var_mean(x, axes, correction=0)
    own = torch.cat([x.new_full((1,), x.numel() // x.shape[1]), own_mean, own_var])
    place = (0, 0, process(), processes() - 1 - process())
    table = _Sum.apply(F.pad(own[None], place))
    counts, means, variances = table.split([1, x.shape[1], x.shape[1]], dim=1)
    count = counts.sum()
    shares = counts / count
    mean = (means * shares).sum(0)
    return count, mean, ((variances + (means - mean).square()) * shares).sum(0)


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return all_sum(tensor.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Sum.apply(*gradients)
