"""Distances between sets of images: figures, refusals, files of statistics, processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sets_of_images import Means, compared, pictures, tiny_model
from torch import nn

from genkit import testing
from genkit.data.reading import batches
from genkit.errors import DataError, OptionError
from genkit.evaluation.distances import Distances
from genkit.evaluation.estimators import frechet, inception_score, kernel_distance
from genkit.evaluation.sets import ImageSet, read_reference
from genkit.images import from_pixels, to_uint8
from genkit.settings import choose
from genkit.testing import tools


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
    exact = from_pixels(to_uint8(made))
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
    means = Means()
    distances = Distances(means)
    distances.update(pictures(0), pictures(1))
    distances.result()
    assert means.passed == 48


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
    rows = [from_pixels(to_uint8(each)).add(1).div(2) for each in (real, other)]
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
    means = Means()
    again = Distances(means, reference=str(file))
    assert (again.has_reference, direct.has_reference) == (True, False)
    again.update(pictures(3), made)
    assert again.result() == pytest.approx(figures, rel=1e-9)
    assert again.details == direct.details
    assert means.passed == 24
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
    distances.add_real(made)  # The file takes the place of these images.
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
    # Images alone can be compared by any network.
    ours = Means()
    ours.frechet = "FD"
    assert Distances(ours, reference=str(file)).has_reference


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


def test_the_metric_keeps_its_contract(tmp_path: Path) -> None:
    features = tiny_model(tmp_path)
    testing.check_metric("distances", processes=1, features=features)
    testing.check_metric("distances", processes=1, channels=5, features=features)


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
def test_two_processes_measure_as_one(tmp_path: Path) -> None:
    testing.check_metric("distances", processes=2, features=tiny_model(tmp_path))


def test_samples_are_compared_with_a_training_split(tmp_path: Path) -> None:
    training = choose("dataset", "faces").build((32, 32), 0).split("train")
    distances = choose("metric", {"name": "distances", "features": tiny_model(tmp_path)}).build(3)
    for _, images in batches(training, 40, 16, torch.device("cpu")):
        distances.add_real(images)
    distances.add(pictures(0, 10).repeat(1, 1, 8, 8))
    found = distances.result()
    assert found["precision"] < 0.5
    assert "of 10 images from 40, by features of timm's test_convnext" in distances.note
