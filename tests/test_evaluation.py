"""Figures against a library's, undefined figures, and independence of batches and processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import need
from genkit_datasets import FacesOptions
from genkit_datasets.faces import Faces

import genkit
from genkit.data import reading
from genkit.data.reading import batches
from genkit.evaluation.metrics import _ssim, evaluate, psnr


@pytest.mark.parametrize("size", [(11, 11), (16, 40), (64, 64)])
def test_ssim_matches_the_library_without_padding(size: tuple[int, int]) -> None:
    need("torchmetrics")
    from torchmetrics.functional.image import structural_similarity_index_measure

    torch.manual_seed(0)
    real = torch.rand(3, 3, *size)
    made = (real + 0.2 * torch.randn_like(real)).clamp(0, 1)
    _, each = structural_similarity_index_measure(
        made, real, data_range=1.0, reduction="none", return_full_image=True
    )
    # The library pads the images by half a window and returns one value per pixel.
    expected = each[..., 5:-5, 5:-5].mean((1, 2, 3))
    assert torch.allclose(_ssim(real, made), expected, atol=1e-4)
    assert torch.allclose(_ssim(real, real), torch.ones(3))


def test_ssim_needs_a_window() -> None:
    assert _ssim(torch.rand(2, 3, 10, 20), torch.rand(2, 3, 10, 20)).isnan().all()


def test_psnr_matches_the_library() -> None:
    need("torchmetrics")
    from torchmetrics.functional.image import peak_signal_noise_ratio

    torch.manual_seed(0)
    real, made = torch.rand(2, 4, 3, 8, 8) * 2 - 1
    expected = torch.stack(
        [
            peak_signal_noise_ratio(made[i : i + 1], real[i : i + 1], data_range=(-1.0, 1.0))
            for i in range(4)
        ]
    )
    assert torch.allclose(psnr(real, made), expected, atol=1e-4)


def numbers(figures: dict[str, Any]) -> dict[str, float]:
    """Every figure, including those per level."""
    levels = enumerate(figures["levels"])
    flat = {f"{name} of {index}": value for index, level in levels for name, value in level.items()}
    return {**{name: value for name, value in figures.items() if name != "levels"}, **flat}


def faces(count: int) -> Faces:
    return Faces(FacesOptions(heldout=count), (32, 32), 0).split("heldout")


def test_figures_hardly_move_with_the_batch_size(trained: Path) -> None:
    """Rounding in a batch may change the code of a latent, depending on the machine."""
    tokenizer = genkit.load(trained)
    expected = numbers(evaluate(tokenizer, faces(33), exact=True))
    for batch_size in (5, 16, 33):
        found = numbers(evaluate(tokenizer, faces(33), batch_size=batch_size))
        assert found == pytest.approx(expected, rel=1e-4), batch_size


def test_exact_figures_do_not_depend_on_the_batch_size(trained: Path) -> None:
    tokenizer = genkit.load(trained)
    expected = numbers(evaluate(tokenizer, faces(33), exact=True))
    for batch_size in (1, 5, 33):
        found = numbers(evaluate(tokenizer, faces(33), batch_size=batch_size, exact=True))
        assert found == pytest.approx(expected, rel=0, abs=1e-6), batch_size


@pytest.mark.parametrize(("exact", "expected"), [(False, [3, 2]), (True, [1] * 5)])
def test_a_batch_is_processed_at_once_unless_exact(
    exact: bool, expected: list[int], trained: Path
) -> None:
    tokenizer, sizes = genkit.load(trained), []
    tokenizer.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    evaluate(tokenizer, faces(5), batch_size=3, exact=exact)
    assert sizes == expected


def test_batches_do_not_depend_on_the_number_of_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, cpu = faces(17), torch.device("cpu")

    def shared(count: int) -> list[list[int]]:
        monkeypatch.setattr(reading, "processes", lambda: count)
        each = [batches(data, 99, 4, cpu, process) for process in range(count)]
        return sorted(indices for process in each for indices, _ in process)

    assert shared(1) == shared(2) == shared(3) == shared(7)
    assert [len(batch) for batch in shared(3)] == [4, 4, 4, 4, 1]


SHARED = """
import json, sys, torch, genkit
from genkit.evaluation.metrics import evaluate
from genkit_datasets import FacesOptions
from genkit_datasets.faces import Faces
process = int(sys.argv[2])
torch.distributed.init_process_group(
    "gloo", init_method=f"tcp://127.0.0.1:{sys.argv[3]}", rank=process, world_size=3
)
torch.set_num_threads(1)
tokenizer = genkit.load(sys.argv[1])
data = Faces(FacesOptions(heldout=17), (32, 32), 0).split("heldout")
print(json.dumps([evaluate(tokenizer, data, n, 4, process) for n in (None, 16, 2, 1)]))
"""


@pytest.mark.slow
def test_figures_do_not_depend_on_the_number_of_processes(trained: Path) -> None:
    """Three real processes: with 17, 16, 2 and 1 images some get fewer images or none."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    loopback = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SHARED, str(trained), str(process), str(port)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **loopback},
        )
        for process in range(3)
    ]
    # Gloo may print a line about its connections first.
    last = [process.communicate(timeout=100)[0].splitlines()[-1] for process in running]
    results = [json.loads(line) for line in last]
    tokenizer = genkit.load(trained)
    for case, images in enumerate((None, 16, 2, 1)):
        alone = numbers(evaluate(tokenizer, faces(17), images, 4))
        assert alone["images"] == (images or 17)
        for process in results:
            assert numbers(process[case]) == pytest.approx(alone, rel=0, abs=1e-6)
