"""Generation compared at equal training time: levels, codebooks, and priors.

    python -m benchmarks generation --landscapes FOLDER --weights FILE --minutes 5

Each tokenizer and each prior trains for the same minutes on one thread; the number of steps is
measured first. `--landscapes` is a folder of photographs, which training crops. Samples are
compared with training images by the features of a timm model, whose weights are in `--weights`.
Fills in docs/generation.md.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import click

from benchmarks.jobs import fill, table

Settings = dict[str, Any]

PAGE = Path(__file__).parent.parent / "docs" / "generation.md"
# Levels, the finest with the stride 4; each has 512 codes for a place.
_ENCODER: Settings = {"name": "aren", "attention": "pixel"}
TOKENIZERS: dict[str, Settings] = {
    "two levels": {"encoder": {**_ENCODER, "levels": 2}},
    "one level": {"encoder": {**_ENCODER, "levels": 1}},
    "one level, 4 residual codebooks": {
        "encoder": {**_ENCODER, "levels": 1, "strides": [8]},
        "quantizer": {"name": "residual-vq", "codebooks": 4, "codebook_size": 512},
    },
}
PRIORS: dict[str, Settings] = {
    "autoregressive": {"prior": "autoregressive"},
    "masked": {"prior": "masked"},
}
# Steps that measure the time of a step.
_PROBE = 20


class Case(NamedTuple):
    """A tokenizer, the priors over it, and how long each trains, in seconds."""

    data: Settings
    name: str
    tokenizer: Settings
    priors: Mapping[str, Settings]
    seconds: float
    samples: int
    metric: str
    out: Path


def cases(data: Settings, seconds: float, samples: int, metric: str, out: Path) -> list[Case]:
    """Every tokenizer with the autoregressive prior, the first one with the masked prior too."""
    return [
        Case(
            data,
            name,
            settings,
            PRIORS if not number else dict(list(PRIORS.items())[:1]),
            seconds,
            samples,
            metric,
            out / name.replace(" ", "-").replace(",", ""),
        )
        for number, (name, settings) in enumerate(TOKENIZERS.items())
    ]


def measured(case: Case) -> list[dict[str, Any]]:
    """The figures of a case, one entry per prior; finished parts are not repeated."""
    import torch

    import genkit

    torch.set_num_threads(1)
    common = {"data": case.data, "mixed_precision": "bf16", "checkpoint_every": 10**6}
    tokenizer = case.out / "tokenizer"
    if not (tokenizer / "model.safetensors").is_file():
        settings = {**common, **case.tokenizer, "validation_images": 64}
        steps = _steps(
            lambda run, **more: genkit.train({**settings, **run}, out=case.out / "probe", **more),
            case,
        )
        genkit.train({**settings, "steps": steps, "validate_every": 10**6}, out=tokenizer)
    found = []
    for name, chosen in case.priors.items():
        directory = case.out / name
        done = directory / "figures.json"
        if not done.is_file():
            _train_prior(case, tokenizer, directory, {**common, **chosen})
            done.write_text(json.dumps(_figures(case, directory)), encoding="utf-8")
        found.append({"tokenizer": case.name, "prior": name, **json.loads(done.read_text())})
    return found


def _train_prior(case: Case, tokenizer: Path, directory: Path, settings: Settings) -> None:
    import genkit

    settings = {**settings, "cache_tokens": str(case.out / "tokens"), "shown": 16}
    # Encoded once for all priors of the tokenizer, and not part of their time.
    probe = case.out / f"probe-{directory.name}"
    steps = _steps(
        lambda run, **more: genkit.train_prior(tokenizer, {**settings, **run}, out=probe, **more),
        case,
    )
    settings |= {"steps": steps, "validate_every": steps, "validation_images": 32}
    genkit.train_prior(tokenizer, settings, out=directory)


def _steps(train: Callable[..., Any], case: Case) -> int:
    """The number of steps in the time of a case."""
    times: list[float] = []
    quick = {"steps": _PROBE, "log_every": 1, "validate_every": 10**6}
    train(quick, on_row=lambda row: times.append(time.process_time()))
    each = (times[-2] - times[_PROBE // 2]) / (len(times) - 2 - _PROBE // 2)
    return max(_PROBE, round(case.seconds / each))


def _figures(case: Case, directory: Path) -> dict[str, Any]:
    import genkit
    from genkit.evaluation.prior import PriorMeasurement

    prior = genkit.load_prior(directory)
    start = time.process_time()
    prior.sample(32, seed=1)
    seconds = (time.process_time() - start) / 32
    record = PriorMeasurement(
        str(directory), images=128, samples=case.samples, metrics=[case.metric]
    ).record()
    return {"record": record, "seconds": seconds, "steps": prior.facts["step"]}


def rows(found: list[dict[str, Any]]) -> list[list[str]]:
    """The rows of a table of figures."""
    result = []
    for each in found:
        record = each["record"]
        bound = "" if record["exact"] else "≤ "
        result.append(
            [
                f"{each['tokenizer']}, {each['prior']}",
                f"{record['psnr']:.2f}",
                f"{record['plain_bits_per_pixel']:.3f}",
                f"{bound}{record['bits_per_pixel']:.3f}",
                f"{record['distances_kid']:.4f} ± {record['distances_kid_error']:.4f}",
                f"{each['seconds']:.3f}",
                str(each["steps"]),
            ]
        )
    return result


HEAD = (
    "tokenizer and prior",
    "PSNR, dB",
    "plain bits/pixel",
    "bits/pixel",
    "KID of samples",
    "s/image",
    "steps of the prior",
)


@click.command(help=__doc__)
@click.option("--landscapes", type=click.Path(path_type=Path), help="Folder of photographs.")
@click.option("--weights", required=True, help="File with the weights of MobileNetV2.")
@click.option("--minutes", type=float, default=3.0, show_default=True, help="Time of each part.")
@click.option("--samples", type=int, default=512, show_default=True, help="Images drawn.")
@click.option("--jobs", type=int, default=1, show_default=True, help="Parts at a time.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/generation"), show_default=True
)
def main(
    landscapes: Path | None, weights: str, minutes: float, samples: int, jobs: int, out: Path
) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    metric = f"distances?features=timm:mobilenetv2_100&features.weights={weights}&figures=kid"
    sets: dict[str, Settings] = {"faces": {"name": "faces"}}
    if landscapes:
        crops = {"short_side": 128, "crops": 8}
        sets["landscapes"] = {"name": "folder", "location": str(landscapes.resolve()), **crops}
    for name, data in sets.items():
        planned = cases(data, 60 * minutes, samples, metric, out / name)
        with ProcessPoolExecutor(
            jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1
        ) as pool:
            found = [row for part in pool.map(measured, planned) for row in part]
        fill(PAGE, f"compare-{name}", table(HEAD, rows(found)))
        click.echo(f"{PAGE}: {name} is filled in")


if __name__ == "__main__":
    main()
