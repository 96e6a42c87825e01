"""`genkit report`: the contents of its pages, and their looks in a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bokeh.models import Scatter
from conftest import TINY, InterruptAt, chromium, flags, genkit_here, invoke, tiny_run

import genkit
from genkit.errors import GenkitError
from genkit.evaluation.images import all_images
from genkit.reporting.charts import sheet, ticks, usage
from genkit.reporting.curves import Curve, colour, curves
from genkit.reporting.looks import Codes, decoded_codes, look
from genkit.reporting.page import _figures
from genkit.run.options import layered, resolve_run
from genkit.run.overview import Overview
from genkit.tokenizer import Tokenizer


def test_training_ends_with_a_report(tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, output = invoke("train", *flags({**TINY, "report": True}), "--out", run)
    assert code == 0, output
    assert f"Look at {run / 'report.html'}" in output
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "tokenizer, done, step 8 of 8" in page
    # If it cannot be written, a warning says so, and the run is whole without it.
    (run / "report.html").unlink()
    (run / "report.html").mkdir()
    longer = {"steps": 10, "report": True}
    code, output = invoke("train", "--resume", *flags(longer), "--out", run)
    assert code == 0, output
    assert "there is no report: " in output
    assert f"Look at {run / 'samples'}{os.sep}" in output


@pytest.mark.parametrize(
    ("settings", "step"), [({"report": False}, 99), ({"steps": 0}, 99), ({}, 2)]
)
def test_no_report(settings: dict[str, Any], step: int, tmp_path: Path) -> None:
    """Without the option, without steps, and after an interruption."""
    tiny_run(tmp_path / "run", {"report": True}, settings, reporter=InterruptAt(step))
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert not (tmp_path / "run" / "report.html").exists()


def test_reconstructions_come_worst_first(runs: Path) -> None:
    tokenizer = genkit.load(runs / "one")
    images = genkit.Subset(all_images("faces", (32, 32), "heldout"), range(12))
    looks = look(tokenizer, images, 12, batch_size=5)
    assert looks.decibels == sorted(looks.decibels)
    first = int(looks.names[0].rpartition("-")[2])
    batch = genkit.images.from_pixels(torch.from_numpy(images.images([first])))
    output = tokenizer(batch)
    assert np.abs(looks.made[0].astype(int) - genkit.images.to_uint8(output.images)[0]).max() <= 1
    assert torch.equal(looks.indices[0][0], output.indices[0][0])
    assert sum(int(counts.sum()) for counts in looks.counts) == sum(
        level.numel() for level in looks.indices
    )


def test_each_code_is_decoded(runs: Path) -> None:
    tokenizer = genkit.load(runs / "one")
    counts = [torch.zeros(shape, dtype=torch.int64) for shape in tokenizer.codebooks]
    for each in counts:
        each[0, 3], each[0, 5] = 7, 9
    (codes, *_) = decoded_codes(tokenizer, counts)
    assert (codes.numbers, codes.counts) == ([5, 3], [9, 7])
    side = tokenizer.levels[-1].stride * 2
    grids = [level.grid(side, side) for level in tokenizer.levels]
    indices = [torch.full((1, *grid), 5) for grid in grids]
    indices[0][:] = 3
    assert np.array_equal(codes.pictures[1], genkit.images.to_uint8(tokenizer.decode(indices))[0])


def test_several_codebooks_are_decoded() -> None:
    options = {**TINY, "quantizer": {"name": "residual-vq", "codebook_size": 16, "codebooks": 2}}
    torch.manual_seed(0)
    tokenizer = Tokenizer(resolve_run(layered(None, options)).tokenizer).eval()
    counts = [torch.ones(shape, dtype=torch.int64) for shape in tokenizer.codebooks]
    codes = list(decoded_codes(tokenizer, counts))
    assert [len(each.numbers) for each in codes] == [16] * len(tokenizer.levels)
    assert len(np.unique(codes[0].pictures, axis=0)) > 1


def test_the_page_needs_nothing_else(runs: Path, tmp_path: Path) -> None:
    made = genkit_here("report", runs / "one", "--images", "4")
    page = runs / "one" / "report.html"
    assert made.stdout == f"The report is in {page}.\n"
    text = page.read_text(encoding="utf-8")
    assert "Options that differ" not in text
    assert not re.search(r'<(script|img|link)[^>]* (src|href)="(?!data:)', text)
    for heading in (
        "Curves",
        "Samples by step",
        "Reconstructions, worst first",
        "Codes as pictures",
    ):
        assert heading in text
    both = genkit_here(
        "report", runs / "one", runs / "deep" / "two", "--images", "4", "--out", tmp_path / "b.html"
    )
    assert both.returncode == 0
    text = (tmp_path / "b.html").read_text(encoding="utf-8")
    assert "<td>lr</td><td>0.001</td><td>0.0001</td>" in text


def row(text: str, label: str) -> list[str]:
    """The cells of the first row with this label in a page's tables."""
    found = re.findall(rf"<tr><td>{re.escape(label)}</td>(.*?)</tr>", text)
    return re.findall("<td>(.*?)</td>", found[0])


def bare(run: Path, out: Path) -> Path:
    """A copy of a run with its samples and few figures, whose page is drawn fast."""
    shutil.copytree(run / "samples", out / "samples")
    shutil.copy(run / "config.toml", out)
    last = Overview.of(run).rows[-1]
    kept = ("bits_per_pixel", "plain_bits_per_pixel", "nats")
    figures = {key: value for key, value in last["validation"].items() if key in kept}
    row = {"step": last["step"], "validation": figures}
    (out / "metrics.jsonl").write_text(json.dumps(row))
    return out


def test_a_bound_is_marked() -> None:
    rows = [{"step": 2, "validation": {"nats": 3.25, "bits_per_pixel": 0.5, "exact": False}}]
    masked = Overview(Path("masked"), {"steps": 2, "tokenizer": "runs/a"}, rows)
    exact = Overview(Path("exact"), masked.config, [{"step": 2, "validation": {"nats": 4.0}}])
    assert _figures([masked, exact])["nats per index"] == ["≤ 3.2500", "4.0000"]
    assert _figures([masked, exact])["bits per pixel"] == ["≤ 0.5000", "-"]


def test_a_tokenizer_beside_a_prior(runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    different = "A tokenizer and a prior have different options; see All options of each run."
    prior = bare(runs / "prior", tmp_path / "prior")
    one, two = bare(runs / "one", tmp_path / "one"), bare(runs / "deep" / "two", tmp_path / "two")
    same = shutil.copytree(one, tmp_path / "same")
    text = genkit.report([one, prior], page).read_text("utf-8")
    assert f"<p>{different}</p>" in text
    assert "the same options" not in text
    plain = f"{genkit.load(runs / 'one').bits_per_pixel:.4f}"
    modelled = f"{Overview.of(runs / 'prior').validation['bits_per_pixel']:.4f}"
    assert row(text, "bits per pixel") == ["-", modelled]
    assert row(text, "bits per pixel without a prior") == [plain, plain]
    assert modelled != plain
    text = genkit.report([one, two, prior], page).read_text("utf-8")
    assert f"<p>{different} Only runs of the same kind are compared here.</p>" in text
    assert row(text, "lr")[:3] == ["0.001", "0.0001", "–"]
    text = genkit.report([one, same, prior], page).read_text("utf-8")
    assert f"<p>{different} Runs of the same kind have the same options.</p>" in text
    text = genkit.report([one, same], page).read_text("utf-8")
    assert "<p>None: the runs have the same options.</p>" in text


def test_options_are_written_as_they_are_typed(runs: Path, tmp_path: Path) -> None:
    text = genkit.report(bare(runs / "one", tmp_path / "run")).read_text("utf-8")
    assert row(text, "tracker") == ["none"]
    assert row(text, "deterministic") == ["false"]
    assert row(text, "project") == ["none"]


def test_damaged_pictures_are_left_out(runs: Path, tmp_path: Path) -> None:
    bare(runs / "one", tmp_path / "run")
    samples = tmp_path / "run" / "samples"
    first, last = sorted(samples.glob("step-*.png"))
    (samples / "step-x.png").touch()
    text = genkit.report(tmp_path / "run").read_text("utf-8")
    assert "left out" not in text
    assert 'type="range"' in text
    last.write_text("junk")
    text = genkit.report(tmp_path / "run").read_text("utf-8")
    assert f"{last.name} is left out, it cannot be read: it is not an image" in text
    assert text.count("data-step=") == 1
    # A slider with one place could not move.
    assert 'type="range"' not in text
    first.write_bytes(first.read_bytes()[:200])
    text = genkit.report(tmp_path / "run").read_text("utf-8")
    assert f"{first.name} is left out" in text
    assert "data-step=" not in text


def plots_of(path: Path, rows: Sequence[dict[str, Any]]) -> dict[str, Curve]:
    """The curves of a run with these metrics, by title."""
    found = curves([Overview(path, {}, rows)])
    return {curve.plot.title.text: curve for curve in found}


def test_held_out_figures_have_hollow_dots(tmp_path: Path) -> None:
    levels = [{"usage": 0.5}]
    rows = [
        {"step": 10, "psnr": 9.0, "levels": levels},
        {"step": 20, "psnr": 9.5, "levels": levels, "validation": {"psnr": 8.5, "ssim": 0.1}},
    ]
    plots = plots_of(tmp_path, rows)
    (dots,) = [each for each in plots["PSNR, dB"].plot.renderers if isinstance(each.glyph, Scatter)]
    assert dots.glyph.fill_color == "white"
    assert dots.glyph.line_color == colour(0)
    (dots,) = [
        each
        for each in plots_of(tmp_path, rows[:1])["PSNR, dB"].plot.renderers
        if isinstance(each.glyph, Scatter)
    ]
    assert dots.glyph.fill_color == colour(0)
    # The axis of a single point fits its value.
    assert plots["SSIM"].plot.y_range.default_span == 0.1
    assert plots["SSIM"].plot.x_range.default_span == 20
    assert "fewer images use fewer codes" in plots["level 0: share of codes in use"].note
    assert plots["SSIM"].note == ""


def test_the_use_of_codes_has_a_legible_axis() -> None:
    assert ticks(0.5, 36) == [1, 2, 5, 10, 20]
    assert ticks(0.05, 3) == [0.1, 0.2, 0.5, 1, 2]
    assert ticks(0.5, 2e6) == [1, 10, 100, 1e3, 1e4, 1e5, 1e6]
    plot = usage(torch.tensor([[28, 3, 1, 0]]), 1, "codes")
    (axis,) = plot.yaxis
    assert (axis.ticker.ticks, axis.ticker.minor_ticks) == ([1, 2, 5, 10, 20], [])
    assert plot.legend[0].items[0].label.value == "mean 8"
    assert plot.y_range.start < 1 < 28 < plot.y_range.end


@pytest.mark.parametrize(
    ("counts", "title"),
    [
        ([[2] * 512], "Level 0: the 256 most used of 512 codes"),
        ([[2] * 256 + [0] * 256], "Level 0: the 256 used of 512 codes"),
        ([[2] * 10 + [0] * 6], "Level 0: the 10 used of 16 codes"),
        ([[2] * 16], "Level 0: all 16 codes"),
        ([[2] * 16] * 2, "Level 0: all 16 codes of the first codebook"),
    ],
)
def test_which_codes_are_shown(counts: list[list[int]], title: str) -> None:
    uses = [count for count in counts[0] if count][:256]
    pictures = np.zeros((len(uses), 2, 2, 3), np.uint8)
    codes = Codes(list(range(len(uses))), uses, pictures)
    assert sheet(codes, torch.tensor(counts), 0).title.text == title


def test_a_run_whose_images_are_gone_still_has_curves(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "one", tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    text = genkit.report(tmp_path / "run").read_text(encoding="utf-8")
    assert "No reconstructions: model.safetensors is missing." in text
    assert "Samples by step" in text


def test_what_cannot_be_reported(runs: Path, tmp_path: Path) -> None:
    wrong = genkit_here("report", tmp_path)
    assert wrong.returncode == 1
    assert "is not a run directory" in wrong.stderr
    gone = tmp_path / "gone"
    assert invoke("report", gone) == (1, f"there is no folder '{gone}'")
    again = runs / "deep" / ".." / "one"
    assert invoke("report", runs / "one", again) == (
        2,
        f"'{again}' is named twice: name every run once",
    )
    wrong = genkit_here("report", runs / "one", "--out", tmp_path / "page.pdf")
    assert wrong.returncode == 2
    assert "must end in .html" in wrong.stderr
    shutil.copytree(runs / "one", tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    with pytest.raises(GenkitError, match="has no metrics yet"):
        genkit.report(tmp_path / "run")


def test_a_read_only_run(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        os, "access", lambda path, mode: Path(path) not in (runs / "one", tmp_path / "run")
    )
    code, output = invoke("report", runs / "one")
    assert code == 1
    assert output.endswith(f"'{runs / 'one'}' is read-only; choose another place with --out"), (
        output
    )
    code, output = invoke("report", runs / "one", "--out", runs / "one" / "other.html")
    assert output.endswith("is read-only")
    page = tmp_path / "page.html"
    code, output = invoke("report", bare(runs / "one", tmp_path / "run"), "--out", page)
    assert code == 0, output


@pytest.mark.slow
def test_the_page_in_a_browser(runs: Path, tmp_path: Path) -> None:
    path = chromium()
    from playwright.sync_api import sync_playwright

    page_file = genkit.report(
        [runs / "one", runs / "deep" / "two", runs / "prior"], tmp_path / "page.html", images=4
    )
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1300, "height": 900}, offline=True)
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda asked: faults.append(asked.url))
        page.goto(page_file.as_uri())
        page.wait_for_selector(".bk-Figure")
        page.wait_for_function("Bokeh.documents.length > 0")
        assert [each for each in faults if not each.startswith(("data:", "file:"))] == []
        # The slider shows the pictures of one step at a time.
        steps = page.locator(".steps").first
        assert steps.locator("img.on").get_attribute("data-step") == "8"
        steps.locator("input").fill("0")
        assert steps.locator("img.on").count() == 1
        assert steps.locator("img.on").get_attribute("data-step") == "4"
        assert steps.locator("output").inner_text() == "4"
        # A box hides the lines of its run in all plots.
        visible = """() => Bokeh.documents.flatMap(each => each.roots())
            .flatMap(plot => plot.renderers)
            .filter(line => line.name === "run-1").map(line => line.visible)"""
        assert set(page.evaluate(visible)) == {True}
        page.locator(".legend input").nth(1).uncheck()
        assert set(page.evaluate(visible)) == {False}
        assert page.locator(".rows figure").count() == 8
        loaded = "() => [...document.images].every(each => each.complete && each.naturalWidth > 0)"
        assert page.evaluate(loaded)
        # On a phone nothing is wider than the screen.
        page.set_viewport_size({"width": 420, "height": 900})
        page.locator("details").first.locator("summary").click()
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") == 420
        # A plot with one point is close around it.
        single = """() => Bokeh.documents.flatMap(each => each.roots())
            .filter(plot => plot.title.text === "nats per index")
            .map(plot => [plot.y_range.start, plot.y_range.end])"""
        ((low, high),) = page.evaluate(single)
        nats = [row["nats"] for row in Overview.of(runs / "prior").rows]
        nats.append(Overview.of(runs / "prior").validation["nats"])
        assert 0 < low < min(nats) < max(nats) < high < 2 * max(nats)
        browser.close()
    assert faults == [page_file.as_uri(), *[each for each in faults if each.startswith("data:")]]
