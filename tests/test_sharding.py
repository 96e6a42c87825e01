"""Priors whose weights are split among processes by FSDP2, against whole ones.

Accelerate shards on GPUs alone. Here its own function does so on two processes with CPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import InterruptAt, Silent, comparable, rows, same, weights
from safetensors.torch import load_file
from together import together

from genkit.distributed import is_split
from genkit.run.prior import PriorRun
from genkit.settings import resolve
from genkit.training import processes, session
from genkit.training.loop import train
from genkit.training.prior import PriorTask

SMALL: dict[str, Any] = {
    "prior": {
        "name": "autoregressive",
        "width": 16,
        "depth": 2,
        "heads": 2,
        "place_width": 8,
        "dropout": 0,
    },
    "data": {"heldout": 8, "size": 200},
    **{"steps": 8, "batch_size": 4, "accumulate": 2, "lr": 3e-3, "warmup": 2, "ema": 0.9},
    **{"optimizer": "adamw", "clip": 0.05, "log_every": 1, "validate_every": 4, "shown": 2},
    **{"checkpoint_every": 4, "validation_images": 7, "keep": 1},
}


def run(tokenizer: Path, **changes: Any) -> PriorRun:
    """A prior's run without random draws, which would differ from process to process."""
    settings = {**SMALL, "tokenizer": str(tokenizer), **changes}
    return resolve(PriorRun, PriorRun.layered(None, settings))


def sharding(patch: pytest.MonkeyPatch) -> None:
    """Let runs find an Accelerator that shards, as `accelerate launch --use_fsdp` makes it."""
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    def make(*args: Any) -> Any:
        made = processes.make_accelerator(*args)
        made.state.distributed_type = DistributedType.FSDP
        made.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            reshard_after_forward=True,
            # `accelerate launch` asks for it.
            cpu_ram_efficient_loading=True,
        )
        if args[0].mixed_precision != "no":
            made.state.fsdp_plugin.set_mixed_precision(args[0].mixed_precision)
        return made

    # Old versions of Accelerate warn if it differs from the plugin's flag.
    patch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    patch.setattr(session, "make_accelerator", make)


def trained(
    out: Path, chosen: Callable[[], PriorRun], sharded: bool, reporter: Any = Silent, **more: Any
) -> Callable[[int], Any]:
    """Work for a process: train, and return which parameters were split."""

    def work(rank: int) -> dict[str, bool]:
        torch.set_num_threads(1)
        split: dict[str, bool] = {}

        class Task(PriorTask):
            def batches(self, first: int) -> Any:
                learner = self.learner
                modules = [learner.module, *([learner.average.module] if learner.average else [])]
                for number, module in enumerate(modules):
                    for name, each in module.named_parameters():
                        split[f"{number}.{name}"] = is_split(each) and (
                            each.to_local().numel() < each.numel() or each.numel() < 2
                        )
                return super().batches(first)

        with pytest.MonkeyPatch.context() as patch:
            if sharded:
                sharding(patch)
            train(Task, chosen(), out, reporter(), **more)
        return split

    return work


def state(out: Path) -> dict[str, torch.Tensor]:
    (step,) = (out / "checkpoints").glob("step-*")
    return load_file(step / "tensors.safetensors")


def close(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor], within: float) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(value, b[name], rtol=within, atol=within)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from conftest import tiny_run

    out = tmp_path_factory.mktemp("tokenizer") / "run"
    tiny_run(out, {"steps": 2})
    return out


def agree(a: Path, b: Path, within: float = 1e-5) -> None:
    """The same losses, gradients and validations in each row, up to rounding."""
    for one, two in zip(rows(a), rows(b), strict=True):
        assert one.keys() == two.keys()
        if "nats" not in one:  # Its only step was skipped.
            continue
        assert one["nats"] == pytest.approx(two["nats"], rel=within)
        assert one["gradient_norm"] == pytest.approx(two["gradient_norm"], rel=100 * within)
        assert (one["clipped"], one["skipped"]) == (two["clipped"], two["skipped"])
        if "validation" in one:
            assert one["validation"]["nats"] == pytest.approx(two["validation"]["nats"], rel=within)


def test_a_sharded_prior_trains_like_one_process(tokenizer: Path, tmp_path: Path) -> None:
    """Losses, clipping, averages, held-out figures, drawn images and the files."""
    steps = {"steps": 4, "validate_every": 2, "checkpoint_every": 2}
    split = together(trained(tmp_path / "two", lambda: run(tokenizer, **steps), True), 2)
    whole = partial(run, tokenizer, **steps, batch_size=8)
    together(trained(tmp_path / "one", whole, False), 1)
    assert split[0]
    assert all(all(each.values()) for each in split)
    agree(tmp_path / "two", tmp_path / "one")
    assert any(row["clipped"] for row in rows(tmp_path / "one"))
    close(weights(tmp_path / "two"), weights(tmp_path / "one"), 1e-4)
    assert state(tmp_path / "two").keys() == state(tmp_path / "one").keys()
    assert len(list((tmp_path / "two" / "samples").iterdir())) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, {"optimizer": "muon"}, {"mixed_precision": "bf16"}, {"keep_best": True, "ema": 0.0}],
    ids=["adamw", "muon", "bf16", "best"],
)
def test_a_sharded_prior_trains_like_whole_ones(
    changes: dict[str, Any], tokenizer: Path, tmp_path: Path
) -> None:
    """Two processes in both ways: the checkpoint holds the same weights and moments."""
    chosen = partial(run, tokenizer, **changes)
    for name in ("split", "whole"):
        together(trained(tmp_path / name, chosen, name == "split"), 2)
    within = 2e-3 if "mixed_precision" in changes else 1e-5
    agree(tmp_path / "split", tmp_path / "whole", within)
    close(weights(tmp_path / "split"), weights(tmp_path / "whole"), 50 * within)
    close(state(tmp_path / "split"), state(tmp_path / "whole"), 50 * within)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_sharded_prior_resumes_with_the_same_bits(
    optimizer: str, tokenizer: Path, tmp_path: Path
) -> None:
    chosen = partial(run, tokenizer, optimizer=optimizer, checkpoint_every=100)
    together(trained(tmp_path / "whole", chosen, True), 2)
    together(trained(tmp_path / "parts", chosen, True, lambda: InterruptAt(3)), 2)
    assert rows(tmp_path / "parts")[-1]["step"] < 8
    together(trained(tmp_path / "parts", chosen, True, resume=True), 2)
    assert comparable(tmp_path / "parts") == comparable(tmp_path / "whole")
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    assert same(state(tmp_path / "parts"), state(tmp_path / "whole"))


@pytest.mark.slow
def test_a_step_that_is_not_finite_is_skipped_by_all(tokenizer: Path, tmp_path: Path) -> None:
    """One process alone has a NaN; no shard of the weights, moments or averages may take it."""

    def poisoned(self: PriorTask, batch: Any, step: int) -> Any:
        passed = losses(self, batch, step)
        if step == 3 and self.accelerator.process_index == 1:
            passed.losses["nats"] = passed.losses["nats"] * torch.nan
        return passed

    losses = PriorTask.losses
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PriorTask, "losses", poisoned)
        for name in ("split", "whole"):
            together(trained(tmp_path / name, lambda: run(tokenizer), name == "split"), 2)
    assert [row["skipped"] for row in rows(tmp_path / "split")] == [0, 0, 0, 1, 0, 0, 0, 0]
    agree(tmp_path / "split", tmp_path / "whole")
    close(state(tmp_path / "split"), state(tmp_path / "whole"), 1e-4)
