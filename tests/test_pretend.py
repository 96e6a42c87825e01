"""Everything once on a pretend GPU: no device mixing, few waits, and no more work than needed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from conftest import MOBILENET, distribution
from pretended import pretended

from genkit import testing
from genkit.plugin.registry import registry
from genkit.testing import device, pretend

pytestmark = pytest.mark.skipif(bool(pretend.lacking()), reason=pretend.lacking() or "it can")

SMALL = {"width": 32, "depth": 2, "heads": 2}
SIXTEEN = {"codebook_size": 16}
# The most operations of a step of a tiny model, by quantizer. Every step waits once.
CEILINGS: dict[str, tuple[int, dict[str, Any]]] = {
    "bsq": (650, {"bits": 4}),
    "categorical": (410, SIXTEEN),
    "fsq": (440, {}),
    "grouped-residual-vq": (1900, SIXTEEN),
    "latent": (570, {}),
    "lfq": (710, {"bits": 4}),
    "multi-head-vq": (1110, SIXTEEN),
    "residual-fsq": (670, {}),
    "residual-simvq": (1600, SIXTEEN),
    "residual-vq": (1880, SIXTEEN),
    "simvq": (700, SIXTEEN),
    "vq": (620, SIXTEEN),
    "zoo-fsq": (550, {}),
}
# A component of a third party with the commonest fault: a tensor made on the CPU in `forward`.
FAULTY = """
import torch
from torch import nn
from genkit import Component, hookimpl

class Faulty(nn.Module):
    def __init__(self, options, channels):
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 1)

    def forward(self, features, values, context=None, context_values=None):
        scale = torch.arange(values.shape[-1]) + 1.0
        gate = self.convolution(features).mean(1, keepdim=True).sigmoid()
        return values * gate * scale

@hookimpl
def genkit_components():
    return [Component("attention", "faulty", "genkit_faulty:Faulty")]
"""


@pytest.fixture(scope="module")
def counted() -> Any:
    """A few jobs in one process."""
    jobs = {
        "trainings": [[{"quantizer": {"name": "vq", **SIXTEEN}}]],
        "encoded": [[{}]],
        "searched": [],
        "sampled": [{"autoregressive": SMALL, "masked": SMALL}],
    }
    return pretended("several", jobs)


def test_a_step_of_the_default_model_waits_once(counted: Any) -> None:
    (step,) = counted["trainings"]
    assert step["waits"] == 1, step["lines"]
    assert 0 < step["operations"] <= CEILINGS["vq"][0]


def test_float64_is_used_in_the_search_alone(counted: Any) -> None:
    (step,) = counted["trainings"]
    assert step["doubles"]
    files = {line.split(", line ")[0].rsplit("/", 1)[1] for line in step["doubles"]}
    assert files <= {"nearest.py", "settle.py"}


# Names of operations that torch refuses on a GPU after `use_deterministic_algorithms(True)`.
REFUSED = ("median", "scatter_reduce", "put_", "histc", "kthvalue", "index_reduce", "nll_loss")


@pytest.mark.parametrize("name", ["sure", "doubted"])
def test_the_search_calls_nothing_that_deterministic_mode_refuses(counted: Any, name: str) -> None:
    found = counted["searched"][name]
    assert found["same"]
    assert (found["waits"] == 1) == (name == "sure")
    assert "topk" in found["names"]
    assert [each for each in found["names"] if each.startswith(REFUSED)] == []


def test_encoding_a_batch_waits_twice(counted: Any) -> None:
    """For the range of the images, and for the doubts of all searches."""
    (batch,) = counted["encoded"]
    assert batch["same"]
    assert batch["waits"] == 2, batch["lines"]
    assert 0 < batch["operations"] <= 280


@pytest.mark.parametrize(("prior", "operations"), [("autoregressive", 80), ("masked", 63)])
def test_sampling_does_not_wait_for_each_token(counted: Any, prior: str, operations: int) -> None:
    found = counted["sampled"][prior]
    # The sequence has 30 tokens; once it is asked which are known already.
    assert found["waits"] * 30 <= 2.1, found["lines"]
    assert 0 < found["operations"] <= operations


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "genkit_faulty.py").write_text(FAULTY)
    distribution(tmp_path, "genkit-faulty", "1", {"faulty": "genkit_faulty"})
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.cache_clear()
    yield
    registry.cache_clear()


@pytest.mark.pretend
@pytest.mark.usefixtures("faulty")
def test_a_check_finds_a_tensor_made_on_the_cpu(tmp_path: Path) -> None:
    """It passes on the CPU, and one sentence names the component and the line."""
    testing.check_attention("faulty", gpu=False)
    with pytest.raises(AssertionError) as caught:
        testing.check_attention("faulty")
    place = f"{tmp_path / 'genkit_faulty.py'}, line 14"
    assert str(caught.value) == (
        "the attention 'faulty' would fail on a GPU: mul takes tensors on a GPU and on the CPU "
        f"(of shape [6]) in {place}; make its tensors on the device of its inputs, or register "
        "them as buffers"
    )


@pytest.mark.pretend
def test_a_check_that_cannot_be_repeated_says_so(
    monkeypatch: pytest.MonkeyPatch, install: Any
) -> None:
    class Same:
        def __init__(self, options: Any, channels: int) -> None:
            pass

        def __call__(self, reconstructions: Any, images: Any) -> Any:
            return (reconstructions - images).square().mean()

    install("loss", Same)
    monkeypatch.setattr(device, "on_device", lambda checks: [device._MISSING])
    with pytest.warns(UserWarning, match="does not find the loss 'mine', which no package"):
        testing.check_loss("mine")
    monkeypatch.setattr(pretend, "lacking", lambda: "PyTorch 1.0 lacks it")
    with pytest.warns(UserWarning, match=r"not checked on a pretend GPU: PyTorch 1\.0 lacks it"):
        testing.check_loss("mine")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        testing.check_loss("mine", gpu=False)


# Kinds whose every component is checked with its defaults; the others need files or settings.
KINDS = (
    "attention",
    "encoder",
    "decoder",
    "fusion",
    "discriminator",
    "loss",
    "optimizer",
    "quantizer",
)


@pytest.mark.slow
@pytest.mark.pretend
def test_every_component_keeps_its_contract_on_a_gpu() -> None:
    checks: list[device.Check] = [
        (f"check_{kind}", name, (), CEILINGS[name][1] if kind == "quantizer" else {})
        for kind in KINDS
        for name in registry().names(kind)
        # The one refuses to be built, the other needs weights.
        if (kind, name) not in {("decoder", "no-decoder"), ("discriminator", "timm")}
    ]
    if MOBILENET:
        checks.append(("check_discriminator", "timm", (), {"weights": MOBILENET}))
    checks += [("check_prior", name, (), SMALL) for name in registry().names("prior")]
    found = device.on_device(checks)
    assert {check[:2]: wrong for check, wrong in zip(checks, found, strict=True) if wrong} == {}


@pytest.mark.slow
def test_a_step_with_any_quantizer_waits_once() -> None:
    assert set(CEILINGS) == set(registry().names("quantizer"))
    runs = [{"quantizer": {"name": name, **own}} for name, (_, own) in CEILINGS.items()]
    for (name, (most, _)), step in zip(CEILINGS.items(), pretended("trainings", runs), strict=True):
        assert step["waits"] == 1, (name, step["lines"])
        assert 0 < step["operations"] <= most, (name, step["operations"])


GAN = {"discriminator_head_start": 0, "discriminator_ramp": 0}


@pytest.mark.slow
def test_training_with_anything_mixes_no_devices() -> None:
    runs: list[dict[str, Any]] = [
        *({"optimizer": {"name": name}} for name in registry().names("optimizer")),
        *({"discriminator": {"name": x}, **GAN} for x in ("patchgan", "multiscale", "stylegan")),
        {"discriminator": {"name": "patchgan", "norm": "batch"}, **GAN, "r1_weight": 1.0},
        {"discriminator": "patchgan", **GAN, "lecam_weight": 0.1, "adversarial_adaptive": True},
        {"encoder": {"attention": "pixel", "norm": "batch"}, "decoder": {"norm": "group"}},
        {"mixed_precision": "bf16", "ema": 0.9, "accumulate": 2},
        *({"quantizer": {"distance": x}} for x in ("cosine", "product")),
        *({"quantizer": {"update": x, "entropy_weight": 0.1}} for x in ("gradient", "linear")),
        {"quantizer": {"gradient": "rotation", "codebook_dim": 4, "kmeans_start": False}},
        {"quantizer": {"name": "residual-vq", "shared": True, **SIXTEEN}},
    ]
    found = pretended("trainings", runs)
    waits = [step["waits"] for step in found]
    # A discriminator has an optimizer of its own.
    expected = [1 + ("discriminator" in run) for run in runs]
    assert waits == expected, [step["lines"] for step in found]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["muon", "adam"])
def test_a_resumed_run_has_the_same_bits(optimizer: str) -> None:
    assert pretended("resumed", {"optimizer": optimizer, "ema": 0.9}) == {
        "weights": True,
        "rows": True,
    }


@pytest.mark.slow
def test_a_failing_step_is_replayed() -> None:
    found = pretended("replayed")
    assert found["failed"]
    assert "loss" in found["now"]
    assert found["modules"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "quantizer",
    [
        {"name": "vq", **SIXTEEN, "entropy_weight": 0.1},
        {"name": "vq", **SIXTEEN, "update": "linear"},
        {"name": "residual-vq", **SIXTEEN},
        {"name": "lfq", "bits": 4},
    ],
    ids=["vq", "vq-linear", "residual-vq", "lfq"],
)
def test_processes_exchange_what_nccl_takes(quantizer: dict[str, Any]) -> None:
    found = pretended("collectives", quantizer, {"encoder": {"norm": "batch"}})
    assert found == {"refused": [], "waits": []}


@pytest.mark.slow
def test_apples_gpus_train_and_evaluate_without_float64() -> None:
    assert {"psnr", "ssim"} <= set(pretended("without_doubles"))


@pytest.mark.slow
def test_a_step_of_a_prior_waits_once() -> None:
    found = pretended("prior_training")
    # And once for the row of metrics of each step.
    assert found["waits"] == 2, found["lines"]


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_measures_everything() -> None:
    page = pretended("benchmark")
    for row in (
        "| 300 x 40 x 8 |",
        "| 2 x 64 x 8 |",
        "| default, 64 px |",
        "| a-vqvae, 256 px |",
        "| 815 |",
        "| training step, batch 16 |",
        "| drawing 16 images |",
    ):
        assert row in page
