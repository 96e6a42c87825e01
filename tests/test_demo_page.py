"""The page of `genkit demo` in a browser, from a server in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import chromium, need
from PIL import Image


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """An image whose sides no stride divides."""
    path = tmp_path / "a photo.png"
    Image.linear_gradient("L").resize((60, 45)).convert("RGB").save(path)
    return path


# Starts `genkit` and logs every machine that it connects to and every name that it looks up.
WATCHED = """
import sys
def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        target = args[1] if event == "socket.connect" else args[0]
        print(event, target, file=log, flush=True)
log = open(sys.argv.pop(1), "w")
sys.addaudithook(watch)
from table import Table
import genkit
genkit.register(genkit.Component("prior", "table", Table))
from genkit_cli.main import main
main()
"""


@contextmanager
def served(run: Path, folder: Path, stop: signal.Signals = signal.SIGINT) -> Iterator[str]:
    """The address of a demo in a process of its own, which connects nowhere and leaves no file."""
    log, temporary = folder / "log", folder / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-c", WATCHED, str(log), "demo", str(run), "--device", "cpu"]
    process = subprocess.Popen(
        command,
        cwd=Path(__file__).parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    try:
        line = process.stdout.readline()
        found = re.fullmatch(
            r"The demo is at (http://127\.0\.0\.1:\d+); press Ctrl-C to stop it\.\n", line
        )
        if not found:
            process.kill()
            pytest.fail(f"{line}{process.communicate()[1]}")
        yield found[1]
        assert list(temporary.glob("genkit-demo-*"))
        process.send_signal(stop)
        _, errors = process.communicate(timeout=30)
        loading = "Loading PyTorch, Gradio and the model …\n"
        # Neither a failure on the page nor the end prints a traceback.
        if stop == signal.SIGINT:
            ended = (130, f"{loading}\nThe demo has ended.\n")
        else:
            ended = (1, loading)
        assert (process.returncode, errors) == ended
        assert not list(temporary.glob("genkit-demo-*"))
    finally:
        process.kill()
    assert [each for each in log.read_text().splitlines() if "127.0.0.1" not in each] == []


@contextmanager
def opened(address: str) -> Iterator[Any]:
    """The page at an address in Chromium; it may have no errors and ask no other address."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(60_000)
        faults: list[str] = []
        asked: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "console",
            lambda message: faults.append(message.text) if message.type == "error" else None,
        )
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.wait_for_selector("h1")
        yield page
        browser.close()
    assert faults == []
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert any(url.startswith(address) for url in asked)


TOPS = """() => [...document.querySelectorAll(".figures img")]
    .filter(image => image.offsetParent)
    .map(image => image.getBoundingClientRect().top)"""


def sizes(page: Any) -> dict[str, tuple[int, int]]:
    """The natural width and height of the pictures on the page, by their titles."""
    script = """() => [...document.querySelectorAll(".figures img")]
        .filter(image => image.offsetParent)
        .map(image => [image.alt, [image.naturalWidth, image.naturalHeight]])"""
    return {title: (width, height) for title, (width, height) in page.evaluate(script)}


@pytest.mark.slow
def test_a_tokenizer_in_a_browser(trained: Path, picture: Path, tmp_path: Path) -> None:
    need("gradio")
    chromium()
    with served(trained, tmp_path) as address, opened(address) as page:
        page.set_input_files("input[type=file]", picture)
        page.wait_for_selector("text=Level 0 alone")
        for width in (1000, 1120, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            tops = page.evaluate(TOPS)
            assert len(set(tops[:3])) == 1, (width, tops)
            first = page.locator(".figures img").first.bounding_box()
            assert first["width"] > width / 5
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert sizes(page) == {
            **dict.fromkeys(["Image", "Reconstruction", "Difference"], (60, 45)),
            **{"Level 0": (16, 12), "Level 1": (8, 6)},
            **dict.fromkeys(["Level 1 alone", "Level 0 alone"], (60, 45)),
        }
        (tmp_path / "bad.png").write_text("no image")
        page.get_by_label("Clear").first.click()
        page.wait_for_selector(".figures img", state="detached")
        page.wait_for_selector("text=Drop an image to see its reconstruction.")
        page.wait_for_selector("text=What each level contributes.")
        page.set_input_files("input[type=file]", tmp_path / "bad.png")
        page.wait_for_selector("text=it is not an image in a supported format")
        assert "Traceback" not in page.locator("body").inner_text()


@pytest.mark.slow
def test_a_prior_in_a_browser(drawn: Path, picture: Path, tmp_path: Path) -> None:
    need("gradio")
    chromium()
    with served(drawn, tmp_path, signal.SIGTERM) as address, opened(address) as page:
        draw = page.get_by_role("button", name="Draw")
        seed = page.get_by_label("Seed").first
        for wrong in ("", "-1", "1.5"):
            seed.fill(wrong)
            draw.click()
            page.wait_for_selector("text=Seed must be a whole number from 0.")
            page.get_by_test_id("toast-close").click()
            page.wait_for_selector("text=Seed must be a whole number from 0.", state="detached")
        seed.fill("0")
        for label, default in (("Images", "16"), ("Temperature", "1")):
            field = page.get_by_label(f"number input for {label}").first
            field.fill("")
            field.blur()
            assert field.input_value() == default
        draw.click()
        page.wait_for_selector(".figures img")
        assert sizes(page) == {str(number): (32, 32) for number in range(16)}
        page.get_by_role("tab", name="Complete").click()
        page.get_by_role("button", name="Complete").click()
        page.wait_for_selector("text=Drop an image first.")
        page.locator("input[type=file]").nth(0).set_input_files(picture)
        page.wait_for_selector(f"text={picture.stem}")
        page.get_by_role("button", name="Complete").click()
        page.wait_for_selector("text=40 of 80 indices")
        page.wait_for_selector('img[alt="5"] >> visible=true')
        names = ["Image", "Kept part", *map(str, range(6))]
        assert sizes(page) == dict.fromkeys(names, (32, 32))
