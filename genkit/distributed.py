"""The few collective operations that components need.

With one process each returns what it was given.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

# The defaults of these functions keep the group that exists at their import. Imported inside a
# group, as optimizers of timm do, they keep its threads alive after its end, and a thread that
# still runs when Python exits can abort the process.
import torch.distributed.nn.functional
from torch import Tensor

from genkit.devices import local_processes
from genkit.errors import FailedTogether, GenkitError

Made = TypeVar("Made")
# The time that processes wait for the one that lists files.
_PATIENCE = timedelta(hours=2)
# Primes above any number of rows, below 2^32.
_PRIMES = (
    *(2417999053, 4248954371, 3397708547, 2937193813, 2289099101, 2789797433, 3329505089),
    *(3587459383, 2879697281, 2262145513, 2448149833, 4020384233, 3687466943, 2843071097),
)
# The seconds after which a network disk shows a new file on all machines.
_DELAY = 5.0


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


def row_ends(rows: Tensor) -> Tensor:
    """The end of each process's rows `[N, d]` among all rows: an int64 tensor `[processes]`.

    The processes' N may differ. The result is on the rows' device, and no host waits for it.
    """
    sizes = torch.zeros(processes(), dtype=torch.int64, device=rows.device)
    sizes[process()] = len(rows)
    return all_sum(sizes).cumsum(0)


def random_rows(rows: Tensor, ends: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """`number` random rows of all processes, the same on each; `ends` is `row_ends(rows)`.

    One process with all rows would draw the same. Rows repeat only if there are fewer than
    `number`. No host waits for its GPU, because a linear congruence gives the places. Its factor is
    a prime above the number of rows, so all places are distinct.
    """
    factor = _PRIMES[int(torch.randint(len(_PRIMES), (), generator=generator))]
    start = int(torch.randint(2**31, (), generator=generator))
    places = (torch.arange(number, device=rows.device) * factor + start) % ends[-1]
    if processes() == 1:
        return rows[places]
    own = places - (ends[process()] - len(rows))
    others = (own < 0) | (own >= len(rows))
    picked = rows[own.masked_fill(others, 0)]
    return all_sum(picked.masked_fill(others[:, None], 0))


def all_gathered(value: Any) -> list[Any]:
    """The picklable `value` of every process, in their order."""
    if processes() == 1:
        return [value]
    every: list[Any] = [None] * processes()
    dist.all_gather_object(every, value)
    return every


def wait_for_all(device: torch.device) -> None:
    """Wait until every process has come here."""
    # A barrier of PyTorch would need the number of each process's GPU.
    all_sum(torch.zeros(1, device=device)).tolist()


@contextmanager
def failing_together() -> Iterator[None]:
    """Raise `FailedTogether` in every process if anything fails inside in one of them.

    Otherwise the others would wait for that process at the next exchange. The processes exchange
    nothing inside. One process alone raises the error itself.
    """
    if processes() == 1:
        yield
        return
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    every = all_gathered(f"{type(failure).__name__}: {failure}" if failure else "")
    for number, text in enumerate(every):
        if text:
            raise FailedTogether(f"process {number} of {len(every)} failed: {text}") from failure


def once_per_machine(make: Callable[[], Made]) -> Made:
    """The result of `make`, which the first process of each machine calls for all of them.

    For work on files that each process would repeat, such as listing a folder. All processes of a
    run call this together. The result is picklable; a `GenkitError` is raised in every process.
    """
    if processes() == 1:
        return make()
    places = all_gathered((local_processes(), int(os.environ.get("LOCAL_RANK", "0"))))
    starts = [number for number, (_, rank) in enumerate(places) if rank == 0]
    machines = [list(range(start, start + places[start][0])) for start in starts]
    if [(len(each), rank) for each in machines for rank in range(len(each))] != places:
        return make()  # A launcher that numbers processes in another way.
    groups: list[Any] = [
        dist.new_group(each, backend="gloo", timeout=_PATIENCE) for each in machines
    ]
    group, first = next(
        (group, each[0]) for group, each in zip(groups, machines, strict=True) if process() in each
    )
    sent: list[Any] = [None]
    if process() == first:
        try:
            sent = [make()]
        except GenkitError as error:
            sent = [error]
    dist.broadcast_object_list(sent, first, group)
    dist.destroy_process_group(group)
    if isinstance(sent[0], GenkitError):
        raise sent[0]
    made: Made = sent[0]
    return made


def is_shared(folder: Path) -> bool:
    """Whether all processes see the same folder, which is made for it."""
    if processes() == 1:
        return True
    (name, *_) = all_gathered(f".seen-by-all-{os.getpid()}-{time.time_ns()}")
    mark = folder / name
    if process() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    all_gathered(None)
    until = time.monotonic() + _DELAY
    while not mark.exists() and time.monotonic() < until:
        time.sleep(0.2)
    every = all_gathered(mark.exists())
    if process() == 0:
        mark.unlink()
    return all(every)


def is_split(tensor: Any) -> bool:
    """Whether a tensor is split among the processes, as FSDP2 splits weights and their moments."""
    # The module of the class takes seconds to import; where nothing is split, nobody has.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def own_part(tensor: Tensor) -> Tensor:
    """The part of a split tensor in this process, in the same memory; any other tensor itself."""
    part: Tensor = cast("Any", tensor).to_local() if is_split(tensor) else tensor
    return part


def whole(tensor: Tensor) -> Tensor:
    """A split tensor put together, on all processes alike; any other tensor itself."""
    full: Tensor = cast("Any", tensor).full_tensor() if is_split(tensor) else tensor
    return full


def split_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, the same on all processes, split as `other` is, if that is split."""
    if not is_split(other):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(other, DTensor)
    # Without a source, each process takes its part of its own tensor.
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)


def from_first(tensor: Tensor) -> Tensor:
    """Process 0's `tensor` on every process, in place."""
    if processes() > 1:
        dist.broadcast(tensor, 0)
    return tensor
