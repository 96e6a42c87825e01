"""Experiment trackers: what they are given, and where they keep it."""

from __future__ import annotations

import importlib.machinery
import json
import os
import random
import shutil
import struct
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from conftest import comparable, invoke, need, rows, same, tiny_run, weights
from PIL import Image
from table import QUICK

import genkit
from genkit.errors import OptionError, TrainingError
from genkit.run.options import layered, resolve_run

VALIDATED = [4, 8]


def read_back(run: Path) -> Any:
    """The content of a run's TensorBoard folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tracker" / "tensorboard"))
    found.Reload()
    return found


def hyperparameters(events: Any) -> dict[str, Any]:
    """The hyperparameters in TensorBoard's events, as Python's values."""
    from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data

    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    found = parse_session_start_info_plugin_data(content).hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in found.items()}


def test_tensorboard_gets_figures_pictures_counts_and_settings(tmp_path: Path) -> None:
    need("tensorboard")
    run = tmp_path / "run"
    tiny_run(run, {"tracker": "tensorboard", "encoder": {"width": [8, 16]}})
    events = read_back(run)
    written = {event.step: event.value for event in events.Scalars("psnr")}
    assert written == pytest.approx({row["step"]: row["psnr"] for row in rows(run)})
    assert "validation/levels/0/usage" in events.Tags()["scalars"]
    for kind in ("samples", "codes"):
        assert [event.step for event in events.Images(kind)] == VALIDATED
    drawn = events.Images("samples")[-1]
    with Image.open(run / "samples" / f"step-{VALIDATED[-1]:06d}.png") as picture:
        assert (drawn.width, drawn.height) == picture.size
    for name in ("epoch/levels/1/counts", "validation/levels/1/counts"):
        counts = events.Histograms(name)[-1].histogram_value
        assert counts.num == 16
        unused = sum(
            n for n, limit in zip(counts.bucket, counts.bucket_limit, strict=True) if limit < 1
        )
        group = name.split("/")[0]
        assert 16 - unused == rows(run)[-1][group]["levels"][1]["active"]
    settings = hyperparameters(events)
    assert settings["quantizer/codebook_size"] == 16.0
    assert settings["steps"] == 8.0
    assert settings["quantizer/name"] == "vq"
    assert settings["compile"] == "false"
    assert settings["encoder/width"] == "8,16"


def test_a_resumed_run_continues_in_tensorboard(tmp_path: Path) -> None:
    """Steps after the checkpoint are repeated, and appear once."""
    need("tensorboard")
    run = tmp_path / "run"
    tiny_run(run, {"tracker": "tensorboard"})
    shutil.rmtree(run / "checkpoints" / "step-00000008")
    tiny_run(run, {"tracker": "tensorboard", "lr": 1e-3}, resume=True)
    assert [event.step for event in read_back(run).Scalars("psnr")] == [2, 4, 6, 8]
    assert [path.name for path in (run / "tracker").iterdir()] == ["tensorboard"]
    assert not [path for path in (run / "tracker" / "tensorboard").iterdir() if path.is_dir()]


def test_training_a_prior_logs_too(trained: Path, tables: None, tmp_path: Path) -> None:
    need("tensorboard")
    run = tmp_path / "run"
    genkit.train_prior(trained, {**QUICK, "tracker": ["tensorboard"]}, out=run)
    events = read_back(run)
    assert [event.value for event in events.Scalars("validation/nats")] == pytest.approx(
        [row["validation"]["nats"] for row in rows(run)]
    )
    assert [event.step for event in events.Images("samples")] == [10, 20]
    assert hyperparameters(events)["prior/name"] == "table"


# Other trackers: the variable of their folder and its value in a run directory, how their class
# starts a run, and what identifies the run.
SERVICES: dict[str, tuple[str, str, str, str]] = {
    "trackio": ("TRACKIO_DIR", "{}/tracker/trackio", "init", "id"),
    "swanlab": ("SWANLAB_LOG_DIR", "{}/tracker/swanlab", "init", "id"),
    "mlflow": (
        "MLFLOW_TRACKING_URI",
        "sqlite:///{}/tracker/mlflow/mlflow.db",
        "start_run",
        "info.run_id",
    ),
    "comet_ml": ("COMET_OFFLINE_DIRECTORY", "{}/tracker/comet_ml", "start", "get_key.return_value"),
    "aim": ("", "", "Run", "hash"),
}
VARIABLES = [
    *("TRACKIO_DIR", "SWANLAB_LOG_DIR", "MLFLOW_TRACKING_URI", "COMET_OFFLINE_DIRECTORY"),
    *("SWANLAB_PROJ_NAME", "SWANLAB_EXP_NAME", "MLFLOW_EXPERIMENT_NAME", "COMET_PROJECT_NAME"),
    *("MLFLOW_RUN_ID", "WANDB_DIR", "WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_ID"),
]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], MagicMock]:
    """A package that records what Accelerate's tracker calls, and the variables at the start."""

    def put(name: str) -> MagicMock:
        package = MagicMock(__spec__=importlib.machinery.ModuleSpec(name, None))
        variable, _, start, identity = SERVICES[name]
        package.configure_mock(
            **{
                f"{start}.return_value.{identity}": f"the-{name}-run",
                "utils.validation.MAX_PARAM_VAL_LENGTH": 500,
                "utils.validation.MAX_PARAMS_TAGS_PER_BATCH": 100,
            }
        )
        package.__version__ = "9.0"
        package.places = []

        def started(*args: Any, **more: Any) -> Any:
            package.places.append(os.environ.get(variable))
            return getattr(package, start).return_value

        getattr(package, start).side_effect = started
        monkeypatch.setitem(sys.modules, name, package)
        return package

    return put


def begun(name: str, package: MagicMock) -> dict[str, Any]:
    """The arguments of a tracker's last start, with the name that it set later."""
    start = getattr(package, SERVICES[name][2])
    found = dict(start.call_args.kwargs)
    if name == "mlflow":
        found["project"] = package.create_experiment.call_args.kwargs["name"]
        found["name"] = found.pop("run_name")
    if name == "comet_ml":
        found["project"] = found.pop("project_name")
        found["name"] = start.return_value.set_name.call_args.args[0]
    if name == "aim":
        found["project"] = found.pop("experiment")
        found["name"] = start.return_value.name
    return found


@pytest.mark.parametrize("name", SERVICES)
def test_a_tracker_keeps_its_files_in_the_run_and_continues_it(
    name: str, service: Callable[[str], MagicMock], tmp_path: Path
) -> None:
    package, run = service(name), tmp_path / "faces"
    tiny_run(run, {"tracker": name, "steps": 4})
    first = begun(name, package)
    assert (first["project"], first["name"]) == ("genkit", "faces")
    variable, place, start, _ = SERVICES[name]
    assert package.places == [place.format(run) or None]
    assert variable not in os.environ
    if name == "aim":
        assert str(first["repo"]) == f"{run}/tracker/aim"
    identity = f"the-{name}-run"
    assert identity not in first.values()
    assert json.loads((run / "tracker" / "runs.json").read_text()) == {name: identity}
    # A longer run has another value of an option, which not every tracker can change.
    tiny_run(run, {"tracker": name, "steps": 8}, resume=True)
    second = begun(name, package)
    assert getattr(package, start).call_count == 2
    if name == "trackio":  # A name identifies a run.
        assert (second["name"], second["resume"]) == ("faces", "allow")
    else:
        assert identity in second.values()


def test_a_tracker_draws_names_of_its_own_and_changes_nothing(
    service: Callable[[str], MagicMock], trained: Path, tmp_path: Path
) -> None:
    """The run's seed would give two starts one name, and a tracker's draws another run."""
    package, drawn = service("swanlab"), []
    start = package.init.side_effect

    def drawing(*args: Any, **more: Any) -> Any:
        drawn.append(random.random())
        return start(*args, **more)

    package.init.side_effect = drawing
    tiny_run(tmp_path / "run", {"tracker": "swanlab", "encoder": {"attention": "pixel"}})
    tiny_run(tmp_path / "other", {"tracker": "swanlab", "steps": 0})
    assert drawn[0] != drawn[1]
    assert comparable(tmp_path / "run") == comparable(trained)
    assert same(weights(tmp_path / "run"), weights(trained))


def numbers(name: str, package: MagicMock) -> list[float]:
    """The values of psnr that a tracker got."""
    run = getattr(package, SERVICES[name][2]).return_value
    calls = {
        "trackio": lambda: [call.args[0] for call in run.log.call_args_list],
        "swanlab": lambda: [call.args[0] for call in run.log.call_args_list],
        "mlflow": lambda: [call.args[0] for call in package.log_metrics.call_args_list],
        "comet_ml": lambda: [
            {call.args[0]: call.args[1]} for call in run.log_metric.call_args_list
        ],
        "aim": lambda: [{call.kwargs["name"]: call.args[0]} for call in run.track.call_args_list],
    }[name]()
    return [found["psnr"] for found in calls if "psnr" in found]


def settings_sent(name: str, package: MagicMock) -> dict[str, Any]:
    """The settings that a tracker got."""
    run = getattr(package, SERVICES[name][2]).return_value
    if name in ("trackio", "swanlab"):
        return dict(package.config.update.call_args.args[0])
    if name == "mlflow":
        return dict(package.log_params.call_args.args[0])
    if name == "comet_ml":
        return dict(run.log_parameters.call_args.args[0])
    return dict(run.__setitem__.call_args.args[1])


def test_several_trackers_at_once_each_get_figures_and_settings(
    service: Callable[[str], MagicMock], tmp_path: Path
) -> None:
    packages = {name: service(name) for name in SERVICES}
    run = tmp_path / "run"
    config = tmp_path / "given.toml"
    config.write_text(f"tracker = {json.dumps(list(SERVICES))}\n")
    tiny_run(run, tomllib.loads(config.read_text()))
    for name, package in packages.items():
        assert numbers(name, package) == [row["psnr"] for row in rows(run)], name
        sent = settings_sent(name, package)
        assert sent["quantizer/codebook_size"] == 16, name
        assert sent["compile"] is False
        assert sent["encoder/width"] == [8]
    pictures = [call.args[0] for call in packages["swanlab"].Image.call_args_list]
    assert {picture.mode for picture in pictures} == {"RGB"}
    assert len(pictures) == len(packages["aim"].Image.call_args_list) == 2 * len(VALIDATED)
    assert len(json.loads((run / "tracker" / "runs.json").read_text())) == len(SERVICES)


@pytest.mark.parametrize("name", ["swanlab", "mlflow", "comet_ml"])
def test_the_users_own_variables_hold(
    name: str,
    service: Callable[[str], MagicMock],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    package = service(name)
    variable = SERVICES[name][0]
    monkeypatch.setenv(variable, "of the user")
    monkeypatch.setenv("SWANLAB_PROJ_NAME", "theirs")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    monkeypatch.setenv("COMET_PROJECT_NAME", "theirs")
    tiny_run(tmp_path / "run", {"tracker": name, "steps": 0})
    assert package.places == ["of the user"]
    assert os.environ[variable] == "of the user"
    assert begun(name, package)["project"] == "theirs"
    if name == "mlflow":  # A server knows where its artifacts go.
        assert package.create_experiment.call_args.kwargs["artifact_location"] is None


@pytest.mark.parametrize("name", SERVICES)
def test_project_and_name_can_be_given(
    name: str,
    service: Callable[[str], MagicMock],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("SWANLAB_PROJ_NAME", "of a variable")
    monkeypatch.setenv("COMET_PROJECT_NAME", "of a variable")
    package = service(name)
    given = {"tracker": [name, name], "project": "codes", "run_name": "wide"}
    tiny_run(tmp_path / "run", {**given, "steps": 0})
    assert getattr(package, SERVICES[name][2]).call_count == 1
    found = begun(name, package)
    assert (found["project"], found["name"]) == ("codes", "wide")


def test_a_tracker_that_cannot_start_is_one_sentence(
    service: Callable[[str], MagicMock], tmp_path: Path
) -> None:
    service("swanlab").init.side_effect = RuntimeError("you are not logged in")
    with pytest.raises(OptionError, match=r"^the tracker swanlab did not start: you are"):
        tiny_run(tmp_path / "run", {"tracker": "swanlab"})


def test_a_failed_run_ends_its_trackers(
    service: Callable[[str], MagicMock], tmp_path: Path
) -> None:
    package = service("swanlab")
    with pytest.raises(TrainingError, match="steps in a row were skipped"):
        tiny_run(
            tmp_path / "run",
            {"tracker": "swanlab", "lr": 1e30, "clip": 0, "warmup": 0, "steps": 30},
        )
    package.init.return_value.finish.assert_called_once()


def test_each_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("aim", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
    run = resolve_run(layered(None, {"tracker": "aim,wandb"}))
    with pytest.raises(OptionError) as failure:
        run.check_here()
    first, second = str(failure.value).splitlines()
    assert first.startswith("--tracker aim needs the package aim, which is not installed: ")
    assert first.endswith("pip install aim")
    assert second.startswith("--tracker wandb needs the package wandb, which is not installed: ")


def test_none_excludes_trackers() -> None:
    run = resolve_run(layered(None, {"tracker": "none,tensorboard"}))
    with pytest.raises(OptionError, match="--tracker none excludes other trackers"):
        run.check_here()


@pytest.mark.parametrize("flag", ["--project", "--run-name"])
def test_project_and_name_need_a_tracker(flag: str, tmp_path: Path) -> None:
    code, text = invoke("train", flag, "x", "--out", tmp_path / "run")
    assert code == 2
    assert f"without --tracker, {flag} would do nothing" in " ".join(text.split())


@pytest.mark.slow
def test_wandb_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A real package, whose file is read back."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "faces"
    tiny_run(run, {"tracker": "wandb", "project": "codes", "steps": 4})
    tiny_run(run, {"tracker": "wandb", "project": "codes", "steps": 8}, resume=True)
    assert not (tmp_path / "wandb").exists()
    identity = json.loads((run / "tracker" / "runs.json").read_text())["wandb"]
    folders = sorted((run / "tracker" / "wandb").glob("offline-run-*"))
    assert [path.name.rsplit("-", 1)[1] for path in folders] == [identity] * 2
    history: list[dict[str, Any]] = []
    settings: dict[str, Any] = {}
    for folder in folders:
        (file,) = folder.glob("*.wandb")
        for record in records(file):
            if record.HasField("run"):
                assert (record.run.project, record.run.display_name) == ("codes", "faces")
            for item in record.config.update:
                settings[item.key] = json.loads(item.value_json)
            if record.HasField("history"):
                history.append(
                    {
                        item.key or "/".join(item.nested_key): json.loads(item.value_json)
                        for item in record.history.item
                    }
                )
    assert settings["quantizer/codebook_size"] == 16
    assert settings["compile"] is False
    assert [row["psnr"] for row in history if "psnr" in row] == pytest.approx(
        [row["psnr"] for row in rows(run)]
    )
    assert [row["_step"] for row in history] == [2, 4, 6, 8]
    validated = [row for row in history if "samples/_type" in row]
    assert [row["_step"] for row in validated] == VALIDATED
    assert validated[-1]["epoch/levels/0/counts/_type"] == "histogram"
    assert sum(validated[-1]["epoch/levels/0/counts/values"]) == 16
    assert validated[-1]["codes/count"] == 1


def records(file: Path) -> Iterator[Any]:
    """The records in a file of wandb's, which is a LevelDB log behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        size, kind = struct.unpack_from("<HB", content, at + 4)
        whole += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # A whole record, or the last part of one.
            yield Record.FromString(whole)
            whole = b""
