"""Distances on the command line: what is printed, recorded and compared; `docs/distances.md`."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import genkit_here, need
from genkit_backbones.features import SHIPPED
from sets_of_images import as_metric, tiny_model


def test_the_command_prints_and_records_distances(trained: Path, tmp_path: Path) -> None:
    metric, file = as_metric(tiny_model(tmp_path)), tmp_path / "a.json"
    done = genkit_here("evaluate", trained, "--images", "6", "--metric", metric, "--out", file)
    assert "KID " in done.stdout, done.stderr
    assert "precision, recall of 6 images from 6, by features of timm's test_con" in done.stdout
    record = json.loads(file.read_text())
    options = record["metrics"]["distances_kid"]["options"]
    assert options["features"] == {"name": "timm", "model": "test_convnext", "size": 32}
    assert options["reference"] == record["protocol"]["pixels"][:16]
    assert (options["images"], options["resize"]) == (6, "32x32, bicubic with antialias")
    # Weights of another file make the figures incomparable, and the message names nothing else.
    other = as_metric(tiny_model(tmp_path, 1))
    record["model"]["fingerprint"] = "of another model"
    file.write_text(json.dumps(record))
    done = genkit_here("compare", file, trained, "--images", "6", "--metric", other)
    assert done.returncode == 1
    text = " ".join(done.stderr.split())
    assert 'the metric distances has the options {"weights_hash": "' in text
    assert "resize" not in text
    done = genkit_here("compare", file, trained, "--images", "6", "--metric", metric)
    assert done.stdout.count("of 6 images from 6") == 1, done.stderr
    # So does another number of images, on which a Fréchet distance depends.
    record["metrics"]["distances_kid"]["options"]["images"] = 5
    file.write_text(json.dumps(record))
    done = genkit_here("compare", file, trained, "--images", "6", "--metric", metric)
    assert 'has the options {"images": 5}' in " ".join(done.stderr.split())


def test_the_flag_needs_weights_of_an_installed_package(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genkit_backbones.features.SHIPPED", {"other": ("no_package", "file")})
    done = genkit_here("evaluate", trained, "--images", "2", "--distances")
    assert done.returncode == 2
    assert "features.weights=FILE, or download it with features.weights=hub" in done.stderr


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
