"""The files that publish a prior: its weights, its tokenizer and a model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from genkit import cards
from genkit.checkpoint.inspect import codebook_text, inspect, inspect_tokenizer
from genkit.errors import CheckpointError
from genkit.files import CONFIG, MODEL, TOKENIZER, is_file
from genkit.run.prior import PriorRun
from genkit.run.toml import read_config
from genkit.settings import resolve, settings_of

_CARD = """---
{head}
---

# {title}

A prior made with genkit: it draws new images as indices of an image tokenizer, whose file is here
as well.
{samples}
## Use

```python
import genkit
prior = genkit.load_prior("hf://{name}")
images = prior.generate(16, seed=0{argument})  # [16, {channels}, {height}, {width}] in [-1, 1]
```

```sh
genkit sample hf://{name} --number 16{flag} --out pictures
```

{condition}It needs {needs}.

## Figures

{figures}

## Levels of the tokenizer

{levels}

## Components

{components}

{parameters:,} parameters in the prior, {tokenizer:,} in the tokenizer.{config}
"""


def prior_files(run: str, name: str) -> dict[str, Path | bytes]:
    """The files, by name, that publish the prior `run` as `name`, as `repository` says."""
    info = inspect(run)
    model = Path(info["file"])
    beside = model.with_name(TOKENIZER)
    if not is_file(beside):
        raise CheckpointError(f"'{model}' is a prior without its tokenizer: '{beside}' is missing")
    tokenizer = inspect_tokenizer(beside)
    files: dict[str, Path | bytes] = {MODEL: model, TOKENIZER: beside}
    row: Mapping[str, Any] = {}
    config = ""
    if Path(run).is_dir():
        # The figures of the weights, which may be from an earlier step than the last.
        row = cards.last_validation(Path(run, "metrics.jsonl"), info["training"].get("step"))
        if last := cards.last_picture(Path(run, "samples")):
            files["samples.png"] = last
        if is_file(Path(run, CONFIG)):
            options = resolve(PriorRun, read_config(Path(run, CONFIG)))
            settings = settings_of(options, local=False)
            files[CONFIG] = tomli_w.dumps(settings).encode()
            local = set(cards.left_out(settings_of(options), settings))
            needed = cards.given(sorted(local - {"tokenizer", "cache_tokens", "device"}))
            config = (
                f" [`{CONFIG}`]({CONFIG}) holds every option; `genkit train-prior {TOKENIZER} "
                f"--config {CONFIG}` repeats the run, given the data{needed}."
            )
    files["README.md"] = _card(name, info, tokenizer, row, files, config).encode()
    return files


def _card(
    name: str,
    info: Mapping[str, Any],
    tokenizer: Mapping[str, Any],
    row: Mapping[str, Any],
    files: Mapping[str, Any],
    config: str,
) -> str:
    parts = {**info["components"], **tokenizer["components"]}
    needs = " and ".join(f"`{each}`" for each in sorted(cards.distributions(parts)))
    height, width = info["prior"]["size"]
    classes, length = info["prior"]["classes"], info["prior"]["length"]
    argument = flag = condition = ""
    if classes:
        argument, flag = f", classes=[{classes[0]!r}] * 16", " --classes 0"
        condition = f"It was trained with {len(classes)} classes: {_listed(classes)}. "
    elif length:
        argument, flag = ", vectors=vectors", " --condition FILE"
        condition = (
            f"It was trained with vectors `[T, {info['prior']['channels']}]` of each image, T at "
            f"most {length}. "
        )
    return _CARD.format(
        head=_head(name, info, row),
        name=name,
        title=name.partition("/")[2],
        samples=f"\n![Images that the prior drew](samples.png)\n\n*Images that the prior "
        f"drew{cards.at(files['samples.png'])}.*\n"
        if "samples.png" in files
        else "",
        argument=argument,
        flag=flag,
        channels=tokenizer["channels"],
        height=height,
        width=width,
        condition=condition,
        needs=needs or "genkit",
        figures=_figures(name, info, row),
        levels=_levels(tokenizer["levels"], row.get("validation", {}).get("levels", [])),
        components=cards.table(
            ["part", "component", "options"],
            [[kind, *cards.component(part)] for kind, part in parts.items()],
        ),
        parameters=info["parameters"]["total"],
        tokenizer=tokenizer["parameters"]["total"],
        config=config,
    )


def _head(name: str, info: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """The metadata of a card, with the bits per pixel for the hub to read."""
    figures = row.get("validation", {})
    data = (info["training"].get("data") or {}).get("name", "unknown")
    known = [(key, _bits(figures), figures[key]) for key in ("bits_per_pixel",) if key in figures]
    return cards.head(name, "image-generation", f"{data}, held-out images at {_size(info)}", known)


def _figures(name: str, info: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """The bits per pixel with and without the prior, and what they were measured on."""
    if not (figures := row.get("validation")):
        return f"None are stored; `genkit evaluate hf://{name} --data FOLDER` measures them."
    data, step = info["training"].get("data") or {}, info["training"].get("step")
    weights = "" if step == row["step"] else f" The weights are from step {step}."
    table = cards.table(
        [_bits(figures), "without the prior", "nats per index"],
        [
            [
                cards.number(figures["bits_per_pixel"], 3),
                cards.number(figures["plain_bits_per_pixel"], 3),
                cards.number(figures["nats"], 3),
            ]
        ],
    )
    return (
        f"{table}\n\nThe validation at step {row['step']}: {figures['images']} held-out images of "
        f"the data set `{data.get('name', 'unknown')}` at {_size(info)} pixels.{weights} Bits per "
        "pixel of another tokenizer compare only if its reconstructions are as good."
    )


def _levels(levels: list[Mapping[str, Any]], figures: list[Mapping[str, Any]]) -> str:
    rows = []
    for index, level in enumerate(levels):
        row = [str(index), f"{level['stride']} x {level['stride']} px", codebook_text(level)]
        if figures:
            measured = figures[index]
            row += [" x ".join(map(str, measured["grid"]))]
            row += [cards.number(measured[key], 3) for key in ("bits_per_pixel", "nats")]
        rows.append(row)
    further = ["grid", "bits per pixel", "nats per index"] if figures else []
    return cards.table(["level", "a latent covers", "codes", *further], rows)


def _bits(figures: Mapping[str, Any]) -> str:
    return "bits per pixel" + ("" if figures.get("exact", True) else " (upper bound)")


def _size(info: Mapping[str, Any]) -> str:
    return " x ".join(map(str, info["prior"]["size"]))


def _listed(classes: list[str]) -> str:
    return ", ".join(classes[:20]) + (" …" if len(classes) > 20 else "")
