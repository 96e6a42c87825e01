"""The files that publish a model: its weights and a model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from genkit import cards
from genkit.checkpoint.hub import LOG_IN, answer, is_address, one_attempt, unreachable
from genkit.checkpoint.inspect import codebook_text, inspect_tokenizer
from genkit.checkpoint.metadata import holds_prior
from genkit.errors import GenkitError
from genkit.evaluation.figures import shown
from genkit.files import CONFIG, MODEL
from genkit.publish_prior import prior_files
from genkit.run.options import resolve_run
from genkit.run.toml import read_config
from genkit.settings import settings_of

_METRICS = {
    "psnr": "PSNR",
    "ssim": "SSIM",
    "mae": "MAE",
    "mae_over_variance": "MAE / variance",
    "bits_per_pixel": "bits per pixel",
}
_CARD = """---
{head}
---

# {title}

An image tokenizer made with genkit: it turns pictures into indices of a codebook, and back.
{samples}
## Use

```python
import genkit
tokenizer = genkit.load("hf://{name}")
# Images are [B, {channels}, H, W] in [-1, 1]; indices are one tensor per level, finest first.
images = genkit.open_images("picture.png", tokenizer)
indices = tokenizer.encode(images)
images = tokenizer.decode(indices)
```

Height and width are multiples of {stride}. {values}It needs {needs}.

## Figures

{figures}
{codes}
## Levels

{levels}

## Components

{components}

{parameters:,} parameters.{config}
{origin}"""


def repository(run: str, name: str) -> dict[str, Path | bytes]:
    """The files, by name, that publish the checkpoint `run` as `name`.

    For a run directory they are the model, its options without local paths, the last pictures, and
    a card with the figures of the last validation. For a model file they are the model and a card
    made from its metadata. A prior comes with its tokenizer. Raises `CheckpointError` for anything
    else.
    """
    if is_address(run):
        raise GenkitError(f"'{run}' is already published: name a run directory or a model file")
    if holds_prior(run):
        return prior_files(run, name)
    info = inspect_tokenizer(run)
    files: dict[str, Path | bytes] = {MODEL: Path(info["file"])}
    row: Mapping[str, Any] = {}
    local: list[str] = []
    directory = Path(run)
    if directory.is_dir():
        row = cards.last_validation(directory / "metrics.jsonl")
        for kind in ("samples", "codes"):
            if last := cards.last_picture(directory / kind):
                files[f"{kind}.png"] = last
        if (config := directory / CONFIG).is_file():
            run_options = resolve_run(read_config(config))
            settings = settings_of(run_options, local=False)
            local = cards.left_out(settings_of(run_options), settings)
            files[CONFIG] = tomli_w.dumps(settings).encode()
    files["README.md"] = _card(name, info, row, files, local).encode()
    return files


def _card(
    name: str,
    info: Mapping[str, Any],
    row: Mapping[str, Any],
    files: Mapping[str, Any],
    local: Sequence[str],
) -> str:
    needs = " and ".join(f"`{each}`" for each in sorted(cards.distributions(info["components"])))
    return _CARD.format(
        head=_head(name, info["training"], row),
        name=name,
        title=name.partition("/")[2],
        samples="\n![Held-out images over their reconstructions](samples.png)\n\n"
        f"*Held-out images over their reconstructions{cards.at(files['samples.png'])}.*\n"
        if "samples.png" in files
        else "",
        channels=info["channels"],
        values=_values(info["training"]),
        stride=info["levels"][-1]["stride"],
        needs=needs or "genkit",
        figures=_figures(name, info["training"], row),
        codes="\n![How often each code is used](codes.png)\n" if "codes.png" in files else "",
        levels=_levels(info["levels"], row.get("validation", {}).get("levels", [])),
        components=cards.table(
            ["part", "component", "options"],
            [[kind, *cards.component(part)] for kind, part in info["components"].items()],
        ),
        parameters=info["parameters"]["total"],
        config=f" [`{CONFIG}`]({CONFIG}) holds every option; `genkit train --config {CONFIG}` "
        f"repeats the run, given the data{cards.given(local)}."
        if CONFIG in files
        else "",
        origin=_origin(info["training"]),
    )


def _origin(training: Mapping[str, Any]) -> str:
    """Where the weights of an imported or fine-tuned tokenizer came from."""
    started = training.get("from") or {}
    imported = training.get("imported") or started.get("imported")
    lines = []
    if imported:
        lines.append(
            f"Imported from `{imported['source']}` (family {imported['family']}, "
            f"{imported['format']}, SHA-256 `{imported['sha256']}`). "
            f"Licence of the published weights: {imported['licence']}."
        )
    if started:
        lines.append(
            f"Fine-tuned from the weights with the fingerprint `{started['fingerprint']}`."
        )
    return "\n## Origin\n\n" + "\n\n".join(lines) + "\n" if lines else ""


def _head(name: str, training: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """The metadata of a card; the hub reads the figures of the last validation from it."""
    figures, data = row.get("validation", {}), (training.get("data") or {}).get("name", "unknown")
    size = cards.size(training.get("resolution"))
    known = [
        (key, metric, figures[key])
        for key, metric in _METRICS.items()
        if figures.get(key) is not None
    ]
    return cards.head(name, "image-tokenizer", f"{data}, held-out images at {size}", known)


def _values(training: Mapping[str, Any] | None) -> str:
    """A sentence on the values of originals with more than 8 bits."""
    values = (training or {}).get("values")
    if not values:
        return ""
    low, high = values["range"]
    return f"The originals are {values['type']}, from {low:g} to {high:g}. "


def _figures(name: str, training: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """The figures of the last validation, and what they were measured on."""
    if not (figures := row.get("validation")):
        return f"None are stored; `genkit evaluate hf://{name} --data FOLDER` measures them."
    data = training.get("data") or {}
    options = ", ".join(
        f"{key} {cards.text(value)}" for key, value in data.items() if key != "name"
    )
    size, step = cards.size(training.get("resolution")), training.get("step")
    weights = "" if step == row["step"] else f" The weights are from step {step}."
    metrics = {key: how for key, how in shown(figures).items() if key in figures}
    table = cards.table(
        [*(how.label for how in metrics.values()), "bits per pixel"],
        [
            [
                *(how.text(figures[key]) for key, how in metrics.items()),
                cards.number(figures.get("bits_per_pixel"), 3),
            ]
        ],
    )
    return (
        f"{table}\n\nThe last validation, at step {row['step']}: {figures['images']} held-out "
        f"images of the data set `{data.get('name', 'unknown')}` at {size} pixels"
        f"{f' ({options})' if options else ''}.{weights} Pixels are on [0, 1], reconstructions "
        "clamped; PSNR and SSIM are means over images."
    )


def _levels(levels: list[Mapping[str, Any]], used: list[Mapping[str, Any]]) -> str:
    rows = []
    for index, level in enumerate(levels):
        row = [str(index), f"{level['stride']} x {level['stride']} px", codebook_text(level)]
        if used:
            use = used[index]
            row += [f"{use['active']} ({use['usage']:.1%})", f"{use['perplexity']:.1f}"]
        rows.append(row)
    head = ["level", "a latent covers", "codes"]
    return cards.table(head + ["in use", "perplexity"] * bool(used), rows)


def upload(files: Mapping[str, Path | bytes], name: str, private: bool = False) -> str:
    """Commit `files` to the hub's repository `name`, created if needed; returns its web address.

    Raises `GenkitError` if the hub or the network fails, or if the repository should be `private`
    but already exists and is public.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    if get_token() is None:
        raise GenkitError(f"publishing on the hub needs a login: {LOG_IN}")
    folder = f"`genkit push RUN {name} --folder DIR` writes the files to a folder instead"
    with one_attempt() as reached:
        pass
    if not reached:
        raise GenkitError(f"{unreachable()}: {folder}")
    api = HfApi(library_name="genkit")
    try:
        # None instead of False: an organization may make new repositories private by default.
        url = api.create_repo(name, private=private or None, exist_ok=True)
        if private and not api.model_info(name).private:
            raise GenkitError(
                f"'{name}' already exists and is public: make it private on its page, {url}, or "
                "choose another name"
            )
        operations = [
            CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
            for path, content in files.items()
        ]
        api.create_commit(name, operations, commit_message="Push with genkit")
    except GenkitError:
        raise
    except Exception as error:  # Includes errors of whichever HTTP client the hub's library uses.
        # A failed upload of one file comes wrapped in a RuntimeError.
        cause = error.__cause__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, HfHubHTTPError):
            raise GenkitError(
                f"the hub does not let you write to '{name}': {answer(cause)}; check the owner's "
                f"name, and {LOG_IN} that may write"
            ) from error
        raise GenkitError(f"'{name}' was not pushed: {cause or error}; {folder}") from error
    return str(url)
