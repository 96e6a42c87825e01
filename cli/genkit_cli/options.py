"""Click options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from genkit.devices import PRECISIONS
from genkit.files import printable
from genkit.tokens import IMAGE_FORMATS, SHARD_SIZE, TILE
from genkit_cli.complete import of_kind
from genkit_cli.explain import Option
from genkit_cli.messages import note
from genkit_cli.terminal import left_out

if TYPE_CHECKING:
    from genkit.evaluation.measurement import Measurement
    from genkit.evaluation.prior import PriorMeasurement
    from genkit.tokenizer import Tokenizer

_MOST_TOLD = 20
# Other tools' names of --out.
OUT = ("output", "output_dir", "out_dir", "output_path", "save_dir", "outdir", "output_file")
# A function from a command to the command with more options.
Decorator = Callable[[Any], Any]

data_option = click.option(
    "--data",
    cls=Option,
    also=("data_dir", "data_path", "dataset", "dataset_name"),
    kind="dataset",
    shell_complete=of_kind("dataset", or_files=True),
    metavar="NAME_OR_FOLDER",
    help="Data set to measure on. [held-out images of the training data]",
)


def resolution_option(default: str = "as in training") -> Decorator:
    """The `--resolution` option of a command that reads images for a model."""
    return click.option(
        "--resolution",
        cls=Option,
        also=("image_size", "img_size", "size"),
        metavar="N|HxW|native",
        help="Size that images are resized and cropped to, such as 64 or 128x256; native keeps "
        f"them whole. [{default}]",
    )


def batch_size_option(default: int) -> Decorator:
    """The `--batch-size` option of a command that does not train."""
    return click.option(
        "--batch-size",
        cls=Option,
        also=("bs", "eval_batch_size"),
        type=click.IntRange(1),
        default=default,
        metavar="N",
        help=f"Images per batch. [{default}]",
    )


def processes_option(what: str) -> Decorator:
    """The `--processes` option of a command that several processes can share."""
    return click.option(
        "--processes",
        cls=Option,
        also=("num_processes", "nproc_per_node", "gpus"),
        metavar="N",
        type=click.IntRange(1),
        default=1,
        help=f"Number of {what} on this machine. [1]",
    )


def format_option(formats: Sequence[str], help: str) -> Decorator:
    """The `--format` option of a command that writes many images; the first one is the default."""
    text = f"{help} [{formats[0]}]"
    return click.option("--format", type=click.Choice(formats), default=formats[0], help=text)


def image_format_option(arrays: str) -> Decorator:
    """The `--format` option of a command that writes images; `arrays` says what npy gives."""
    return click.option(
        "--format",
        type=click.Choice(IMAGE_FORMATS),
        help=f"A png or tiff per image, or npy: {arrays}. All are in the units of the model's "
        "training images. [the first that holds them]",
    )


def tell_format(format: str | None, tokenizer: Tokenizer) -> str:
    """Words on the format of images' files that the command chose, unless that is png."""
    from genkit.pictures import chosen_format

    chosen = chosen_format(format, tokenizer.channels, tokenizer.values)
    if format or chosen == "png":
        return ""
    return (
        f" as {chosen}, because PNG does not hold {tokenizer.channels} channels of "
        f"{tokenizer.values.type}"
    )


def shard_size_option(help: str) -> Decorator:
    """The `--shard-size` option of a command that writes many images."""
    return click.option(
        "--shard-size",
        metavar="N",
        type=click.IntRange(1),
        default=SHARD_SIZE,
        help=f"{help} [{SHARD_SIZE}]",
    )


def all_of(*options: Decorator) -> Decorator:
    """One decorator that adds several options to a command, in the order of its help."""
    return lambda command: functools.reduce(
        lambda inner, option: option(inner), reversed(options), command
    )


computing = all_of(
    click.option(
        "--device",
        cls=Option,
        also=("gpu=cuda", "cuda=cuda", "cpu=cpu", "mps=mps", "no_cuda=cpu"),
        metavar="NAME",
        help="Device to compute on: cpu, cuda, cuda:1, mps, … [the accelerator, else the CPU]",
    ),
    click.option(
        "--mixed-precision",
        cls=Option,
        also=("fp16=fp16", "bf16=bf16", "amp=bf16", "precision", "dtype"),
        type=click.Choice(PRECISIONS),
        default="no",
        help="Precision of encoder and decoder; quantizers stay in float32. [no]",
    ),
)


# How commands take images that are larger than a tile.
tiling = all_of(
    click.option(
        "--tile",
        metavar="N",
        type=click.IntRange(0),
        default=None,
        help="Side in pixels of the overlapping tiles of larger images, which bound the memory; 0 "
        f"takes all images whole. [{TILE}, or 0 for networks that see the whole image]",
    ),
    click.option(
        "--approximate-tiles",
        is_flag=True,
        help="Tiles also for networks that see the whole image, with changed indices and blended "
        "seams.",
    ),
)


def tell_left_out(images: Any) -> None:
    """Print on stderr what is left out of images by cropping, and which files are not read."""
    for text in (getattr(images, "cropping", ""), getattr(images, "passed_over", "")):
        if text:
            note(text)


def tell_problems(problems: Mapping[str, str]) -> None:
    """Print on stderr which files are left out, with the reasons; the first ones of many."""
    for name, reason in list(problems.items())[:_MOST_TOLD]:
        note(printable(f"{name} is left out: {reason}"))
    if len(problems) > _MOST_TOLD:
        note(f"… and {len(problems) - _MOST_TOLD} more.")


# The options of several commands for the arguments of `Measurement`.
measuring = all_of(
    data_option,
    click.option(
        "--split",
        type=click.Choice(["train", "heldout", "all"]),
        help="Split of the data set. [held-out images of the training data, all of others]",
    ),
    click.option(
        "--images",
        cls=Option,
        also=("num_images", "num_samples", "limit"),
        type=click.IntRange(1),
        metavar="N",
        help="Maximum number of images. [all]",
    ),
    resolution_option(),
    batch_size_option(16),
    click.option(
        "--exact",
        is_flag=True,
        help="Compute one image at a time; figures then do not depend on --batch-size.",
    ),
    click.option(
        "--distances",
        "metrics",
        flag_value="distances",
        multiple=True,
        help="Also print the distances FD, KID, precision and recall of the reconstructions. "
        "Options: --metric 'distances?features=timm:MODEL&…'.",
    ),
    click.option(
        "--metric",
        "metrics",
        cls=Option,
        kind="metric",
        multiple=True,
        shell_complete=of_kind("metric"),
        metavar="NAME[?OPTION=VALUE&…]",
        help="Additional metric; may be repeated. `genkit components metric` lists them.",
    ),
    computing,
)


def tell_notes(measurement: Measurement | PriorMeasurement) -> None:
    """Print the measurement's notes on stderr."""
    for each in measurement.notes:
        note(each)


def notes_of(record: Mapping[str, Any]) -> list[str]:
    """The sentences of a record's metrics, each once."""
    notes = (entry.get("note") for entry in record.get("metrics", {}).values())
    return list(dict.fromkeys(each for each in notes if isinstance(each, str)))


def tell_unreadable(record: dict[str, Any], where: str = "") -> None:
    """Print on stderr how many files were skipped as unreadable, if any."""
    if problems := record.get("unreadable"):
        note(f"{where}{left_out(len(problems))}; the first is {printable(next(iter(problems)))}.")


def out_option(metavar: str, help: str, required: bool = True) -> Decorator:
    """The `--out` option of a command that writes files."""
    kind = click.Path(path_type=Path)
    return click.option(
        "--out",
        cls=Option,
        also=OUT,
        required=required,
        callback=_named,
        type=kind,
        metavar=metavar,
        help=help,
    )


def _named(context: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    """Refuse an empty `--out`, which usually comes from an unset shell variable."""
    if value == Path():
        raise click.UsageError(f"--{parameter.name} is empty; is a variable unset?")
    return value
