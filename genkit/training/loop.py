"""The training loop. `train` reads from top to bottom; what it calls is in the files beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import nn
from torch.nn import functional as F

from genkit.charts import code_histogram
from genkit.checkpoint import save
from genkit.codes import CodeCounts
from genkit.data import read
from genkit.distributed import processes
from genkit.errors import TrainingError
from genkit.evaluation import evaluate, psnr
from genkit.images import from_uint8, sample_grid
from genkit.options import settings_of
from genkit.run import Run
from genkit.tokenizer import Tokenizer
from genkit.training.adversary import Adversary
from genkit.training.data import loader
from genkit.training.directory import RunDirectory
from genkit.training.health import CodeHealth
from genkit.training.meter import Meter
from genkit.training.optim import (
    learning_rate,
    optimizer,
    set_learning_rate,
    weight_average,
)
from genkit.training.setup import (
    Interrupts,
    agreed_directory,
    average_batch_norms,
    check_fit,
    check_same,
    join,
    make_accelerator,
)
from genkit.training.state import (
    load_module_state,
    load_optimizer_state,
    load_state,
    module_state,
    save_state,
)


class Reporter(Protocol):
    """Who is told how the training goes; only the first process's is."""

    def begin(self, run: Run, directory: Path, step: int, facts: Mapping[str, Any]) -> None:
        """Training starts at `step`."""

    def advance(self, step: int) -> None:
        """`step` steps are done."""

    def row(self, row: Mapping[str, Any]) -> None:
        """A row of metrics was written."""

    def end(self, directory: Path, step: int, done: bool) -> None:
        """Training has stopped; `done` unless it was interrupted."""


def train(run: Run, out: Path | None, reporter: Reporter, *, resume: bool = False) -> bool:
    """Train a tokenizer and write its run directory.

    True if it got to the last step, False if it was interrupted.
    """
    join(run)
    directory = RunDirectory(agreed_directory(out, run, resume))
    accelerator = make_accelerator(run, directory.path)
    first, device = accelerator.is_main_process, accelerator.device
    # A run that cannot be is refused before anything takes time.
    step, state = load_state(directory.checkpoints) if resume else (0, {})
    if not resume:
        directory.check_free()
    elif step > run.steps or (step == run.steps and run.steps):
        raise TrainingError(f"the run is at step {step} already: give --steps above that to go on")

    dataset = run.data.build("train", run.resolution, run.seed)
    heldout = run.data.build("heldout", run.resolution, run.seed)
    # Sixteen held-out images from all over the set, to look at as training goes on.
    _, looked_at = read(heldout, range(0, len(heldout), -(-len(heldout) // 16)))
    samples = from_uint8(torch.from_numpy(looked_at)).to(device)

    torch.manual_seed(run.seed)
    tokenizer = Tokenizer(run).to(memory_format=torch.channels_last)
    discriminator = run.discriminator.build() if run.discriminator else None
    # It learns nothing, so that no process and no checkpoint has to know of it.
    perceptual = run.perceptual.build().eval().requires_grad_(False) if run.perceptual else None
    check_fit(run, tokenizer, perceptual, discriminator)
    meter = Meter(tokenizer.codebooks, device)
    health = CodeHealth(
        tokenizer.codebooks,
        run.batch_size * processes(),
        len(dataset),
        passes=step * run.accumulate,
    ).to(device)
    average = weight_average(tokenizer, run.ema).to(device) if run.ema else None
    model, model_optimizer = accelerator.prepare(
        tokenizer, optimizer(run, tokenizer, run.optimizer, run.lr)
    )
    adversary = Adversary(run, accelerator, discriminator) if discriminator else None
    if perceptual:
        perceptual.to(device)
    # What is validated and saved: the average of the weights if there is one.
    final = cast("Tokenizer", average.module) if average else tokenizer

    modules: dict[str, nn.Module] = {"tokenizer": tokenizer, "health": health}
    optimizers = {"tokenizer": model_optimizer}
    if average:
        modules["average"] = average
    if adversary:
        modules["discriminator"], optimizers["discriminator"] = adversary.plain, adversary.optimizer
        modules["verdicts"] = adversary.verdicts

    # By these a resumed run is known to be the same one.
    origin = {"fingerprint": dataset.fingerprint, "processes": processes()}
    if resume:
        check_same(origin, state["origin"])
        for name, module in modules.items():
            load_module_state(module, state["modules"].get(name, {}))
        for name, each in optimizers.items():
            load_optimizer_state(each, state["optimizers"][name])
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
    unreadable = {**dataset.problems, **heldout.problems}
    settings = settings_of(run)
    if first:
        directory.begin(settings, step)
        directory.name_unreadable(unreadable)
        parameters = sum(parameter.numel() for parameter in tokenizer.parameters())
        facts = {
            "training": len(dataset),
            "heldout": len(heldout),
            "unreadable": unreadable,
            "passed_over": state.get("passed_over", []),
            "parameters": parameters,
        }
        reporter.begin(
            run, directory.path, step, {**facts, "device": str(device), "processes": processes()}
        )
    if run.tracker != "none":
        accelerator.init_trackers(
            "genkit", config={key: str(value) for key, value in settings.items()}
        )

    def checkpoint() -> None:
        # What is no number must not take the place of a good model.
        meter.check()
        average_batch_norms(tokenizer, final)
        health.gather()
        if not first:
            return
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
        states = {name: module_state(module) for name, module in modules.items()}
        moments = {name: each.state_dict() for name, each in optimizers.items()}
        facts = {
            "step": step,
            "resolution": run.resolution,
            "seed": run.seed,
            "fingerprint": dataset.fingerprint,
        }
        data = settings_of(run, local=False)["data"]
        final.facts = {**facts, "data": data}
        save(final, directory.model)
        save_state(
            directory.checkpoints,
            step,
            {"origin": origin, "modules": states, "optimizers": moments, "scaler": scaler},
            run.keep,
        )

    def validate() -> dict[str, Any]:
        average_batch_norms(tokenizer, final)
        codes = CodeCounts(tokenizer.codebooks, device)
        figures = evaluate(
            final, heldout, run.validation_images, run.batch_size, accelerator.process_index, codes
        )
        images, trained = health.last_epoch()
        seen = codes.totals()
        if first:
            histogram = [(f"{images} training images", trained), ("held-out images", seen)]
            directory.picture("codes", step, code_histogram(histogram))
            if len(samples):
                with torch.no_grad():
                    grid = sample_grid(samples, final(samples).images)
                directory.picture("samples", step, grid)
        unreadable.update(heldout.problems)
        tokenizer.train()
        return {"validation": figures, "epoch": health.summary()}

    stream = iter(loader(run, dataset, accelerator.process_index, accelerator.num_processes, step))
    saved_at = -1
    tokenizer.train()
    meter.restart()
    with Interrupts() as interrupts:
        while step < run.steps and not interrupts.agreed(step, device):
            # Every random draw of a step follows from seed, step and process.
            # So a resumed run draws the same.
            torch.manual_seed(
                (run.seed * 1_000_003 + step) * accelerator.num_processes
                + accelerator.process_index
            )
            lr = learning_rate(run, step, run.lr)
            set_learning_rate(model_optimizer, lr)
            judged = adversary is not None and step >= run.discriminator_start

            for _ in range(run.accumulate):
                pixels, problems = next(stream)
                unreadable |= problems
                images = from_uint8(pixels.to(device, non_blocking=True)).to(
                    memory_format=torch.channels_last
                )
                with accelerator.accumulate(model, *([adversary.model] if adversary else [])):
                    with accelerator.autocast():
                        reconstructions, indices, quantization = model(images)
                    made = reconstructions.float()
                    reconstruction = (
                        F.l1_loss(made, images)
                        if run.reconstruction == "l1"
                        else F.mse_loss(made, images)
                    )
                    losses = {
                        "reconstruction": run.reconstruction_weight * reconstruction,
                        "quantization": quantization,
                    }
                    if perceptual:
                        with accelerator.autocast():
                            seen = perceptual(made, images)
                        losses["perceptual"] = run.perceptual_weight * seen.float()
                    if adversary and judged:
                        likeness = losses["reconstruction"] + losses.get("perceptual", 0)
                        losses["adversarial"] = adversary.verdict(made, likeness, step)
                    loss = torch.stack(list(losses.values())).sum()
                    accelerator.backward(loss)
                    if accelerator.sync_gradients and run.clip:
                        losses["gradient_norm"] = accelerator.clip_grad_norm_(
                            model.parameters(), run.clip
                        )
                    model_optimizer.step()
                    model_optimizer.zero_grad()
                    if adversary and judged:
                        losses |= adversary.step(images, made, step)
                meter.add({"loss": loss, **losses, "psnr": psnr(images, made).mean()}, indices)
                health.add(indices)
            if average:
                average.update_parameters(tokenizer)
            step += 1

            validating = step % run.validate_every == 0 or step == run.steps
            if validating or step % run.log_every == 0:
                row = {"step": step, "lr": lr, **meter.read()}
                health.gather()
                for level, unused in zip(row["levels"], health.unused(), strict=True):
                    level["unused"] = unused
                if step > run.warmup and (alarms := health.collapsed(run.quantizer)):
                    row["alarms"] = alarms
                with meter.paused():
                    if validating:
                        row |= validate()
                    if run.tracker != "none":
                        accelerator.log(_flat(row), step=step)
                    if first:
                        directory.append(row)
                        directory.name_unreadable(unreadable)
                        reporter.row(row)
            if first:
                reporter.advance(step)
            if step % run.checkpoint_every == 0:
                with meter.paused():
                    checkpoint()
                saved_at = step

    if saved_at != step:
        checkpoint()
    # Whoever ends first might be taken for one that failed while the first process still saves.
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if first:
        reporter.end(directory.path, step, step == run.steps)
    return step == run.steps


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """A row's numbers under dotted names, as trackers take them."""
    flat: dict[str, float] = {}
    for key, value in row.items():
        if isinstance(value, list):
            value = dict(enumerate(value))
        if isinstance(value, Mapping):
            flat |= _flat({str(name): item for name, item in value.items()}, f"{prefix}{key}/")
        elif value is not None and not isinstance(value, str):
            flat[f"{prefix}{key}"] = value
    return flat
