"""The networks of a task, made ready for training as a run's options ask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from genkit.distributed import processes
from genkit.errors import OptionError
from genkit.run.options import TrainingOptions
from genkit.training.compiling import compile_nets
from genkit.training.recompute import recompute


def prepare_nets(
    run: TrainingOptions,
    nets: Sequence[nn.Module],
    device: torch.device,
    called: Sequence[nn.Module] = (),
) -> None:
    """Recompute the blocks of nets and compile the nets, as the run asks.

    `called` are the modules to compile in place of the nets, if others are called in training.
    Nothing changes in the names of the state. It must happen before copies of the nets are made.
    `OptionError` if the nets do not allow both.
    """
    norms = [each for net in nets for each in net.modules() if isinstance(each, _BatchNorm)]
    if run.recompute and run.compile and norms and processes() > 1:
        # The compiler stops at their exchange, and then computes the whole block twice.
        raise OptionError(
            "--compile and --recompute together would count batch norms' statistics twice on "
            "several processes: leave one of them out, or choose another norm"
        )
    if run.recompute:
        for net in nets:
            recompute(net)
    if run.compile:
        compile_nets(called or nets, device)
