"""Processes on several machines, with disks of their own or a shared one."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import TINY
from genkit_datasets import folder as folders
from together import together

from genkit.distributed import is_shared, once_per_machine, process, wait_for_all
from genkit.errors import DataError, TrainingError
from genkit.run.options import layered, resolve_run
from genkit.testing.tools import met
from genkit.training import processes
from genkit.training.processes import check_agreed, join

RUN = resolve_run(layered(None, TINY))


def test_each_machine_lists_a_folder_once(photographs: Path, tmp_path: Path) -> None:
    """Four processes on two machines: the headers are read twice, not four times."""

    def work(rank: int) -> Any:
        read: list[Path] = []
        folders.check_header = lambda path, most: read.append(path)
        from genkit.plugin.options import Part
        from genkit.settings import choose

        with met(rank, str(tmp_path), 4):
            part: Part = choose("dataset", {"name": "folder", "location": str(photographs)})
            data = part.build((32, 32), 0)
            wait_for_all(torch.device("cpu"))
        return len(read), data.fingerprint, len(data.split("all"))

    found = together(work, 4, machines=2)
    assert [read for read, *_ in found] == [12, 0, 12, 0]
    assert len({fingerprint for _, fingerprint, _ in found}) == 1
    assert {images for *_, images in found} == {12}


def test_a_failure_of_the_first_process_is_that_of_its_machine(tmp_path: Path) -> None:
    def fail() -> int:
        if process() == 2:
            raise DataError("there is no folder")
        return process()

    def work(rank: int) -> Any:
        with met(rank, str(tmp_path), 4):
            try:
                return once_per_machine(fail)
            except DataError as error:
                return str(error)

    assert together(work, 4, machines=2) == [0, 0, "there is no folder", "there is no folder"]


def test_processes_in_another_order_each_make_their_own(tmp_path: Path) -> None:
    """A launcher may give neighbouring numbers to processes of different machines."""

    def work(rank: int) -> Any:
        os.environ["LOCAL_RANK"] = str(rank // 2)
        with met(rank, str(tmp_path), 4):
            return once_per_machine(process)

    assert together(work, 4, machines=2) == [0, 1, 2, 3]


def test_machines_see_whether_their_disk_is_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genkit.distributed._DELAY", 0.3)

    def work(rank: int) -> Any:
        with met(rank, str(tmp_path), 2):
            return is_shared(tmp_path / "common"), is_shared(tmp_path / f"own-{rank}")

    assert together(work, 2, machines=2) == [(True, False), (True, False)]
    assert not list((tmp_path / "common").iterdir())


def test_processes_with_other_data_stop_together(tmp_path: Path) -> None:
    def work(rank: int) -> Any:
        with met(rank, str(tmp_path), 2):
            check_agreed(options="same", step="4")
            try:
                check_agreed(data="x" * 99 if rank else "y")
            except TrainingError as error:
                return str(error)
        return ""

    first, second = together(work, 2, machines=2)
    assert first == second
    assert first.startswith("process 1 has other data than process 0: xxx")


def test_processes_wait_long_for_each_other() -> None:
    """NCCL's ten minutes are less than listing millions of files takes."""

    def work(rank: int) -> Any:
        join(RUN)
        group: Any = dist.group.WORLD
        return group._get_backend(torch.device("cpu")).options._timeout

    assert together(work, 2, machines=2) == [timedelta(hours=2)] * 2


def test_a_process_that_never_comes_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It failed on its own machine, before it could meet the others."""
    monkeypatch.setattr(processes, "_MEETING", timedelta(seconds=1))

    def work(rank: int) -> Any:
        if rank == 1:
            return ""
        try:
            join(RUN)
        except TrainingError as error:
            return str(error)

    assert "the processes did not meet: see what those on the other" in together(work, 2, 2)[0]
