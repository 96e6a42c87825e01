"""The packages of the author pages as an author ships them: built, installed, trained with."""

from __future__ import annotations

from pathlib import Path

import author_pages as pages
import pytest
from e2e_tools import ROOT, build, install, run, uv

pytestmark = pytest.mark.e2e

SMALL = ["--steps", "2", "--encoder.width", "8", "--decoder.width", "8"]
SMALL += ["--validation-images", "16", "--data.heldout", "16"]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands in a clean environment with our wheel."""
    out = tmp_path_factory.mktemp("wheels")
    build(out, "genkit-vq")
    return install(tmp_path_factory.mktemp("clean") / "env", *out.glob("genkit_vq-*.whl"))


def test_a_pages_package_is_a_wheel_that_trains(commands: Path, tmp_path: Path) -> None:
    """The shortest quantizer, and the discriminator that has options."""
    wheels = tmp_path / "wheels"
    for kind, package in (("quantizer", "genkit-signs"), ("discriminator", "genkit-spectral")):
        pages.write(kind, tmp_path)
        # Run from the checkout to apply its version constraints.
        run(uv(), "build", "--wheel", tmp_path / package, "--out-dir", wheels, cwd=ROOT)
    install(commands.parent, *wheels.glob("*.whl"))
    listed = run(commands / "genkit", "plugins", cwd=tmp_path)
    assert listed.stderr == ""
    assert "signs: genkit-signs 0.1.0, loaded in" in listed.stdout
    assert "warning" not in listed.stdout
    shown = run(commands / "genkit", "components", "discriminator", "spectral", cwd=tmp_path).stdout
    assert "channels after each downsampling" in shown
    (train,) = [each for each in pages.commands("quantizer") if "signs" in each and "train" in each]
    spectral = ["--discriminator", "spectral", "--discriminator.width", "8"]
    run(commands / "genkit", *train, *spectral, *SMALL, "--out", "run", cwd=tmp_path)
    # 2^9: one bit per channel.
    assert (
        "512" in run(commands / "genkit", "evaluate", "run", "--images", "16", cwd=tmp_path).stdout
    )
    told = run(commands / "genkit", "inspect", "run", cwd=tmp_path).stdout
    assert "quantizer: signs  (genkit-signs 0.1.0)" in told
