"""The few collective operations that components need.

With one process each returns what it was given.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

# The defaults of these functions keep the group that exists at their import. Imported inside a
# group, as optimizers of timm do, they keep its threads alive after its end, and a thread that
# still runs when Python exits can abort the process.
import torch.distributed.nn.functional
from torch import Tensor


def processes() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process() -> int:
    """The number of this process among them, from 0."""
    return dist.get_rank() if processes() > 1 else 0


def all_sum(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all processes, in place."""
    if processes() > 1:
        shared = _reachable(tensor)
        dist.all_reduce(shared)
        if shared is not tensor:
            tensor.copy_(shared)
    return tensor


def _reachable(tensor: Tensor) -> Tensor:
    """The tensor on a device that the processes can exchange.

    With GPUs they do not exchange what is on the CPU, where the sums of a process without a batch
    may still be.
    """
    accelerator = torch.accelerator.current_accelerator()
    if accelerator and tensor.device.type == "cpu" and dist.get_backend() != "gloo":
        return tensor.to(accelerator)
    return tensor


def all_min(tensor: Tensor) -> Tensor:
    """The smallest of all processes' values in each place of `tensor`, in place."""
    if processes() > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MIN)
    return tensor


def sum_numbers(numbers: list[float], device: torch.device) -> list[float]:
    """The sums of numbers over all processes, in double precision."""
    if processes() == 1:
        return numbers
    return all_sum(torch.tensor(numbers, dtype=torch.float64, device=device)).tolist()


def gather_rows(rows: Tensor) -> Tensor:
    """The rows `[N, d]` of all processes, in their order; the processes' N may differ."""
    if processes() == 1:
        return rows
    rows = _reachable(rows)
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(processes())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    longest = int(torch.stack(counts).max())
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in range(processes())]
    dist.all_gather(gathered, padded)
    return torch.cat([part[: int(count)] for part, count in zip(gathered, counts, strict=True)])


def from_first(tensor: Tensor) -> Tensor:
    """Process 0's `tensor` on every process, in place."""
    if processes() > 1:
        dist.broadcast(tensor, 0)
    return tensor
