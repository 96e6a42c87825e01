"""Training a prior: a model of the indices that a tokenizer makes of images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from genkit.captions import captioned
from genkit.checkpoint.model import description, distinct_state, fingerprint, load
from genkit.checkpoint.prior import load_prior, save_prior
from genkit.data.loader import stream, workers_of
from genkit.data.order import Draw, DrawSampler
from genkit.data.reading import none_readable, read
from genkit.data.split import Subset
from genkit.data.vectors import Vectors
from genkit.data.workers import in_background
from genkit.distributed import all_sum, failing_together, is_shared
from genkit.errors import OptionError, TrainingError
from genkit.evaluation.bits import Likelihood
from genkit.evaluation.images import built, data_text, resolution_of
from genkit.files import TOKENIZER
from genkit.images import Pixels, from_pixels, is_deep, picture_grid, values_fact
from genkit.prior import Prior
from genkit.run.options import location_of
from genkit.run.prior import PriorRun
from genkit.settings import settings_of
from genkit.tokenizer import Tokenizer
from genkit.training.call import called
from genkit.training.compiling import eager
from genkit.training.learner import Learner
from genkit.training.nets import prepare_nets
from genkit.training.optimizers import learning_rate, optimizer
from genkit.training.processes import run_directory
from genkit.training.task import Pass, Progress, Summary, Validation
from genkit.training.tokens import Sequences, chosen, encoded

# The folder of the encoded images in the run directory, and of its two parts.
_TOKENS, _TRAIN, _HELDOUT = "tokens", "train", "heldout"
_ENCODING = "encoding"


class Fit(nn.Module):
    """A prior's model, whose forward pass is its loss."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, sequence: Tensor, condition: Tensor | None, seed: int) -> Tensor:
        """The loss of sequences `[B, N]`, with random draws that follow from the seed."""
        generator = torch.Generator().manual_seed(seed)
        loss: Tensor = self.model.loss(sequence, condition, generator)
        return loss


class PriorTask:
    """Fits a prior to the indices of images."""

    def __init__(self, run: PriorRun, accelerator: Accelerator) -> None:
        self.run, self.accelerator = run, accelerator
        self.tokenizer = _tokenizer(run, run_directory(accelerator)).to(accelerator.device)
        resolution_of(description(self.tokenizer), run.resolution)
        data = built(run.data, run.size, run.seed, description(self.tokenizer))
        self.training, self.heldout = data.split("train"), data.split("heldout")
        if run.labels and not data.classes:
            raise OptionError(f"--labels {run.labels}: {data_text(run.data)} has no classes")
        self.vectors = Vectors(run.condition) if run.condition else None
        self.fingerprint = _hash(
            data.fingerprint, fingerprint(self.tokenizer), run.labels, self.vectors
        )
        self.classes = list(data.classes) if run.labels else []
        prior = self._prior()
        self.layout = prior.layout
        fit = Fit(prior.model)
        # A prior's own forward pass is its loss, which draws on the host: its parts are compiled.
        prepare_nets(run, [fit], accelerator.device, list(prior.model.children()))
        self.learner = Learner(
            "prior",
            fit,
            accelerator,
            optimizer(run, run.optimizer, run.lr),
            learning_rate(run, run.lr),
            clip=run.clip,
            accumulate=run.accumulate,
            ema=run.ema,
        )
        self.learners = [self.learner]
        self.final = cast("Fit", self.learner.final)
        # The held-out loss, the step and the weights of the best validation.
        self.best: dict[str, Any] = {}
        self.summary = Summary(
            f"{run.prior.name} prior of {len(self.layout)} indices",
            f"{data_text(run.data)} at {run.resolution} px",
            "images",
            len(self.training),
            len(self.heldout),
            list(getattr(data, "notes", [])),
        )

    def prepare(self, directory: Path, progress: Progress) -> None:
        """Encode the training and the held-out images, unless they are encoded already."""
        run, processes = self.run, self.accelerator.num_processes
        place = Path(run.cache_tokens) if run.cache_tokens else directory / _TOKENS
        if not is_shared(place):
            raise TrainingError(
                f"the machines encode the images together, and not all of them see '{place}': put "
                "--out or --cache-tokens on a disk that they share"
            )
        count = max(1, min(run.validation_images, len(self.heldout)))
        heldout = range(0, len(self.heldout), len(self.heldout) // count)[:count]
        shown = Subset(self.heldout, heldout)
        self.heldout_rows = self._encoded(shown, 1, place / _HELDOUT, progress)
        self.rows: Sequences | None = None
        if run.encode == "once" and run.steps:
            draws = run.steps * run.accumulate * run.batch_size * processes
            split, views = chosen(self.training, draws, run.views, run.seed)
            # A longer run, which draws more images, must not take the few of a shorter one.
            part = "" if len(split) == len(self.training) else f"-{len(split)}"
            part += f"-{views}-views" if views > 1 else ""
            self.rows = self._encoded(split, views, place / f"{_TRAIN}{part}", progress)

    def _encoded(self, split: Any, views: int, folder: Path, progress: Progress) -> Sequences:
        tokens = encoded(
            self.tokenizer,
            split,
            folder,
            views=views,
            batch_size=self.run.batch_size,
            workers=self.run.workers,
            progress=lambda done, total: progress(_ENCODING, done, total),
        )
        if self.classes and tokens.classes != self.classes:
            raise OptionError(f"'{folder}' was encoded without the labels {self.run.labels}")
        rows = Sequences(tokens, self.layout)
        if self.vectors:
            self.vectors.check(list(rows.names))
        return rows

    def batches(self, first: int) -> Iterator[tuple[dict[str, Tensor], Mapping[str, str]]]:
        """Batches of sequences or, where encoding is left to the step, of images."""
        run, process = self.run, self.accelerator.process_index
        processes = self.accelerator.num_processes
        if not run.steps:  # Nothing is encoded for such a run.
            return iter(())
        if run.encode == "always":
            draws = DrawSampler(run, len(self.training), process, processes, first)
            shape = run.batch_size, *run.size, self.training.channels
            workers = workers_of(run.workers, processes)
            read = stream(self._read, draws, shape, workers, is_deep(self.training))
            return (({"pixels": pixels, **given}, problems) for pixels, (given, problems) in read)
        if self.rows is None:  # A run of no steps needs none.
            return iter(())
        draws = DrawSampler(run, len(self.rows), process, processes, first)
        return in_background(map(partial(self._batch, self.rows), draws))

    def _batch(
        self, rows: Sequences, draws: Sequence[Draw]
    ) -> tuple[dict[str, Tensor], Mapping[str, str]]:
        numbers = [number for number, _ in draws]
        return {"sequence": rows.rows(numbers), **self._given(rows, numbers)}, {}

    def _read(self, draws: Sequence[Draw]) -> tuple[Pixels, Any]:
        """Training images, and their condition with the unreadable ones."""
        problems: dict[str, str] = {}
        wanted, seeds = ([draw[part] for draw in draws] for part in (0, 1))
        kept, pixels = read(self.training, wanted, seeds, problems)
        if not kept:
            raise none_readable(problems, "images of a batch")
        numbers = [draws[place][0] for place in kept]
        given: dict[str, Tensor] = {}
        if self.classes:
            labels = [self.training.label(number) for number in numbers]
            given["condition"] = torch.tensor([-1 if each is None else each for each in labels])
        if self.vectors:
            given["condition"] = self.vectors.of([self.training.name(number) for number in numbers])
        return pixels, (given, problems)

    def _given(self, rows: Sequences, numbers: Sequence[int]) -> dict[str, Tensor]:
        """The condition of some rows, if the prior has one."""
        if self.vectors:
            return {"condition": self.vectors.of([rows.names[number] for number in numbers])}
        if self.classes and rows.labels is not None:
            return {"condition": rows.labels[list(numbers)]}
        return {}

    def losses(self, batch: dict[str, Tensor], step: int) -> Pass:
        """The prior's loss on a batch."""
        run, device = self.run, self.accelerator.device
        given = {name: each.to(device, non_blocking=True) for name, each in batch.items()}
        sequence = given.get("sequence")
        if sequence is None:
            images = from_pixels(given["pixels"])
            sequence = self.layout.flatten(self.tokenizer.encode(images))
        model = cast("Fit", self.learner.module).model
        if hasattr(model, "progress"):
            model.progress(step / max(1, run.steps))
        # From torch's generator, which the trainer seeds in every step.
        seed = int(torch.randint(2**31, ()))
        with self.accelerator.autocast():
            loss = self.learner.model(sequence, given.get("condition"), seed)
        return Pass({"nats": loss.float()}, {}, len(sequence))

    def after(self, passed: Pass, step: int, last: bool) -> tuple[dict[str, Tensor], bool]:
        """Nothing: the prior is the only learner."""
        return {}, True

    def fullest(self, step: int) -> int | None:
        """None: all steps need the same."""
        return None

    def count(self, passes: Sequence[Pass], taken: bool) -> None:
        """Nothing is counted."""

    def row(self, step: int) -> dict[str, Any]:
        """No further entries."""
        return {}

    def validate(self, step: int) -> Validation:
        """Nats and bits of held-out images, and images drawn with the same seeds each time."""
        with eager(self.run.compile):
            figures = self._likelihood()
        loss = figures["nats"]
        if self.run.keep_best and loss < self.best.get("loss", float("inf")):
            weights = {name: each.clone() for name, each in distinct_state(self.final).items()}
            self.best = {"loss": loss, "step": step, "weights": weights}
        turns = " of the classes in turn" if self.classes else ""
        words = f"step {step}: {self.run.shown} drawn images{turns}; held-out loss {loss:.3f} nats"

        def draw() -> dict[str, Pixels]:
            if not self.run.shown:
                return {}
            with eager(self.run.compile):
                return {"samples": captioned(picture_grid(self._drawn()), words)}

        return Validation({"validation": figures}, draw)

    def _likelihood(self) -> dict[str, Any]:
        found = Likelihood(self.layout, self.run.size, self.tokenizer.bits_per_pixel)
        size, process = self.run.batch_size, self.accelerator.process_index
        model = self.final.model.eval()
        device = self.accelerator.device
        with failing_together(), torch.no_grad():
            for start in range(
                process * size, len(self.heldout_rows), size * self.accelerator.num_processes
            ):
                numbers = range(start, min(start + size, len(self.heldout_rows)))
                condition = self._given(self.heldout_rows, numbers).get("condition")
                sequence = self.heldout_rows.rows(numbers).to(device)
                found.add(model.nats(sequence, None if condition is None else condition.to(device)))
        found.sums = all_sum(found.sums)
        return {**found.figures(), "exact": bool(model.exact)}

    def _drawn(self) -> Tensor:
        count = self.run.shown
        given: dict[str, Any] = {}
        if self.classes:
            given["classes"] = [number % len(self.classes) for number in range(count)]
        if self.vectors:
            names = self.heldout_rows.names
            given["vectors"] = self.vectors.of([names[n % len(names)] for n in range(count)])
        return self._prior(self.final.model).generate(count, **given)

    def _prior(self, model: nn.Module | None = None) -> Prior:
        """A prior with a model, or with a new one."""
        length, channels = (self.vectors.length, self.vectors.channels) if self.vectors else (0, 0)
        run = self.run
        return Prior(
            run.prior, self.tokenizer, run.size, self.classes, length, channels, model
        ).eval()

    def problems(self) -> dict[str, str]:
        """The images that could not be read so far in this process, each with the reason."""
        found = {**self.training.problems, **self.heldout.problems}
        for rows in (getattr(self, "rows", None), getattr(self, "heldout_rows", None)):
            found |= rows.tokens.table.get("unreadable", {}) if rows else {}
        return found

    def save(self, path: Path, step: int) -> None:
        """Write the prior, and its tokenizer beside it."""
        run, final, at = self.run, self.final, step
        if self.run.keep_best and self.best:
            final, at = deepcopy(final), self.best["step"]
            final.load_state_dict(self.best["weights"], strict=False)
        prior = self._prior(final.model)
        prior.facts = {
            "step": at,
            "seed": run.seed,
            "resolution": run.resolution.plain,
            "fingerprint": self.training.fingerprint,
            "labels": run.labels,
            "data": settings_of(run, local=False)["data"],
            **values_fact(self.training),
        }
        save_prior(prior, path)

    def state(self) -> dict[str, Any]:
        """The best weights so far, if they are kept."""
        return {"best": self.best}

    def load(self, state: Mapping[str, Any]) -> None:
        """Put back the best weights."""
        self.best = dict(state["best"])


def train_prior(
    tokenizer: str | os.PathLike[str],
    settings: Mapping[str, Any] | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    data: Any = None,
    presets: str | None = None,
    on_row: Callable[[Mapping[str, Any]], object] | None = None,
    resume: bool = False,
) -> Prior:
    """Train a prior over the indices of a tokenizer as `genkit train-prior` does, and return it.

    `tokenizer` is a run directory, a file or an address on the hub. The other arguments are
    the same as of `genkit.train`; without `data`, the images are the tokenizer's training images.
    """
    directory = called(
        PriorTask,
        PriorRun,
        {**(settings or {}), "tokenizer": location_of(tokenizer)},
        presets=presets,
        out=out,
        data=data,
        on_row=on_row,
        resume=resume,
    )
    return load_prior(directory)


def _tokenizer(run: PriorRun, directory: Path) -> Tokenizer:
    """The tokenizer that the run directory keeps, or at first the one that the run names."""
    kept = directory / TOKENIZER
    if not run.tokenizer and not kept.is_file():
        raise OptionError("name the tokenizer: genkit train-prior TOKENIZER")
    return load(kept if kept.is_file() else run.tokenizer).requires_grad_(False)


def _hash(data: str, tokenizer: str, labels: str, vectors: Vectors | None) -> str:
    """An identity of the training data: images, tokenizer and conditions."""
    digest = hashlib.sha256(f"{data}\n{tokenizer}\n{labels}".encode())
    if vectors:
        with vectors.path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"prior:{digest.hexdigest()}"
