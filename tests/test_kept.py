"""Figures that a run directory keeps, which `genkit compare` reads if they still hold."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from conftest import invoke, tiny_run
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sets_of_images import as_metric, tiny_model

import genkit
from genkit.evaluation import metrics
from genkit.evaluation.measurement import Measurement
from genkit.plugin.registry import registry


@pytest.fixture(scope="session")
def second(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with another seed than `trained`."""
    out = tmp_path_factory.mktemp("second") / "run"
    tiny_run(out, {"seed": 1, "steps": 4})
    return out


@pytest.fixture
def pair(trained: Path, second: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two run directories without figures."""
    for name, run in (("one", trained), ("two", second)):
        shutil.copytree(run, tmp_path / name, ignore=shutil.ignore_patterns("records"))
    return tmp_path / "one", tmp_path / "two"


@pytest.fixture
def bitmaps(tmp_path: Path) -> Path:
    """A folder of images whose sizes in bytes do not depend on their content."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(6):
        paint(folder, number, 30 * number)
    return folder


def paint(folder: Path, number: int, grey: int) -> None:
    Image.linear_gradient("L").resize((32, 32)).point(lambda x: (x + grey) % 256).convert(
        "RGB"
    ).save(folder / f"{number}.bmp")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the checkpoints that were measured."""
    found: list[str] = []
    record = Measurement.record

    def counted(self: Measurement, *args: Any) -> dict[str, Any]:
        found.append(self.path)
        return record(self, *args)

    monkeypatch.setattr(Measurement, "record", counted)
    return found


def compared(*args: str | Path) -> tuple[list[dict[str, Any]], str]:
    """The records of a comparison, and its messages."""
    code, text = invoke("compare", *args, "--json")
    assert code == 0, text
    *said, last = text.strip().splitlines()
    return json.loads(last)["models"], "\n".join(said)


def test_compare_reads_what_evaluate_kept(pair: tuple[Path, Path], measured: list[str]) -> None:
    one, two = pair
    code, text = invoke("evaluate", one, "--json")
    assert code == 0
    (file,) = (one / "records").iterdir()
    kept = json.loads(file.read_text())
    day = kept.pop("measured")[:10]
    assert kept == json.loads(text)
    measured.clear()
    first, said = compared(one, two)
    assert measured == [str(two)]
    assert f"{one}: figures of {day} from {file}." in said
    assert f"{two}: figures" not in said
    # Comparing keeps what it measured.
    second, said = compared(one, two)
    assert measured == [str(two)]
    assert f"{two}: figures of" in said
    anew, said = compared(one, two, "--anew")
    assert measured == [str(two), str(one), str(two)]
    assert "figures of" not in said
    assert first == second == anew
    assert len(list((two / "records").iterdir())) == 1


def test_a_table_of_kept_figures_names_them_on_stderr(pair: tuple[Path, Path]) -> None:
    one, two = pair
    fresh = invoke("compare", one, two)[1]
    read = invoke("compare", one, two)[1]
    lines = [line for line in read.splitlines() if "figures of" not in line]
    assert lines == fresh.splitlines()
    assert len(read.splitlines()) == len(lines) + 2


def other_weights(run: Path) -> None:
    file = run / "model.safetensors"
    with safe_open(file, "pt") as opened:
        header = opened.metadata()
    tensors = load_file(file)
    bias = next(name for name in tensors if name.startswith("decoder") and name.endswith("bias"))
    tensors[bias] += 0.1
    save_file(tensors, file, header)


def other_network(folder: Path) -> None:
    """Other weights in the file of the metric's network."""
    tiny_model(folder, 1)
    (folder / "tiny1.pth").replace(folder / "tiny0.pth")


def other_version(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda each: "9" if each == name else version(each))


def other_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    for plugin in registry().plugins:
        monkeypatch.setattr(plugin, "origin", plugin.origin._replace(version="9"))


# Everything that decides figures, with a flag or a function that changes it.
FLAGS: dict[str, list[str]] = {
    "resolution": ["--resolution", "16"],
    "number of images": ["--images", "4"],
    "split": ["--split", "heldout"],
    "batch size": ["--batch-size", "2"],
    "exact": ["--exact"],
    "precision": ["--mixed-precision", "bf16"],
}
CHANGES: dict[str, Callable[..., object]] = {
    "weights": lambda run, images, patch: other_weights(run),
    "content of a file": lambda run, images, patch: paint(images, 3, 200),
    "further file": lambda run, images, patch: paint(images, 7, 200),
    "file renamed": lambda run, images, patch: (images / "3.bmp").rename(images / "9.bmp"),
    "file damaged": lambda run, images, patch: (images / "3.bmp").write_bytes(b"BM"),
    "network of a metric": lambda run, images, patch: other_network(images.parent),
    "version of PyTorch": lambda run, images, patch: other_version("torch", patch),
    "version of the plugins": lambda run, images, patch: other_plugins(patch),
    "arithmetic": lambda run, images, patch: patch.setattr(metrics, "ARITHMETIC", 99),
    "damaged record": lambda run, images, patch: next((run / "records").iterdir()).write_text("{"),
}


@pytest.mark.parametrize("changed", [*FLAGS, *CHANGES, "option of a metric", "metric", "nothing"])
def test_one_change_measures_anew(
    changed: str,
    pair: tuple[Path, Path],
    bitmaps: Path,
    measured: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    one, two = pair
    args = ["--data", str(bitmaps)]
    if "metric" in changed or changed == "nothing":
        args += ["--metric", as_metric(tiny_model(tmp_path))]
    assert invoke("evaluate", one, *args)[0] == 0
    measured.clear()
    if changed in FLAGS:
        args += FLAGS[changed]
    elif changed in CHANGES:
        CHANGES[changed](one, bitmaps, monkeypatch)
    elif changed == "option of a metric":
        args[-1] += "&neighbours=2"
    elif changed == "metric":
        args = args[:2]
    found, said = compared(one, two, *args)
    assert measured == ([str(two)] if changed == "nothing" else [str(one), str(two)])
    assert ("figures of" in said) == (changed == "nothing")
    if changed == "nothing":  # The figures read equal the measured ones.
        assert found == compared(one, two, *args, "--anew")[0]


def test_a_file_that_a_metric_writes_is_written_again(
    pair: tuple[Path, Path], bitmaps: Path, measured: list[str], tmp_path: Path
) -> None:
    for number in range(6, 65):
        paint(bitmaps, number, number)
    saved = tmp_path / "statistics.npz"
    metric = f"{as_metric(tiny_model(tmp_path))}&figures=fd&save={saved}"
    args = ["--data", str(bitmaps), "--metric", metric]
    assert invoke("evaluate", pair[0], *args)[0] == 0
    saved.unlink()
    measured.clear()
    compared(*pair, *args)
    assert measured[0] == str(pair[0])
    assert saved.exists()


def test_a_directory_may_move(pair: tuple[Path, Path], measured: list[str]) -> None:
    one, two = pair
    compared(one, two)
    moved = one.rename(one.parent / "three")
    measured.clear()
    found, _ = compared(moved, two)
    assert measured == []
    assert found[0]["model"]["path"] == str(moved)


def test_a_file_in_a_run_directory_is_of_the_run(
    pair: tuple[Path, Path], measured: list[str]
) -> None:
    one, two = pair
    compared(one, two)
    measured.clear()
    found, _ = compared(one / "model.safetensors", two)
    assert measured == []
    assert found[0]["model"]["path"] == str(one / "model.safetensors")


def test_a_bare_file_keeps_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    file = shutil.copy(pair[0] / "model.safetensors", alone / "mine.safetensors")
    assert invoke("evaluate", file, "--data", "faces", "--images", "4")[0] == 0
    assert [path.name for path in alone.iterdir()] == ["mine.safetensors"]


def test_a_directory_that_cannot_be_written_fails_nothing(pair: tuple[Path, Path]) -> None:
    (pair[0] / "records").write_text("a file where the folder would be")
    code, text = invoke("evaluate", pair[0])
    assert code == 0
    assert "PSNR" in text
    assert f"genkit: the figures are not kept: '{pair[0] / 'records'}" in text


def test_measuring_in_python_keeps_nothing(pair: tuple[Path, Path]) -> None:
    genkit.evaluate(pair[0], images=4)
    assert not (pair[0] / "records").exists()


def test_kept_figures_can_be_named_as_a_file(pair: tuple[Path, Path]) -> None:
    one, two = pair
    assert invoke("evaluate", one)[0] == 0
    (file,) = (one / "records").iterdir()
    assert [row["name"] for row in compared(file, two)[0]] == [str(file), str(two)]
    other = shutil.copy(file, file.with_name("other.json"))
    code, text = invoke("compare", file, other, "--anew")
    assert code == 2
    assert "--anew applies to checkpoints" in text
