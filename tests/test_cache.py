"""The cache of decoded images: the same pixels, shared by all workers, within its limit."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import same, tiny_run, weights
from genkit_datasets import FolderOptions
from genkit_datasets.folder import Folder

from genkit import Subset
from genkit.data.cache import ImageCache
from genkit.data.loader import loader
from genkit.errors import OptionError, TrainingError
from genkit.run.options import TokenizerRun, layered, resolve_run


def run(**settings: Any) -> TokenizerRun:
    return resolve_run(layered(None, {"batch_size": 4, "resolution": 16, "workers": 0}, settings))


def train_set(folder: Path, **options: Any) -> Subset:
    return Folder(FolderOptions(location=str(folder), short_side=24, **options), (16, 16), 0).split(
        "train"
    )


def stream(
    settings: TokenizerRun, dataset: Subset, process: int = 0, processes: int = 1
) -> torch.Tensor:
    return torch.cat([batch for batch, _ in loader(settings, dataset, process, processes, 0)])


def delete_images(folder: Path) -> None:
    for file in folder.rglob("*.png"):
        file.unlink()


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_pixels_with_and_without(workers: int, photographs: Path) -> None:
    """Over several epochs, each with other crops and flips of the cached images."""
    settings = run(steps=12, workers=workers)
    without = stream(run(steps=12), train_set(photographs, cache=0))
    assert torch.equal(stream(settings, train_set(photographs)), without)
    # The same if only a few fit: 24 x 30 pixels of 3 bytes each.
    few = train_set(photographs)
    few.dataset._kept = ImageCache(2 * len(few.dataset.files), 3 * 24 * 30 * 3 + 1)
    assert torch.equal(stream(settings, few), without)
    assert sum(few.dataset._kept.get(2 * number + 1) is not None for number in few.numbers) == 3


def test_the_same_pixels_on_two_processes(photographs: Path) -> None:
    for process in (0, 1):
        kept, without = (
            stream(run(steps=8, workers=1), train_set(photographs, cache=cache), process, 2)
            for cache in (512, 0)
        )
        assert torch.equal(kept, without)


def test_from_the_second_epoch_on_no_file_is_read(photographs: Path) -> None:
    """Not even if another worker read the file in the first epoch."""
    dataset = train_set(photographs)
    epoch = len(dataset)
    first = stream(run(steps=1, batch_size=epoch, workers=1), dataset)
    delete_images(photographs)
    later = stream(run(steps=6, batch_size=epoch, workers=2), dataset)
    assert not dataset.problems
    assert torch.equal(later[:epoch], first)
    other = {image.numpy().tobytes() for image in later[epoch:]}
    assert len(other - {image.numpy().tobytes() for image in first}) > epoch


def test_a_resumed_run_and_one_without_are_the_same(photographs: Path, tmp_path: Path) -> None:
    data = {"name": str(photographs), "short_side": 40}
    settings = {"schedule": "constant", "validate_every": 99, "validation_images": 1}
    tiny_run(tmp_path / "without", settings, {"data": {**data, "cache": 0}})
    tiny_run(tmp_path / "run", settings, {"data": data, "steps": 4})
    tiny_run(tmp_path / "run", settings, {"data": data, "workers": 2}, resume=True)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "without"))


def test_training_and_plain_images_are_kept_apart(photographs: Path) -> None:
    plain = train_set(photographs, cache=0).images([0])
    dataset = train_set(photographs)
    dataset.dataset._kept.put(2 * dataset.numbers[0] + 1, np.zeros((24, 30, 3), dtype=np.uint8))
    assert not dataset.images([0], [0]).any()
    assert (dataset.images([0]) == plain).all()


def image(value: int, height: int = 2, width: int = 5) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.full((height, width, 3), value, dtype=np.uint8)


def test_the_first_images_stay_and_the_rest_is_not_cached() -> None:
    kept = ImageCache(9, 3 * (10 + 6))
    assert kept.get(4) is None
    kept.put(4, image(7))
    kept.put(0, image(8))
    kept.put(4, image(6, 1, 1))
    kept.put(8, image(9, 3, 2))
    assert [kept.get(number) is None for number in range(9)] == [True] * 4 + [False] + [
        True
    ] * 3 + [False]
    for number, wanted in ((4, image(7)), (8, image(9, 3, 2))):
        found = kept.get(number)
        assert found is not None
        assert found.shape == wanted.shape
        assert (found == wanted).all()
    # The cache is full to the last byte.
    kept.put(1, image(1, 1, 1))
    assert kept.get(1) is None


def test_an_empty_cache_keeps_nothing() -> None:
    kept = ImageCache(1, 0)
    kept.put(0, image(1, 1, 1))
    assert kept.get(0) is None


def fill(kept: ImageCache, first: int) -> None:
    for number in range(first, kept.count, 2):
        kept.put(number, image(number % 251))
        kept.put(number ^ 1, image(0))  # Unless the other process put it first.


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only forked processes share memory")
def test_concurrent_processes_share_the_cache() -> None:
    kept = ImageCache(400, 400 * 30)
    forked = multiprocessing.get_context("fork")
    children = [forked.Process(target=fill, args=(kept, first)) for first in (0, 1)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    for number in range(400):
        found = kept.get(number)
        assert found is not None
        assert (found == found[0, 0]).all()
        assert found[0, 0, 0] in (0, number % 251)


@pytest.mark.parametrize("error", [OSError(30, "Read-only file system"), ImportError("sem_open")])
def test_without_locks_each_process_has_its_own_cache(
    error: Exception, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise error

    shared = stream(run(steps=6), train_set(photographs))
    monkeypatch.setattr(multiprocessing, "Lock", refuse)
    dataset = train_set(photographs)
    assert torch.equal(stream(run(steps=6), dataset), shared)
    with pytest.raises(TrainingError, match=r"workers cannot be started: .*; give --workers 0"):
        stream(run(steps=6, workers=2), dataset)
    delete_images(photographs)
    assert torch.equal(stream(run(steps=6), dataset), shared)
    kept = ImageCache(1, 30)
    if not (child := os.fork()):
        kept.put(0, image(1))
        os._exit(0)
    os.waitpid(child, 0)
    assert kept.get(0) is None


def test_a_cache_sent_to_a_process_arrives_empty(photographs: Path) -> None:
    dataset = train_set(photographs)
    dataset.images([0], [0])
    there: Subset = pickle.loads(pickle.dumps(dataset))
    assert there.dataset._kept.get(1) is None
    assert there.dataset._kept.room == dataset.dataset._kept.room
    assert (there.images([0, 1], [5, 6]) == dataset.images([0, 1], [5, 6])).all()


def test_more_memory_than_the_machine_has_is_refused(photographs: Path) -> None:
    for cache in (2**40, 2**60):
        with pytest.raises(OptionError, match=r"needs \d+ megabytes, .*lower --data.cache"):
            train_set(photographs, cache=cache)


def test_it_is_reported_before_training_if_not_all_fits(photographs: Path, tmp_path: Path) -> None:
    assert not train_set(photographs).dataset.notes
    assert not train_set(photographs, cache=0).dataset.notes
    small = {"name": str(photographs), "cache": 1, "short_side": 300}
    reporter = tiny_run(tmp_path / "run", {"data": small, "steps": 0})
    (note,) = reporter.summary.notes
    # Ten images of 300 x 300 pixels at least.
    assert note.startswith("Less than 39% of the decoded images fit into --data.cache 1; ")
    assert "about 4 megabytes would" in note
