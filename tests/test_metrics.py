"""Metrics of plugins, figures by class, devices, and `genkit.evaluate`."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import distribution, genkit_here, invoke, tiny_run
from genkit_datasets import FacesOptions
from genkit_datasets.faces import Faces
from torch import Tensor

import genkit
from genkit import Subset, devices, testing
from genkit.errors import GenkitError, OptionError
from genkit.evaluation.metrics import MeanMetric, evaluate
from genkit.plugin.registry import registry

DOCS = Path(__file__).parent.parent / "docs"
# The page with the package, and the page that uses it.
PAGE = "".join(
    (DOCS / name).read_text(encoding="utf-8") for name in ("write-a-metric.md", "evaluation.md")
)
BLOCKS = re.findall(r"^```(\S+)(?: file=(\S+))?\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed distributions with the page's package."""
    page, site = tmp_path_factory.mktemp("page"), tmp_path_factory.mktemp("site")
    for _, file, text in BLOCKS:
        if file:
            (page / file).parent.mkdir(parents=True, exist_ok=True)
            (page / file).write_text(text, encoding="utf-8")
    project = tomllib.loads((page / "genkit-edges" / "pyproject.toml").read_text("utf-8"))
    points = project["project"]["entry-points"]["genkit.plugins"]
    distribution(site, "genkit-edges", "0.1.0", points)
    shutil.copytree(page / "genkit-edges" / "genkit_edges", site / "genkit_edges")
    return site


@pytest.fixture
def here(site: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page's package is also visible in this process while a test runs."""
    monkeypatch.syspath_prepend(site)
    registry.cache_clear()
    yield
    monkeypatch.undo()
    for name in [name for name in sys.modules if name.partition(".")[0] == "genkit_edges"]:
        del sys.modules[name]
    registry.cache_clear()


@pytest.fixture(scope="module")
def desk(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    desk = tmp_path_factory.mktemp("desk")
    shutil.copytree(trained, desk / "runs" / "faces")
    return desk


@pytest.mark.usefixtures("here")
@pytest.mark.slow
@pytest.mark.parametrize("test", ["test_cast", "test_edges"])
def test_the_pages_own_tests_pass(test: str) -> None:
    """Also with two real processes, which combine their sums or rows."""
    (text,) = (text for _, file, text in BLOCKS if file and "/test_" in file)
    tests: dict[str, Any] = {}
    exec(compile(text, "test_edges.py", "exec"), tests)
    assert {each for each in tests if each.startswith("test_")} == {"test_cast", "test_edges"}
    tests[test]()


@pytest.mark.usefixtures("here")
def test_the_pages_commands_run_as_written(desk: Path) -> None:
    (shown,) = (text for kind, _, text in BLOCKS if kind == "sh")
    printed = ""
    for line in shown.splitlines():
        if not line.startswith("genkit "):
            continue
        done = genkit_here(*shlex.split(line)[1:], cwd=desk)
        assert done.returncode == 0, done.stderr
        printed += done.stdout
    assert re.search(r"edge error 0\.\d{4}   colour cast 0\.\d{5}\n", printed)


@pytest.mark.usefixtures("here")
def test_the_pages_python_runs_as_written(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    (text,) = (text for kind, file, text in BLOCKS if kind == "python" and not file)
    exec(compile(text, "evaluation.md", "exec"), {})
    assert "lower" in capsys.readouterr().out


class Good(MeanMetric):
    label, better, decimals = "good", "lower", 2

    def values(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        return (images - reconstructions).square().mean((1, 2, 3))


class Last(Good):
    """Returns the last batch's figure instead of a mean."""

    def update(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        self._sums = torch.zeros(2, dtype=torch.float64)
        return super().update(images, reconstructions)


class MeanOfBatches:
    label, better, decimals = "mean of batches", "lower", 2

    def __init__(self, options: Any, channels: int) -> None:
        self.means: list[float] = []

    def update(self, images: Tensor, reconstructions: Tensor) -> None:
        self.means.append(float((images - reconstructions).square().mean()))

    def result(self) -> float:
        return sum(self.means) / len(self.means)


class Random(Good):
    def values(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        return torch.rand(len(images))


class Undefined(Good):
    def values(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        return super().values(images, reconstructions) / 0


class Scalar(Good):
    def values(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        return super().values(images, reconstructions)[:1]


class InPlace(Good):
    def values(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        return super().values(images, reconstructions.mul_(0.9))


class Several(Good):
    def result(self) -> Any:
        return {"mean": super().result(), "twice": 2 * (super().result() or 0)}


@pytest.mark.parametrize("cls", [Good, Several])
def test_a_good_metric_passes(cls: type, install: Any) -> None:
    install("metric", cls)
    testing.check_metric("mine", processes=1)
    testing.check_metric("mine", processes=1, channels=1)


@pytest.mark.parametrize(
    ("cls", "change", "message"),
    [
        (Good, {"label": ""}, "label must be text"),
        (Good, {"better": "more"}, "better must be 'higher' or 'lower', not 'more'"),
        (Good, {"decimals": "3"}, "decimals must be an integer, not '3'"),
        (Good, {"details": {"a": [1]}}, r"details must be a dict of .*, not {'a': \[1\]}"),
        (Last, {}, "must be the same in other batches"),
        (MeanOfBatches, {}, "must be the same in other batches"),
        (Random, {}, "must be the same of the same images again"),
        (Undefined, {}, "must be finite, not inf"),
        (Scalar, {}, r"values that update returns must have shape \[7\], not \[1\], or be None"),
        (InPlace, {}, "update must not change its arguments"),
        (Good, {"result": lambda self: None}, "must return a number or a dict of numbers"),
        (Good, {"__init__": lambda self: None}, r"it must be built as Metric\(options, channels\)"),
    ],
)
def test_a_mistake_in_a_metric_has_a_clear_message(
    cls: type, change: dict[str, Any], message: str, install: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in change.items():
        monkeypatch.setattr(cls, name, value, raising=False)
    install("metric", cls)
    with pytest.raises(AssertionError, match=message):
        testing.check_metric("mine", processes=1)


@pytest.mark.usefixtures("here")
def test_sums_that_are_not_reduced_are_found(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two real processes."""
    cast = site / "genkit_edges" / "cast.py"
    right = cast.read_text(encoding="utf-8")
    cast.write_text(right.replace("gather_rows(torch.cat(self.rows))", "torch.cat(self.rows)"))
    try:
        with pytest.raises(AssertionError, match="in process 0 of 2 that share the images"):
            testing.check_metric("cast")
    finally:
        cast.write_text(right, encoding="utf-8")


def test_several_figures_are_prefixed_with_the_metrics_name(trained: Path, install: Any) -> None:
    install("metric", Several)
    record = genkit.evaluate(trained, images=4, metrics=["mine"])
    assert record["mine_twice"] == pytest.approx(2 * record["mine_mean"])
    assert record["metrics"]["mine_mean"] == {
        "metric": "mine",
        "label": "good mean",
        "better": "lower",
        "decimals": 2,
        "unit": "",
        "options": {},
    }
    assert "good mean 0." in invoke("evaluate", trained, "--images", "4", "--metric", "mine")[1]


def test_invalid_metrics_are_refused(trained: Path, install: Any) -> None:
    install("metric", Undefined)
    with pytest.raises(GenkitError, match="the metric good is inf"):
        genkit.evaluate(trained, images=2, metrics=["mine"])
    with pytest.raises(OptionError, match="'mine' is given twice"):
        genkit.evaluate(trained, metrics=["mine", {"name": "mine"}])
    with pytest.raises(OptionError, match="There is no option 'width'"):
        genkit.evaluate(trained, metrics=["mine?width=3"])
    known = registry()._components
    known["metric", "levels"] = known["metric", "mine"]
    with pytest.raises(OptionError, match="records use the name 'levels'"):
        genkit.evaluate(trained, metrics=["levels"])


class Labelled:
    """Faces that are in the first class, the second class and no class in turn."""

    fingerprint, channels, classes = "labelled", 3, ["odd", "even", "absent"]

    def __init__(self, count: int) -> None:
        self.faces = Faces(FacesOptions(heldout=count), (32, 32), 0).split("heldout")

    def split(self, name: str) -> Subset:
        return Subset(self, range(len(self.faces)))

    def name(self, number: int) -> str:
        return self.faces.name(number)

    def images(self, numbers: Sequence[int], seeds: Any = None) -> Any:
        return self.faces.images(numbers)

    def label(self, number: int) -> int | None:
        return (1, 0, None)[number % 3]


class Plain:
    """A data set without labels."""

    fingerprint, channels = "plain", 3

    def __init__(self, data: Labelled) -> None:
        self.name, self.images = data.name, data.images


def test_figures_by_class_cover_the_images_of_the_class(trained: Path) -> None:
    tokenizer, data = genkit.load(trained), Labelled(11)
    record = genkit.evaluate(trained, data=data, by_class=True, batch_size=4, exact=True)
    assert [row["name"] for row in record["classes"]] == ["odd", "even"]
    for row, numbers in zip(record["classes"], ([1, 4, 7, 10], [0, 3, 6, 9]), strict=True):
        alone = evaluate(tokenizer, Subset(data, numbers), exact=True)
        assert row["images"] == 4
        for name in ("psnr", "ssim", "mae"):
            assert row[name] == pytest.approx(alone[name], abs=1e-9)
        assert "mae_over_variance" not in row
    assert "classes" not in genkit.evaluate(trained, data=data, images=2)


def test_a_data_set_without_classes_is_refused(trained: Path) -> None:
    with pytest.raises(OptionError, match="the images of Subset have no classes to average by"):
        genkit.evaluate(trained, data=Subset(Plain(Labelled(4)), [0]), by_class=True)


def test_the_command_shows_figures_by_class(trained: Path, tmp_path: Path) -> None:
    data = {"name": "faces", "heldout": 16, "label": "hair"}
    tiny_run(tmp_path / "run", {"data": data, "steps": 0})
    code, text = invoke("evaluate", tmp_path / "run", "--by-class")
    assert code == 0, text
    assert re.search(r"class \w+  +\d+ images  PSNR \d+\.\d{3} dB   SSIM 0\.\d{4}   MAE", text)


def test_a_tokenizer_in_memory_has_the_figures_of_its_checkpoint(trained: Path) -> None:
    ours = genkit.evaluate(trained, images=5, device="cpu")
    theirs = genkit.evaluate(genkit.load(trained), data="faces:", images=5, device="cpu")
    assert theirs["psnr"] == pytest.approx(ours["psnr"], abs=1e-9)
    assert theirs["model"]["fingerprint"] == ours["model"]["fingerprint"]
    assert theirs["model"]["components"] == ours["model"]["components"]
    assert (ours["batch_size"], ours["device"], ours["precision"]) == (16, "cpu", "float32")
    objects = genkit.evaluate(trained, data=Labelled(5))
    assert objects["protocol"]["resolution"] == 32
    with pytest.raises(OptionError, match="an object has its own"):
        genkit.evaluate(trained, data=Labelled(5), resolution=64)


def test_the_record_names_metrics_device_and_precision(trained: Path) -> None:
    exact = genkit.evaluate(trained, images=5, exact=True)
    halved = genkit.evaluate(trained, images=5, mixed_precision="bf16")
    assert exact["batch_size"] == 1
    assert halved["precision"] == "float32, encoder and decoder in bf16"
    assert exact["psnr"] != halved["psnr"]
    assert halved["psnr"] == pytest.approx(exact["psnr"], abs=0.5)


@pytest.mark.parametrize(
    ("name", "message"),
    [("cuda:1", "has only cpu, cuda:0"), ("mps", "has only cpu"), ("gpu", "is not a device")],
)
def test_a_missing_device_is_refused(
    name: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulates a machine with one GPU."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert devices.pick_device() == torch.device("cuda")
    assert devices.pick_device("cuda:0", "fp16") == torch.device("cuda:0")
    assert devices.pick_device("cpu") == torch.device("cpu")
    with pytest.raises(OptionError, match=message):
        devices.pick_device(name)


def test_an_invalid_precision_is_refused() -> None:
    with pytest.raises(OptionError, match="fp16 needs a GPU"):
        devices.pick_device("cpu", "fp16")
    with pytest.raises(OptionError, match="can be no, bf16, fp16, not 'fp8'"):
        devices.pick_device("cpu", "fp8")


def test_every_command_that_computes_takes_device_and_precision(
    trained: Path, photographs: Path, tmp_path: Path
) -> None:
    tokens = tmp_path / "t.safetensors"
    tokenizer = genkit.load(trained)
    next(tokenizer.parameters()).data.mul_(0.5)
    genkit.save(tokenizer, tmp_path / "other.safetensors")
    commands = (
        ("encode", trained, photographs, "--out", tokens),
        ("decode", trained, tokens, "--out", tmp_path / "decoded"),
        ("reconstruct", trained, photographs / "a", "--out", tmp_path / "pairs"),
        ("evaluate", trained, "--images", "2"),
        ("compare", trained, tmp_path / "other.safetensors", "--images", "2"),
    )
    for command in commands:
        code, text = invoke(*command, "--device", "xpu:7")
        assert code == 2, text
        assert "--device xpu:7: this machine has only" in text
        code, text = invoke(*command, "--device", "cpu", "--mixed-precision", "bf16")
        assert code == 0, text
