"""Authors' mistakes in components of every kind: each failure says what the contract wants.

Quantizers, whose contract is the longest, are in test_contracts.py too.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import distribution
from good_components import (
    GOOD,
    Dataset,
    Quantizer,
    alone,
    forgetful,
    given,
    narrow,
    result,
    with_levels,
    without_levels,
    without_super,
)
from torch.nn import functional as F

from genkit import Level, Quantized, Subset, testing
from genkit.errors import OptionError
from genkit.interfaces import View

CHECKS: dict[str, Any] = {
    "encoder": testing.check_encoder,
    "decoder": testing.check_decoder,
    "discriminator": testing.check_discriminator,
    "attention": testing.check_attention,
    "fusion": testing.check_fusion,
    "perceptual": testing.check_perceptual,
    "dataset": testing.check_dataset,
    "quantizer": lambda name: testing.check_quantizer(name, processes=1),
}


def from_one(self: Any, latents: torch.Tensor) -> Any:
    indices = ((latents > 0) * self.bits).sum(1)
    through = latents + (Quantizer.decode(self, indices) - latents).detach()
    return Quantized(through, indices + 1, latents.new_zeros(()))


def decoded_from_one(self: Any, indices: torch.Tensor) -> Any:
    numbers = F.embedding(indices - 1, torch.arange(512.0)[:, None])
    return Quantizer.decode(self, numbers[..., 0].long())


COUNTED = itertools.count()
SAVED = "the same results after saving and loading: every tensor that they depend on"
RANDOM = "in eval mode the same inputs must give the same outputs"

# kind, the change to the correct component, and the failure's message.
SLIPS: list[tuple[str, Any, str]] = [
    # Mistakes in any kind.
    *(
        (kind, {"__init__": alone}, rf"cannot be built: TypeError: .*as {kind.title()}\(options")
        for kind in GOOD
    ),
    *(
        (kind, {"__init__": without_super}, "before Module.__init__.. call .*must be built as")
        for kind in GOOD
        if kind != "dataset"
    ),
    *(
        (kind, {"forward": None}, "must work; it raised TypeError")
        for kind in GOOD
        if kind != "dataset"
    ),
    *(
        (kind, result(lambda out: None), "must (be one tensor|return).* not NoneType")
        for kind in ("encoder", "decoder", "attention", "fusion", "perceptual", "quantizer")
    ),
    *(
        (kind, forgetful, SAVED)
        for kind in ("encoder", "decoder", "discriminator", "attention", "fusion")
    ),
    *(
        (kind, result(lambda out: out * torch.rand(())), RANDOM)
        for kind in ("decoder", "discriminator", "attention", "fusion")
    ),
    *(
        (kind, result(lambda out: out.double()), "must be float32, not torch.float64")
        for kind in ("decoder", "discriminator", "attention", "fusion")
    ),
    *(
        (kind, result(lambda out: out * float("nan")), "must be finite")
        for kind in ("decoder", "discriminator", "attention", "fusion", "perceptual")
    ),
    *(
        (kind, given(lambda x: x.data.mul_(2)), "must not change its input tensors")
        for kind in ("encoder", "discriminator", "attention")
    ),
    *(
        (kind, narrow, "forward in a bf16 run .under torch.autocast. must work; it raised")
        for kind in ("encoder", "decoder", "discriminator")
    ),
    # Encoders.
    ("encoder", {"__init__": without_levels}, "Encoder must have levels, a list of genkit.Level"),
    ("encoder", {"__init__": with_levels([])}, "levels must be a list of genkit.Level.*not \\[\\]"),
    ("encoder", {"__init__": with_levels(2)}, "levels must be a list of genkit.Level.*, not 2"),
    ("encoder", {"__init__": with_levels([(8, 4), (8, 8)])}, "must be a list of genkit.Level"),
    ("encoder", {"__init__": with_levels([Level(1, 8, 4)])}, "numbered 0, 1, …, finest first"),
    (
        "encoder",
        {"__init__": with_levels([Level(0, 8, 8), Level(1, 8, 4)])},
        r"strides must grow from level to level, not \[8, 4\]",
    ),
    (
        "encoder",
        {"__init__": with_levels([Level(0, 8, 4)])},
        "a list with one tensor for each of its 1 levels, not 2",
    ),
    ("encoder", result(lambda out: out[0]), "for each of its 2 levels, not Tensor"),
    ("encoder", result(lambda out: out[::-1]), r"level 0 must have shape \[2, 8, 16, 24\], not"),
    ("encoder", result(lambda out: [out, out]), "level 0 must be one tensor, not a list of"),
    ("encoder", result(lambda out: [x.detach() for x in out]), "must reach the images"),
    ("encoder", result(lambda out: [x * torch.rand(()) for x in out]), RANDOM),
    # Decoders.
    ("decoder", result(lambda out: [out]), r"images must be one tensor, not a list of \[2, 3, 32"),
    ("decoder", result(lambda out: out[:, :1]), r"images must have shape \[2, 3, 32, 48\], not"),
    ("decoder", result(lambda out: out[..., ::2, ::2]), "its levels have strides"),
    ("decoder", result(lambda out: out.detach()), "reach the latents of the finest level"),
    # Discriminators.
    ("discriminator", result(lambda out: [out, out]), r"one tensor \[B, 1, h, w\].*not list"),
    ("discriminator", result(lambda out: out.mean((1, 2, 3))), r"not \[2\]; one logit per"),
    ("discriminator", result(lambda out: out.expand(-1, 2, -1, -1)), r"not \[2, 2, 16, 24\]"),
    ("discriminator", result(lambda out: (out > 0).float()), "a gradient must reach the images"),
    # Attentions.
    (
        "attention",
        result(lambda out: out.flatten(2).transpose(1, 2)),
        r"self-attention must have shape \[2, 5, 4, 6\], not \[2, 24, 5\]; the result has",
    ),
    ("attention", result(lambda out: (out, out)), "must be one tensor, not a tuple of"),
    ("attention", result(lambda out: out.detach()), "a gradient must reach the values"),
    # Fusions.
    (
        "fusion",
        result(lambda out: out[:, :1]),
        r"mixed latents must have shape \[2, 8, 8, 8\], not",
    ),
    (
        "fusion",
        {"forward": lambda self, latents, coarser: latents * 2},
        "a gradient must reach the coarser latents",
    ),
    (
        "fusion",
        {
            "forward": lambda self, latents, coarser: (
                latents + F.interpolate(coarser, scale_factor=2)
            )
        },
        "coarser .2, 8, 2, 2.. must work; it raised RuntimeError: The size of tensor",
    ),
    # Perceptual losses.
    (
        "perceptual",
        {"forward": lambda self, a, b: (a - b).square().mean((1, 2, 3))},
        r"the loss must have shape \[\], not \[2\]; it is the mean over the batch",
    ),
    (
        "perceptual",
        {"forward": lambda self, a, b: (a - b).square().mean().item()},
        "the loss must be one tensor, not float",
    ),
    ("perceptual", result(lambda out: -out), "different images must be above 0, not -"),
    ("perceptual", result(lambda out: out + 1), "the loss of equal images must be 0, not 1"),
    ("perceptual", result(lambda out: out.detach()), "must reach the reconstructions"),
    ("perceptual", result(lambda out: out * torch.rand(())), "nothing may be random in eval"),
    (
        "perceptual",
        {"forward": lambda self, a, b: F.mse_loss(a, b.mul_(0.9))},
        "forward must not change its input images",
    ),
    # Data sets.
    ("dataset", {"split": None}, r"split\('train'\) must work; it raised TypeError"),
    (
        "dataset",
        {"split": lambda self, name: Subset(self, [])},
        "train must hold at least one image",
    ),
    ("dataset", {"images": None}, "must work; it raised TypeError"),
    ("dataset", {"name": lambda self, number: number}, "name must return text, not int"),
    ("dataset", {"name": lambda self, number: "x"}, "a name of its own, but two are called 'x'"),
    ("dataset", {"fingerprint": None}, "fingerprint must be text .* not None"),
    (
        "dataset",
        {"fingerprint": property(lambda self: str(next(COUNTED)))},
        "fingerprint must be the same for all splits",
    ),
    ("dataset", {"channels": 3.0}, "channels of the data set must be an integer .* not 3.0"),
    ("dataset", {"classes": "cat"}, "classes of the data set must be a list of text"),
    ("dataset", {"label": lambda self, number: 2}, "number of classes, 2, not 2"),
    ("dataset", {"label": lambda self, number: "odd"}, "not 'odd'"),
    ("dataset", {"caption": lambda self, number: 5}, "caption must return text or None, not int"),
    (
        "dataset",
        {"view": lambda self, number, seed=None: View((32, 48), (8, 0, 32, 48), False)},
        r"a crop inside its original, not View\(size=\(32, 48\), crop=\(8, 0, 32, 48\)",
    ),
    (
        "dataset",
        {"view": lambda self, number, seed=None: View((32, 48), (0, 0, 32, 48), True)},
        r"view\(0\) has no seed, so it must not be mirrored",
    ),
    (
        "dataset",
        {"images": lambda self, numbers: Dataset.images(self, numbers)},
        r"images\(\[0, 1, 2\]\) must work; it raised TypeError",
    ),
    (
        "dataset",
        {"images": lambda self, *args: torch.from_numpy(Dataset.images(self, *args))},
        r"a NumPy array uint8 \[B, H, W, channels\], not Tensor",
    ),
    (
        "dataset",
        {"images": lambda self, *args: Dataset.images(self, *args) / 255},
        "images must be uint8 from 0 to 255, not float64",
    ),
    (
        "dataset",
        {"images": lambda self, *args: Dataset.images(self, *args).transpose(0, 2, 1, 3)},
        r"\[B, H, W, channels\] = \[3, 32, 48, 3\], not \[3, 48, 32, 3\]",
    ),
    (
        "dataset",
        {"images": lambda self, *args: Dataset.images(self, *args)[:, :, ::-1]},
        "call np.ascontiguousarray after a flip",
    ),
    (
        "dataset",
        {"images": lambda self, i, s=None: Dataset.images(self, sorted(i))},
        "images must come in the order of the indices",
    ),
    (
        "dataset",
        {"images": lambda self, i, s=None: Dataset.images(self, i) + np.uint8(noise())},
        "without seeds nothing may be random",
    ),
    (
        "dataset",
        {"images": lambda self, i, s=None: Dataset.images(self, i) * (s is None or noise())},
        "the same seeds must give the same images",
    ),
    (
        "dataset",
        {"images": lambda self, i, s=None: Dataset.images(self, i) + np.uint8(id(self) // 64 % 99)},
        "two instances with the same arguments must hold the same images",
    ),
    ("dataset", {"split": lambda self, name: Subset(self, range(4))}, "no held-out"),
    # Quantizers.
    ("quantizer", {"codebook_size": 256.0}, "codebook_size must be an integer above 1, not"),
    ("quantizer", {"codebook_size": 1}, "codebook_size must be an integer above 1, not 1"),
    ("quantizer", {"codebook_size": property()}, "Quantizer must have codebook_size, the number"),
    ("quantizer", {"codebooks": [1]}, "codebooks must be the number of codebooks.* not list"),
    ("quantizer", {"codebooks": 2}, r"indices must have shape \[3, 4, 6, 2\], not \[3, 4, 6\]"),
    ("quantizer", {"decode": None}, "Quantizer must have decode, a method"),
    (
        "quantizer",
        {"decode": lambda self, indices: Quantizer.decode(self, indices).double()},
        "the quantized latents must be float32, not torch.float64",
    ),
    ("quantizer", result(lambda out: out._replace(loss=0.0)), "loss must be one tensor, not float"),
    (
        "quantizer",
        result(lambda out: out._replace(loss=out.loss / 0)),
        "the loss must be finite",
    ),
    (
        "quantizer",
        result(lambda out: out._replace(indices=[out.indices])),
        "indices must be one tensor, not list",
    ),
    (
        "quantizer",
        result(lambda out: out._replace(indices=out.indices[..., None])),
        r"not \[3, 4, 6, 1\]; \[B, h, w\], or \[B, h, w, codebooks\]",
    ),
    (
        "quantizer",
        result(lambda out: out._replace(indices=out.indices - 256)),
        "indices must lie between 0 and codebook_size - 1 = 255, not -",
    ),
    (
        "quantizer",
        result(lambda out: out._replace(indices=out.indices * 0 + 256)),
        "not 256 and 256: codes are counted from 0, not from 1",
    ),
    (
        "quantizer",
        {"codebook_size": 512, "forward": from_one},
        r"indices must count codes from 0, not from 1: decode\(indices - 1\) gives the quantized",
    ),
    (
        "quantizer",
        {"codebook_size": 512, "forward": from_one, "decode": decoded_from_one},
        "decode of the index 0, where codes are counted from 0 to 511, must work; it raised Index",
    ),
    ("quantizer", given(lambda x: x.data.mul_(2)), "must not change its input latents"),
    (
        "quantizer",
        {"decode": lambda self, indices: Quantizer.decode(self, indices) * (len(indices) > 1)},
        "indices. of one image alone must equal",
    ),
]


def noise() -> int:
    """A different number in each call."""
    return int(torch.randint(2, 200, ()))


def broken(kind: str, change: Any) -> type:
    """The correct class with one change."""
    good = GOOD[kind]
    made = change(good) if callable(change) else change
    return type(good.__name__, (good,), made if isinstance(made, dict) else {"forward": made})


@pytest.mark.parametrize("kind", GOOD)
def test_a_good_one_passes(kind: str, install: Any) -> None:
    install(kind, GOOD[kind])
    CHECKS[kind]("mine")


def test_the_data_set_of_the_reference_page_passes(install: Any) -> None:
    page = (Path(__file__).parent.parent / "docs" / "plugins.md").read_text(encoding="utf-8")
    code = page[page.index("import numpy as np\n") :]
    names: dict[str, Any] = {}
    exec(code[: code.index("```")], names)
    install("dataset", names["Noise"])
    testing.check_dataset("mine")


@pytest.mark.parametrize(("kind", "change", "message"), SLIPS)
def test_a_mistake_has_a_clear_message(kind: str, change: Any, message: str, install: Any) -> None:
    install(kind, broken(kind, change))
    with pytest.raises(AssertionError, match=message):
        CHECKS[kind]("mine")


@pytest.mark.parametrize("kind", [kind for kind in GOOD if kind != "dataset"])
def test_a_class_that_is_not_a_module_is_reported(kind: str, install: Any) -> None:
    install(kind, type("Plain", (), {"__init__": lambda self, *args: None}))
    with pytest.raises(AssertionError, match=r"must be a torch\.nn\.Module, not Plain"):
        CHECKS[kind]("mine")


@pytest.mark.parametrize("kind", GOOD)
def test_a_missing_component_is_reported(kind: str) -> None:
    with pytest.raises(AssertionError, match=f"There is no {kind} 'mime'.*\n.*pip install -e"):
        CHECKS[kind]("mime")


def test_an_unloadable_component_is_reported(install: Any) -> None:
    install("discriminator", f"{__name__}:Gone")
    with pytest.raises(AssertionError, match=r"cannot be loaded from .* no attribute 'Gone'"):
        testing.check_discriminator("mine")


def test_refused_options_have_a_clear_message(install: Any) -> None:
    def refuse(self: Any, options: Any, channels: int) -> None:
        raise ValueError("an odd width is too narrow")

    install("discriminator", broken("discriminator", {"__init__": refuse}))
    with pytest.raises(OptionError, match="with these options: an odd width is too narrow"):
        testing.check_discriminator("mine")
    with pytest.raises(OptionError, match="There is no option 'widht'"):
        testing.check_discriminator("mine", widht=3)


def test_a_failure_shows_the_authors_line_and_one_sentence(tmp_path: Path) -> None:
    """None of genkit's own lines are in pytest's report."""
    (tmp_path / "test_it.py").write_text(
        "from genkit.testing import check_quantizer\n\n"
        "def test_it():\n    check_quantizer('mine')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "test_it.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ">       check_quantizer('mine')" in done.stdout
    assert "E       AssertionError: There is no quantizer 'mine'" in done.stdout
    assert done.stdout.count("def ") == 1


def test_a_misspelt_entry_point_group_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = distribution(tmp_path, "other-dist", "1.2", {"mine": "some_module"}) / "entry_points.txt"
    info.write_text(info.read_text().replace("genkit.plugins", "genkit.plugin"))
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(AssertionError) as failure:
        testing.check_quantizer("mine")
    assert "The entry point 'mine' is in the group 'genkit.plugin': write genkit.plugins." in str(
        failure.value
    )
