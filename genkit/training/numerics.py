"""Settings of the whole program that decide how a run computes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from genkit.errors import OptionError
from genkit.run.options import TrainingOptions

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
# The first CUDA capability whose tensor cores take TF32.
_TF32 = (8, 0)


@contextmanager
def numerics(run: TrainingOptions) -> Iterator[None]:
    """Set the arithmetic of a run, and put the program's own back afterwards."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.deterministic, matmul.fp32_precision
    algorithms = torch.are_deterministic_algorithms_enabled()
    # All batches have one size, so a search for the fastest convolution pays. Its choice may vary.
    cudnn.benchmark, cudnn.deterministic = not run.deterministic, run.deterministic
    if run.tf32:
        matmul.fp32_precision = "tf32"
    if run.deterministic:
        # cuBLAS reads it once, before its first product.
        os.environ.setdefault(_CUBLAS, ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic, matmul.fp32_precision = before
        if run.deterministic:
            torch.use_deterministic_algorithms(algorithms)


def check_tf32(device: torch.device) -> None:
    """`OptionError` if the device has no TF32."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < _TF32:
        raise OptionError(
            f"--tf32 needs an NVIDIA GPU of compute capability 8.0 or newer, and the run is on "
            f"{device}: leave --tf32 out"
        )
