"""Every option of `hf` and `shards` has an effect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest
from genkit_datasets import HFOptions, ShardsOptions
from genkit_datasets.hf import HF
from genkit_datasets.shards import Shards
from pictures import encoded, write_tar
from PIL import Image

from genkit.errors import OptionError, UnreadableImage
from genkit.settings import resolve

HF_OTHER: dict[str, tuple[Any, Mapping[str, Any]]] = {
    "location": ("other", {}),
    "heldout": (0.5, {}),
    "split_seed": (1, {"heldout": 0.4}),
    "short_side": (20, {}),
    "crops": (3, {}),
    "flip": (False, {}),
    "background": ((0, 0, 0), {}),
    "channels": (4, {}),
    "range": ((0, 300), {}),
    "bands": ((3, 1, 2), {}),
    "subset": ("second", {"location": "subsets"}),
    "split": ("test", {}),
    "heldout_split": ("test", {}),
    "column": ("b", {"location": "two", "column": "a"}),
    "label": ("other", {}),
    "caption": ("text", {}),
    "size": (10, {}),
}
SHARDS_OTHER: dict[str, tuple[Any, Mapping[str, Any]]] = {
    **{name: HF_OTHER[name] for name in list(HF_OTHER)[:10]},
    "location": ("other.tar", {}),
    "heldout_shards": ("other.tar", {}),
    "endings": ("b.png", {"endings": "a.png"}),
    "label": ("other", {}),
    "caption": ("text", {}),
}


def half(number: int) -> bytes:
    """A picture that changes with flips, crops and background colours."""
    image = Image.new("RGBA", (12, 9), (number, 9, 9, 99))
    image.paste((9, 9, number, 255), (0, 0, 5, 4))
    return encoded(image)


@pytest.fixture(scope="module")
def choices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("choices")

    def rows(first: int, *columns: str) -> Any:
        cells: dict[str, Any] = {
            name: [{"bytes": half(first + 40 * place + n), "path": None} for n in range(16)]
            for place, name in enumerate(columns)
        }
        kinds: dict[str, Any] = {name: datasets.Image() for name in columns}
        kinds |= {"other": datasets.Value("int64"), "text": datasets.Value("string")}
        cells |= {"other": list(range(16)), "text": [str(n) for n in range(16)]}
        features = datasets.Features(kinds)
        return datasets.Dataset.from_dict(cells, features=features)

    for place in ("base", "other", "subsets", "two"):
        (root / place).mkdir()
    rows(0, "image").to_parquet(root / "base" / "train.parquet")
    rows(20, "image").to_parquet(root / "base" / "test.parquet")
    rows(30, "image").to_parquet(root / "other" / "train.parquet")
    rows(0, "a", "b").to_parquet(root / "two" / "train.parquet")
    for number, name in enumerate(("first", "second")):
        rows(50 * number, "image").to_parquet(root / "subsets" / f"{name}.parquet")
    (root / "subsets" / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: first\n  data_files: first.parquet\n  default: true\n"
        "- config_name: second\n  data_files: second.parquet\n---\n"
    )
    for name, first in (("base", 0), ("other", 50)):
        members = [
            (f"{n}.{end}.png", half(first + n + k)) for n in range(16) for k, end in enumerate("ab")
        ]
        notes = b'{"label": 1, "caption": "a", "other": 2, "text": "b"}'
        members += [(f"{n}.json", notes) for n in range(16)]
        write_tar(root / f"{name}.tar", members)
    return root


def looks(kind: Any, options: type, settings: Mapping[str, Any], choices: Path) -> tuple[Any, ...]:
    """Everything that a data set returns: images, plain and augmented, names, labels, captions."""
    full = {
        name: str(choices / value) if name in ("location", "heldout_shards") else value
        for name, value in settings.items()
    }
    result = []
    whole = kind(resolve(options, full), (8, 8), 0)
    for split in ("train", "heldout", "all"):
        dataset = whole.split(split)
        every = range(len(dataset))
        result += [
            dataset.images(every).tobytes(),
            dataset.images(every, every).tobytes(),
            [dataset.name(index) for index in every],
            [(dataset.label(index), dataset.caption(index)) for index in every],
        ]
    return tuple(result)


@pytest.mark.parametrize("option", HF_OTHER)
def test_an_option_of_hf(option: str, choices: Path) -> None:
    value, needs = HF_OTHER[option]
    base = {"location": "base", **needs}
    assert looks(HF, HFOptions, base, choices) != looks(
        HF, HFOptions, {**base, option: value}, choices
    )


@pytest.mark.parametrize("option", SHARDS_OTHER)
def test_an_option_of_shards(option: str, choices: Path) -> None:
    value, needs = SHARDS_OTHER[option]
    base = {"location": "base.tar", "endings": "a.png", **needs}
    assert looks(Shards, ShardsOptions, base, choices) != looks(
        Shards, ShardsOptions, {**base, option: value}, choices
    )


@pytest.mark.parametrize("option", ["heldout", "split_seed"])
@pytest.mark.parametrize(
    ("kind", "options", "apart"),
    [
        (HF, HFOptions, {"location": "base", "heldout_split": "test"}),
        (
            Shards,
            ShardsOptions,
            {"location": "base.tar", "endings": "a.png", "heldout_shards": "other.tar"},
        ),
    ],
)
def test_a_held_out_set_excludes_a_held_out_share(
    kind: Any, options: type, apart: Mapping[str, Any], option: str, choices: Path
) -> None:
    with pytest.raises(OptionError, match=r"heldout and split_seed have no effect with heldout_"):
        looks(kind, options, {**apart, option: HF_OTHER[option][0]}, choices)


def test_every_option_is_tested_above() -> None:
    # Caching and streaming change no image; a revision needs the hub; max_pixels has its own test.
    apart = {"cache", "max_pixels"}
    assert {*HF_OTHER, *apart, "streaming", "revision"} == {*HFOptions.__dataclass_fields__}
    assert {*SHARDS_OTHER, *apart} == {*ShardsOptions.__dataclass_fields__}


@pytest.mark.parametrize(
    ("kind", "options", "base"),
    [
        (HF, HFOptions, {"location": "base"}),
        (Shards, ShardsOptions, {"location": "base.tar", "endings": "a.png"}),
    ],
)
def test_images_of_more_than_max_pixels_are_refused(
    kind: Any, options: type, base: Mapping[str, Any], choices: Path
) -> None:
    looks(kind, options, {**base, "max_pixels": 12 * 9}, choices)
    with pytest.raises(
        UnreadableImage, match=r"12 x 9 pixels; the limit is --data\.max-pixels 107"
    ):
        looks(kind, options, {**base, "max_pixels": 107}, choices)
