"""The author pages: their packages, commands and failures are as written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import author_pages as pages
import numpy as np
import pytest
from conftest import TINY, flags, genkit_command, genkit_here, invoke, same, weights

import genkit
from genkit import testing
from genkit.plugin.registry import registry

KINDS = sorted(pages.PAGES)
# Commands that compute for seconds with a page's component.
USES = ("train", "evaluate")
SMALL = {
    key: value for key, value in TINY.items() if key not in ("data", "encoder", "quantizer")
} | {"steps": 2, "data": {"heldout": 8}}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed distributions with every page's packages."""
    site = tmp_path_factory.mktemp("site")
    for kind in KINDS:
        pages.install(kind, site.parent / f"{site.name}-{kind}", site)
    return site


@pytest.fixture
def here(site: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """They are also visible in this process while a test runs."""
    monkeypatch.syspath_prepend(site)
    registry.cache_clear()
    yield
    monkeypatch.undo()
    forget([path.name for path in site.iterdir()])
    registry.cache_clear()


def forget(packages: Iterable[str]) -> None:
    """Unload these modules, so that other files of the same names are imported."""
    for name in [name for name in sys.modules if name.partition(".")[0] in packages]:
        del sys.modules[name]


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """The file that the page on data sets names."""
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28, 3), np.uint8)
    np.savez(tmp_path / "flowers.npz", images=images, labels=np.arange(40) % 3)
    return tmp_path / "flowers.npz"


def test_there_is_a_page_for_each_of_these_kinds() -> None:
    assert len(KINDS) == 9
    for kind in KINDS:
        assert pages.packages(kind)
        assert len(pages.slips(kind)) >= 5
        assert f"({pages.PAGES[kind].name})" in (pages.DOCS / "plugins.md").read_text("utf-8")


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_states_its_line_counts(kind: str) -> None:
    counted = {
        "quantizer": ["genkit_signs/__init__.py", "genkit_signs/signs.py"],
        "discriminator": ["genkit_glance/__init__.py", "genkit_glance/glance.py", "test_glance.py"],
    }
    said = re.findall(r"(\d+) lines of Python", pages.text(kind))
    files = {file.partition("/")[2]: block for file, block in pages.files(kind).items()}
    lines = sum(files[file].count("\n") for file in counted.get(kind, []))
    assert [int(number) for number in said] == ([lines] if kind in counted else [])
    assert lines < 30


@pytest.mark.parametrize("kind", KINDS)
def test_entry_point_modules_do_not_import_torch(kind: str) -> None:
    described = [block for file, block in pages.files(kind).items() if file.endswith("__init__.py")]
    assert described
    assert not [block for block in described if re.search(r"^\s*(from|import) torch", block, re.M)]


# The tests of quantizers start two processes each, which takes seconds. The metrics' own tests run
# in test_metrics.py.
@pytest.mark.parametrize(
    ("kinds", "passed"),
    [
        pytest.param(
            [kind for kind in KINDS if kind not in ("quantizer", "metric")],
            "10 passed",
            marks=pytest.mark.slow,
        ),
        pytest.param(["quantizer"], "2 passed", marks=pytest.mark.slow),
    ],
    ids=["others", "quantizer"],
)
def test_the_pages_own_tests_pass(kinds: list[str], passed: str, site: Path) -> None:
    """All run in one process that finds the packages installed."""
    tests = [
        site.parent / f"{site.name}-{kind}" / file
        for kind in kinds
        for file in pages.files(kind)
        if "/test_" in file
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", *map(str, tests)],
        cwd=site,
        env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert passed in done.stdout


@pytest.mark.usefixtures("here")
def test_the_command_trains_with_a_component_of_every_page(tmp_path: Path, flowers: Path) -> None:
    names = ["--encoder", "strided", "--attention", "softmax"]
    names += ["--quantizer", "product", "--discriminator", "spectral", "--decoder", "shuffle"]
    names += ["--perceptual", "pyramid", "--data", flowers.name]
    options = {
        **{key: value for key, value in SMALL.items() if key != "data"},
        "encoder": {"width": 8, "latent_channels": 8},
        "quantizer": {"codebooks": 4, "revive": 1},
        "discriminator": {"width": [8]},
        "decoder": {"width": 8},
    }
    done = genkit_here("train", *names, *flags(options), "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("left out") == 0
    tokenizer = genkit.load(tmp_path / "run")
    assert tokenizer.codebooks == [(4, 64), (4, 64)]
    assert any("quantizers.0.tables" in name for name in weights(tmp_path / "run"))
    genkit.save(tokenizer, tmp_path / "again.safetensors")
    parts = genkit.inspect(tmp_path / "again.safetensors")["components"]
    assert parts["quantizer"]["distribution"] == "genkit-product 0.1.0"
    assert parts["encoder"]["options"]["attention"]["distribution"] == "genkit-softmax 0.1.0"
    assert parts["decoder"]["distribution"] == "genkit-shuffle 0.1.0"
    done = genkit_here("evaluate", "run", "--metric", "edges", "--by-class", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "edge error" in done.stdout
    assert "class 2" in done.stdout


def test_the_reference_pages_optimizer_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages.install("optimizer", tmp_path / "page", tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    registry.cache_clear()
    narrow = {"encoder": {"width": 8}, "decoder": TINY["decoder"]}
    try:
        testing.check_optimizer("sign")
        testing.check_optimizer("sign", momentum=0)
        for name in ("sign", "adam"):
            chosen = ["--optimizer", name, *flags(SMALL | narrow)]
            done = genkit_here("train", *chosen, "--out", tmp_path / name)
            assert done.returncode == 0, done.stderr
    finally:
        monkeypatch.undo()
        forget(["genkit_sign"])
        registry.cache_clear()
    moved = (weights(tmp_path / name) for name in ("sign", "adam"))
    assert not same(*moved)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("kind", KINDS)
def test_the_pages_other_commands_run_as_written(kind: str) -> None:
    shown = [command for command in pages.commands(kind) if command[0] not in USES]
    assert [command[:2] for command in shown] == [["components", kind]]
    code, text = invoke(*shown[0])
    assert code == 0
    assert f"{kind} '{shown[0][2]}'" in text
    assert f"genkit-{shown[0][2]} 0.1.0" in text


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("flowers")
def test_the_pages_train_as_written(kind: str, site: Path, tmp_path: Path) -> None:
    """Only appended flags make the trainings small."""
    trained = [command for command in pages.commands(kind) if command[0] == "train"]
    # A prior is trained on indices, and a metric is no part of training.
    assert len(trained) == (0 if kind in ("metric", "prior") else len(pages.packages(kind)))
    small = {key: value for key, value in SMALL.items() if key != "data" or kind != "dataset"}
    for command in trained:
        args = [*command, *flags(small), "--encoder.width", "8", "--decoder.width", "8"]
        done = genkit_command(*args, cwd=tmp_path, PYTHONPATH=str(site))
        assert done.returncode == 0, f"{command}\n{done.stderr}"


@pytest.mark.parametrize(
    ("kind", "slip"), [(kind, slip) for kind in KINDS for slip in pages.slips(kind)]
)
def test_a_mistake_fails_as_on_the_page(
    kind: str, slip: pages.Slip, tmp_path: Path, flowers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {
        "quantizer": {"processes": 1},
        "metric": {"processes": 1},
        "dataset": {"file": str(flowers)},
    }
    site, package = tmp_path / "site", pages.packages(kind)[0]
    pages.install(kind, tmp_path / "page", site)
    name = package.partition("-")[2]
    module = tmp_path / "page" / package / f"genkit_{name}" / f"{name}.py"
    source = module.read_text(encoding="utf-8")
    assert slip.right in source
    module.write_text(source.replace(slip.right, slip.wrong, 1), encoding="utf-8")
    monkeypatch.syspath_prepend(site)
    registry.cache_clear()
    try:
        check = getattr(testing, f"check_{kind}")
        with pytest.raises(AssertionError) as caught:
            check(name, **given.get(kind, {}))
    finally:
        monkeypatch.undo()
        forget([f"genkit_{name}"])
        registry.cache_clear()
    assert slip.message in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(("revive", "line"), [(2, 0), (9, 1)])
def test_values_that_are_not_reduced_are_found(
    revive: int, line: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two real processes, as on the page for quantizers."""
    site = tmp_path / "site"
    pages.install("quantizer", tmp_path / "page", site)
    module = tmp_path / "page" / "genkit-product" / "genkit_product" / "product.py"
    source = module.read_text(encoding="utf-8")
    assert source.count("all_sum(used)") == 1
    module.write_text(source.replace("all_sum(used)", "used"), encoding="utf-8")
    said = pages.text("quantizer").partition("```text\n")[2].splitlines()[line]
    monkeypatch.syspath_prepend(site)
    registry.cache_clear()
    try:
        with pytest.raises(AssertionError, match=re.escape(said)):
            testing.check_quantizer(
                "product", channels=6, codebooks=3, codebook_size=8, revive=revive
            )
    finally:
        monkeypatch.undo()
        forget(["genkit_product"])
        registry.cache_clear()
