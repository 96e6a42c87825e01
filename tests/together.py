"""Several processes, forked from the test's own, that meet as a launcher's would."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from queue import Empty
from typing import Any


def together(work: Callable[[int], Any], count: int, machines: int = 1, **variables: str) -> Any:
    """The result of `work(rank)` in each of `count` processes on so many pretended machines."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    context = multiprocessing.get_context("fork")
    answers: Any = context.Queue()

    def run(rank: int) -> None:
        here = count // machines
        ranks = {"RANK": rank, "LOCAL_RANK": rank % here, "LOCAL_WORLD_SIZE": here}
        os.environ |= {name: str(value) for name, value in ranks.items()}
        os.environ |= {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        # Accelerate would choose the number of threads itself, and warn of it.
        os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", **variables}
        try:
            answers.put((rank, True, work(rank)))
        except BaseException:  # An assertion too is the parent's to report.
            answers.put((rank, False, traceback.format_exc()))

    children = [context.Process(target=run, args=(rank,), daemon=True) for rank in range(count)]
    for child in children:
        child.start()
    found = {}
    try:
        for _ in children:
            rank, fine, answer = answers.get(timeout=120)
            assert fine, answer
            found[rank] = answer
    except Empty:
        raise AssertionError(f"only processes {sorted(found)} of {count} ended") from None
    finally:
        for child in children:
            child.kill()
            child.join()
    return [found[rank] for rank in range(count)]
