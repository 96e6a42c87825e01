"""The training loop. `train` reads from top to bottom; what it calls is in the files beside it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor

from genkit.checkpoint.model import save
from genkit.data.loader import loader
from genkit.data.reading import read
from genkit.distributed import gather_rows, processes
from genkit.errors import DataError, TrainingError
from genkit.evaluation.metrics import evaluate
from genkit.evaluation.plot import code_histogram
from genkit.evaluation.usage import CodeCounts
from genkit.images import from_uint8, sample_grid
from genkit.run.directory import RunDirectory
from genkit.run.options import TokenizerRun
from genkit.run.state import save_state
from genkit.settings import settings_of
from genkit.training.guard import not_finite
from genkit.training.health import CodeHealth
from genkit.training.interrupts import Interrupts
from genkit.training.meter import Meter
from genkit.training.modules import load_module_state, module_state
from genkit.training.processes import agreed_directory, join, make_accelerator
from genkit.training.setup import check_heldout, check_same, origin_of
from genkit.training.trainer import Trainer


class Reporter(Protocol):
    """Who is told how the training goes; only the first process's is."""

    def begin(
        self, run: TokenizerRun, directory: Path, step: int, facts: Mapping[str, Any]
    ) -> None:
        """Training starts at `step`."""

    def advance(self, step: int) -> None:
        """`step` steps are done."""

    def row(self, row: Mapping[str, Any]) -> None:
        """A row of metrics was written."""

    def end(self, directory: Path, step: int, done: bool) -> None:
        """Training has stopped; `done` unless it was interrupted."""


def train(run: TokenizerRun, out: Path | None, reporter: Reporter, *, resume: bool = False) -> bool:
    """Train a tokenizer and write its run directory.

    True if it got to the last step, False if it was interrupted.
    """
    join(run)
    directory = RunDirectory(agreed_directory(out, run.data.name, resume))
    changed = directory.changed(run) if resume else []
    accelerator = make_accelerator(run, directory.path)
    first, device = accelerator.is_main_process, accelerator.device
    # A run that cannot be is refused before anything takes time.
    step, state = directory.newest() if resume else (0, {})
    if not resume:
        directory.check_free()
    elif step > run.steps or (step == run.steps and run.steps):
        raise TrainingError(
            f"'{directory.path}' is at step {step} already: give a larger --steps to continue"
        )

    data = run.data.build(run.size, run.seed)
    dataset, heldout = data.split("train"), data.split("heldout")
    if not getattr(data, "generated", False):
        check_heldout(run, heldout, accelerator.process_index, device)
    # Sixteen held-out images from all over the set, to look at as training goes on.
    _, looked_at = read(heldout, range(0, len(heldout), -(-len(heldout) // 16)))
    samples = from_uint8(torch.from_numpy(looked_at)).to(device)

    trainer = Trainer(run, accelerator, dataset.channels)
    tokenizer, final = trainer.tokenizer, trainer.final
    meter = Meter(tokenizer.codebooks, device)
    health = CodeHealth(
        tokenizer.codebooks,
        run.batch_size * processes(),
        len(dataset),
        passes=step * run.accumulate,
    ).to(device)
    origin = origin_of(dataset, device)
    skipped = 0
    if state:
        changed += check_same(origin, state["origin"])
        trainer.load(state)
        load_module_state(health, state["health"])
        meter.load(state["meter"], accelerator.process_index)
        skipped = state["skipped"]

    unreadable = {**dataset.problems, **heldout.problems}
    settings = settings_of(run)
    with ExitStack() as stack:
        if first:
            stack.enter_context(directory.claimed())
            if not resume:
                directory.check_free()
            directory.begin(settings, step)
            directory.name_unreadable(unreadable)
            facts = {
                "training": len(dataset),
                "heldout": len(heldout),
                "unreadable": unreadable,
                "notes": getattr(data, "notes", []),
                "passed_over": state.get("passed_over", []),
                "changed": changed,
                "resumed": resume,
                "parameters": sum(parameter.numel() for parameter in tokenizer.parameters()),
                "device": str(device),
                "processes": processes(),
            }
            reporter.begin(run, directory.path, step, facts)
        if run.tracker != "none":
            accelerator.init_trackers(
                "genkit", config={key: str(value) for key, value in settings.items()}
            )

        def everything() -> dict[str, Any]:
            """The whole state of the run, which all processes put together."""
            health.gather()
            return {
                "origin": origin,
                **trainer.state(),
                "health": module_state(health),
                "meter": meter.state(),
                "skipped": skipped,
            }

        def checkpoint() -> None:
            state = everything()
            # What is no number must not take the place of a good model.
            if wrong := not_finite({**module_state(tokenizer), **module_state(final)}):
                if step < run.steps:  # The coming steps will be skipped, and tell more.
                    return
                raise TrainingError(
                    f"the weights became infinite or not a number, first {wrong[0]}: try a lower "
                    "--lr; what was saved before is intact"
                )
            if not first:
                return
            directory.check_there()
            final.facts = {
                "step": step,
                "resolution": run.resolution,
                "seed": run.seed,
                "fingerprint": dataset.fingerprint,
                "data": settings_of(run, local=False)["data"],
            }
            save(final, directory.model)
            save_state(directory.checkpoints, step, state, run.keep)

        def give_up(batches: Sequence[Tensor], broken: Sequence[str]) -> NoReturn:
            """Keep what `genkit replay` needs to make the failing step fail again, and stop."""
            images = gather_rows(torch.stack(list(batches)).to(device)[None])
            state = {**everything(), "batches": images, "broken": list(broken)}
            if first:
                directory.check_there()
                save_state(directory.failure, step, state, keep=1)
            # Whoever ends first would be taken for the one that failed.
            accelerator.wait_for_everyone()
            what = ", ".join(broken) or "the loss or the gradient"
            raise TrainingError(
                f"{skipped} steps in a row were skipped, the last is step {step}: {what} became "
                "infinite or not a number. Try a lower --lr, --clip 1, a longer --warmup, or "
                "--mixed-precision no. To see where it comes from: "
                f"genkit replay {shlex.quote(str(directory.path))}"
            )

        def validate() -> dict[str, Any]:
            codes = CodeCounts(tokenizer.codebooks, device)
            figures = evaluate(
                final,
                heldout,
                run.validation_images,
                run.batch_size,
                accelerator.process_index,
                codes,
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

        @contextmanager
        def nothing_lost(*together: type[Exception]) -> Iterator[None]:
            """Save first if something fails between two steps, which all processes can together."""
            try:
                yield
            except Exception as error:
                alike = processes() == 1 or isinstance(error, together)
                if alike and step > max(0, saved_at) and not skipped:
                    checkpoint()
                raise

        stream = loader(run, dataset, accelerator.process_index, accelerator.num_processes, step)
        saved_at = step if state else -1
        tokenizer.train()
        meter.start()
        interrupts = stack.enter_context(Interrupts())
        while step < run.steps and not interrupts.agreed(step, device):
            with nothing_lost():
                batches, problems = zip(*islice(stream, run.accumulate), strict=True)
            for each in problems:
                unreadable |= each
            done = trainer.step(batches, step)
            skipped = 0 if done.taken and done.judged else skipped + 1
            if skipped:
                meter.skip()
            if skipped >= run.max_skipped:
                give_up(batches, done.broken)
            for figures, indices in done.passes:
                if done.taken:
                    meter.add(figures, indices)
                    health.add(indices)
                else:
                    health.skip()
            step += 1

            validating = step % run.validate_every == 0 or step == run.steps
            if validating or step % run.log_every == 0:
                row = {"step": step, "lr": done.lr, **meter.read()}
                health.gather()
                for level, unused in zip(row["levels"], health.unused(), strict=True):
                    level["unused"] = unused
                if step > run.warmup and (alarms := health.collapsed(run.quantizer)):
                    row["alarms"] = alarms
                with meter.paused():
                    if validating:
                        with nothing_lost(DataError):
                            row |= validate()
                    if run.tracker != "none":
                        accelerator.log(_flat(row), step=step)
                    if first:
                        directory.append(row)
                        directory.name_unreadable(unreadable)
                        reporter.row(row)
            if first:
                reporter.advance(step)
            # While steps are being skipped, the model may be one that is lost.
            if step % run.checkpoint_every == 0 and not skipped:
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
