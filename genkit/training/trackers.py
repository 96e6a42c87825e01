"""Experiment trackers, such as TensorBoard and Weights & Biases, through Accelerate's classes."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, TensorBoardTracker
from torch import Tensor

from genkit.errors import OptionError
from genkit.files import write_text
from genkit.images import Pixels, to_picture
from genkit.run.metrics import flat
from genkit.run.options import TrainingOptions
from genkit.settings import settings_of

# Environment variables of trackers: for their place, the project and the name of a run.
_PLACE = {
    "wandb": "WANDB_DIR",
    "trackio": "TRACKIO_DIR",
    "swanlab": "SWANLAB_LOG_DIR",
    "mlflow": "MLFLOW_TRACKING_URI",
    "comet_ml": "COMET_OFFLINE_DIRECTORY",
}
_PROJECT = {
    "wandb": "WANDB_PROJECT",
    "swanlab": "SWANLAB_PROJ_NAME",
    "mlflow": "MLFLOW_EXPERIMENT_NAME",
    "comet_ml": "COMET_PROJECT_NAME",
}
_TITLE = {"wandb": "WANDB_NAME", "swanlab": "SWANLAB_EXP_NAME"}
# The identity of a tracker's run, needed to continue it.
_IDENTITY: dict[str, Callable[[Any], str]] = {
    "wandb": lambda run: run.id,
    "trackio": lambda run: run.id,
    "swanlab": lambda run: run.id,
    "mlflow": lambda run: run.info.run_id,
    "aim": lambda run: run.hash,
    "comet_ml": lambda run: run.get_key(),
}


class Trackers:
    """The trackers of a run by name; all processes but the first have none."""

    def __init__(self, started: Mapping[str, Any]) -> None:
        self.started = started

    def log(self, row: Mapping[str, Any], step: int) -> None:
        """Send the numbers of a row of metrics."""
        for tracker in self.started.values():
            tracker.log(flat(row), step=step)

    def picture(self, kind: str, picture: Pixels, step: int) -> None:
        """Send a picture to the trackers that take some."""
        image = to_picture(picture).convert("RGB")
        for name, tracker in self.started.items():
            if name == "tensorboard":
                tracker.log_images({kind: np.asarray(image)[None]}, step, dataformats="NHWC")
            elif name == "aim":
                tracker.log_images({kind: image}, step)
            elif hasattr(tracker, "log_images"):
                tracker.log_images({kind: [image]}, step)

    def histogram(self, name: str, values: Tensor, step: int) -> None:
        """Send the distribution of some values to the trackers that take one."""
        if tracker := self.started.get("tensorboard"):
            tracker.tracker.add_histogram(name, values, step)
        if tracker := self.started.get("wandb"):
            import wandb

            tracker.log({name: wandb.Histogram(values.flatten().numpy())}, step=step)


@contextmanager
def tracked(run: TrainingOptions, directory: Path, step: int | None) -> Iterator[Trackers]:
    """The trackers of a run, with their files in its directory, from their start to their end.

    A run that resumes at a `step` continues the runs of its trackers. The user's own environment
    variables for a tracker come first.
    """
    folder = directory.absolute() / "tracker"
    file = folder / "runs.json"
    identities = json.loads(file.read_text()) if step is not None and file.is_file() else {}
    started: dict[str, Any] = {}
    failed = True
    with _environment(
        {_PLACE[name]: _place(name, folder) for name in run.trackers if name in _PLACE}
    ):
        try:
            for name in run.trackers:
                started[name] = _start(run, name, directory, step, identities.get(name))
                if name in _IDENTITY:
                    identities[name] = _IDENTITY[name](started[name].tracker)
                    write_text(file, json.dumps(identities))
            yield Trackers(started)
            failed = False
        finally:
            for name, tracker in started.items():
                if failed and name == "wandb":  # Its page shows whether a run has failed.
                    tracker.tracker.finish(exit_code=1)
                else:
                    tracker.finish()


def _start(
    run: TrainingOptions, name: str, directory: Path, step: int | None, identity: str | None
) -> Any:
    """The tracker of a name with a new run, or with the one of an `identity`."""
    title = run.run_name or os.environ.get(_TITLE.get(name, "")) or directory.resolve().name
    project = run.project or os.environ.get(_PROJECT.get(name, "")) or "genkit"
    folder = directory.absolute() / "tracker"
    kind = _TensorBoard if name == "tensorboard" else LOGGER_TYPE_TO_CLASS[name]
    arguments: dict[str, Any] = {"name": title}
    match name:
        case "tensorboard":  # The steps after the one that a run resumes at are repeated.
            arguments = {"logging_dir": folder, "purge_step": None if step is None else step + 1}
            project = name
        case "wandb" | "swanlab" if identity:
            arguments |= {"id": identity, "resume": "allow"}
        case "trackio" if identity:
            arguments |= {"resume": "allow"}
        case "comet_ml":
            arguments = {"experiment_key": identity}
        case "mlflow":
            ours = os.environ[_PLACE[name]] == _place(name, folder)
            artifacts = (folder / name / "artifacts").as_uri() if ours else None
            arguments = {"run_name": title, "run_id": identity, "logging_dir": artifacts}
        case "aim":
            continued = {"run_hash": identity, "force_resume": True} if identity else {}
            arguments = {"logging_dir": folder / name, "experiment": project, **continued}
            project = title
    (folder / name).mkdir(parents=True, exist_ok=True)
    draws = random.getstate()
    random.seed()  # The run's seed would give the files of two starts the same random name.
    try:
        tracker = kind(project, **arguments)
        tracker.start()
        if name == "comet_ml":
            tracker.tracker.set_name(title)
        if not (name == "mlflow" and identity):  # It refuses other values than the first ones.
            tracker.store_init_configuration(_flattened(settings_of(run)))
    except Exception as error:  # It may need a network, an account and much else.
        raise OptionError(f"the tracker {name} did not start: {error}") from error
    finally:
        random.setstate(draws)
    return tracker


class _TensorBoard(TensorBoardTracker):  # type: ignore[misc]
    """TensorBoard with the settings in the run itself.

    Accelerate puts them into a further run at every start.
    """

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Write the settings as hyperparameters: numbers, and all else as text."""
        from torch.utils.tensorboard.summary import hparams

        _, start, _ = hparams({key: _plain(value) for key, value in values.items()}, {})
        self.writer.file_writer.add_summary(start)


def _plain(value: Any) -> int | float | str:
    """A number, or the text of another value. PyTorch would write booleans as numbers."""
    if isinstance(value, list):
        return ",".join(str(_plain(item)) for item in value)
    return str(value).lower() if isinstance(value, bool) else value


def _place(name: str, folder: Path) -> str:
    """The value of the variable that keeps the files of a tracker in a folder."""
    if name == "wandb":  # It makes a folder of its name.
        return str(folder)
    return f"sqlite:///{folder / name}/mlflow.db" if name == "mlflow" else str(folder / name)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables until the end, except for those already set."""
    new = {name: value for name, value in values.items() if not os.environ.get(name)}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


def _flattened(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings under names such as `quantizer/codebook_size`."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flattened(value, f"{prefix}{key}/")
        else:
            found[f"{prefix}{key}"] = value
    return found
