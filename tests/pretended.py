"""Work on the pretend GPU: `python tests/pretended.py JOB ARGUMENTS` prints its result as JSON.

The device belongs to a whole process, so tests start one with `pretended`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def pretended(job: str, *args: Any) -> Any:
    """The result of a job in a process that believes in the pretend GPU."""
    # Accelerate does not know the device.
    environment = {**os.environ, "ACCELERATE_TORCH_DEVICE": "pretend:0", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, __file__, job, json.dumps(args), folder],
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not done.returncode, done.stderr
        return json.loads(Path(folder, "result.json").read_text())


# Runs without rows between the first step and the last, so that every step does the same.
PLAIN = {
    "steps": 4,
    "log_every": 4,
    "validate_every": 4,
    "checkpoint_every": 4,
    "validation_images": 2,
    "data": {"heldout": 2},
}


def trainings(folder: str, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Waits and operations of a late step of tiny runs, and the lines that waited."""
    from conftest import Silent, tiny_run

    from genkit.testing.pretend import DEVICE

    class Watch(Silent):
        def advance(self, step: int) -> None:
            if step == 3:
                self.found = counts(1)
            DEVICE.forget()

    found = []
    for number, run in enumerate(runs):
        watch = Watch()
        tiny_run(Path(folder, str(number)), PLAIN, run, reporter=watch)
        found.append(watch.found)
    return found


def several(folder: str, jobs: dict[str, list[Any]]) -> dict[str, Any]:
    """The results of several jobs, which share the seconds that a process takes to start."""
    found = {}
    for name, args in jobs.items():
        Path(folder, name).mkdir()
        found[name] = globals()[name](str(Path(folder, name)), *args)
    return found


def counts(times: int) -> dict[str, Any]:
    """The device's counts since it last forgot, divided by `times`."""
    from genkit.testing.pretend import DEVICE

    return {
        "waits": sum(DEVICE.waits.values()) / times,
        "operations": sum(DEVICE.operations.values()) / times,
        "lines": dict(DEVICE.waits),
        "names": list(DEVICE.operations),
        "doubles": dict(DEVICE.doubles),
    }


def resumed(folder: str, changes: dict[str, Any]) -> dict[str, bool]:
    """Whether a run that was interrupted and resumed ends like a whole one."""
    from conftest import InterruptAt, comparable, same, tiny_run, weights

    whole, parts = Path(folder, "whole"), Path(folder, "parts")
    tiny_run(whole, changes)
    tiny_run(parts, changes, reporter=InterruptAt(5))
    tiny_run(parts, changes, resume=True)
    return {
        "weights": same(weights(whole), weights(parts)),
        "rows": comparable(whole) == comparable(parts),
    }


def replayed(folder: str) -> dict[str, Any]:
    """The findings of a replay of a run that gave up."""
    from accelerate.state import AcceleratorState
    from conftest import tiny_run

    from genkit.errors import TrainingError
    from genkit.files import CONFIG
    from genkit.run.options import resolve_run
    from genkit.run.toml import read_config
    from genkit.training.replay import failed_step, replay
    from genkit.training.tokenizer import TokenizerTask

    out = Path(folder, "run")
    with contextlib.suppress(TrainingError):
        tiny_run(out, {"lr": 1e20, "clip": 0, "warmup": 0, "steps": 30, "max_skipped": 3})
    AcceleratorState._reset_state(reset_partial_state=True)
    step, state = failed_step(out)
    return replay(TokenizerTask, resolve_run(read_config(out / CONFIG)), out, step, state)


@contextlib.contextmanager
def two_processes() -> Iterator[list[str]]:
    """Let this process believe in a second one, and note tensors that NCCL would refuse."""
    import torch
    import torch.distributed as dist
    from torch import Tensor

    wrong: list[str] = []
    seen = 0

    def check(tensor: Tensor) -> None:
        nonlocal seen
        seen += 1
        if tensor.device.type != "pretend" or not tensor.is_contiguous():
            wrong.append(f"{list(tensor.shape)} on {tensor.device}, strides {tensor.stride()}")

    def gather(outputs: list[Tensor], tensor: Tensor, *_: Any) -> None:
        for each in (*outputs, tensor):
            check(each)
        with torch.no_grad():
            for each in outputs:
                each.copy_(tensor)

    one = {"all_reduce": lambda t, *_: check(t), "broadcast": lambda t, *_: check(t)}
    facts = {"is_initialized": True, "get_world_size": 2, "get_rank": 0, "get_backend": "nccl"}
    for name, value in facts.items():
        setattr(dist, name, lambda *_, value=value: value)
    for name, function in {**one, "all_gather": gather}.items():
        setattr(dist, name, function)
    yield wrong
    assert seen


def collectives(
    folder: str, quantizer: dict[str, Any], changes: dict[str, Any]
) -> dict[str, list[str]]:
    """Tensors that NCCL would refuse in the training steps of two processes, and the waits."""
    import torch
    from conftest import TINY

    from genkit.ops.later import doubted
    from genkit.run.options import layered, resolve_run
    from genkit.testing.pretend import DEVICE
    from genkit.tokenizer import Tokenizer
    from genkit.training.batchnorm import synchronise
    from genkit.training.health import CodeHealth

    run = resolve_run(layered(None, TINY, changes, {"quantizer": quantizer}))
    with two_processes() as wrong:
        tokenizer = Tokenizer(run.tokenizer).to("pretend", memory_format=torch.channels_last)
        synchronise(tokenizer)
        health = CodeHealth(tokenizer.codebooks, 8, 100).to("pretend")
        for step in range(3):
            images = torch.rand(4, 3, 32, 32).mul(2).sub(1).to("pretend")
            DEVICE.forget()
            with doubted():
                out = tokenizer(images.to(memory_format=torch.channels_last))
                (out.images.square().mean() + out.loss).backward()
            health.add(out.indices)
            # The first step asks whether the codes are initialised.
            waits = list(DEVICE.waits) if step else []
        health.row()
    return {"refused": wrong, "waits": waits}


def encoded(folder: str, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The waits and operations of encoding a batch, and whether the indices are the CPU's."""
    import torch
    from conftest import TINY

    from genkit.run.options import layered, resolve_run
    from genkit.testing.pretend import DEVICE
    from genkit.tokenizer import Tokenizer

    found = []
    for each in runs:
        torch.manual_seed(0)
        tokenizer = Tokenizer(resolve_run(layered(None, TINY, each)).tokenizer).eval()
        images = torch.rand(4, 3, 32, 32) * 2 - 1
        expected = tokenizer.encode(images)
        tokenizer.to("pretend")
        images = images.to("pretend")
        DEVICE.forget()
        indices = tokenizer.encode(images)
        counted = counts(1)
        same = all(torch.equal(a, b.cpu()) for a, b in zip(expected, indices, strict=True))
        found.append({**counted, "same": same})
    return found


def searched(folder: str) -> dict[str, Any]:
    """Operations of a search without and with doubt, and whether both find what a CPU finds."""
    import torch

    from genkit.ops import nearest_codes
    from genkit.testing.pretend import DEVICE

    torch.manual_seed(0)
    latents, codebook = torch.randn(300, 8), torch.randn(60, 8)
    found: dict[str, Any] = {}
    for name, codes in (("sure", codebook), ("doubted", codebook[torch.arange(200) % 9])):
        there = latents.to("pretend"), codes.to("pretend")
        DEVICE.forget()
        indices = nearest_codes(*there)
        found[name] = counts(1)
        found[name]["same"] = torch.equal(indices.cpu(), nearest_codes(latents, codes))
    return found


def sampled(folder: str, priors: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The waits and operations of each token that a prior samples."""
    import torch

    from genkit.interfaces import Conditioning, Rules
    from genkit.layout import Grid, Layout
    from genkit.settings import choose
    from genkit.testing.pretend import DEVICE

    layout = Layout([Grid(4, 6, 1, 7), Grid(2, 3, 1, 5)])
    found = {}
    for name, options in priors.items():
        torch.manual_seed(0)
        prior = choose("prior", {"name": name, **options}).build(layout, Conditioning(classes=3))
        prior.to("pretend").eval()
        generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
        condition = torch.tensor([0, 2], device="pretend")
        DEVICE.forget()
        with torch.no_grad():
            prior.sample(condition, None, generators, Rules())
        found[name] = counts(len(layout))
    return found


def without_doubles(folder: str) -> list[str]:
    """Train and evaluate on a device that lacks float64, as Apple's GPUs do."""
    from conftest import tiny_run

    from genkit.ops import precision
    from genkit.testing.pretend import DEVICE

    precision.WITHOUT_DOUBLES.add("pretend")
    DEVICE.has_doubles = False
    tiny_run(Path(folder, "run"))
    import genkit

    return sorted(genkit.evaluate(Path(folder, "run"), images=4))


def prior_training(folder: str) -> dict[str, Any]:
    """Train a tiny prior on codes; the waits and operations of a late step."""
    from conftest import tiny_run

    import genkit
    from genkit.testing.pretend import DEVICE

    tiny_run(Path(folder, "run"), PLAIN)
    small = {"name": "autoregressive", "width": 32, "depth": 2, "heads": 2}
    marks = []

    def on_row(row: Any) -> None:
        marks.append(counts(1))
        DEVICE.forget()

    genkit.train_prior(
        Path(folder, "run"),
        {"prior": small, "steps": 4, "log_every": 1, "validate_every": 4, "batch_size": 4},
        out=Path(folder, "prior"),
        on_row=on_row,
    )
    return marks[2]


def benchmark(folder: str) -> str:
    """The page of a quick benchmark of the device."""
    from benchmarks.speed import gpu
    from benchmarks.speed.timing import Settings

    return gpu.page(gpu.measure(Settings(quick=True)), Path(folder))


if __name__ == "__main__":
    import torch

    from genkit.testing import pretend

    sys.path.insert(0, str(ROOT))
    torch.set_num_threads(1)
    pretend.start()
    job, given, where = sys.argv[1:]
    result = globals()[job](where, *json.loads(given))
    Path(where, "result.json").write_text(json.dumps(result))
