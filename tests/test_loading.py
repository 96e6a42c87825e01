"""Each reason why a file cannot be loaded has its own message that says what to do."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import distribution, invoke, tiny_run
from safetensors.torch import load_file, save_file
from test_checkpoint import build, rewrite

import genkit
from genkit.checkpoint.metadata import read_genkit
from genkit.errors import CheckpointError
from genkit.plugin.registry import registry

DESCRIBES = """
from genkit import Component, hookimpl

@hookimpl
def genkit_components():
    return [Component("quantizer", "theirs", "theirs_quantizer:Theirs", help="somebody's")]
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    genkit.save(build(), path)
    return path


@pytest.fixture
def theirs(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, str], Path]]:
    """Installs a third-party plugin and returns a model file that was saved with it."""

    def install(described: str, quantizer: str) -> Path:
        site = tmp_path / "site"
        distribution(site, "their-plugin", "1.0", {"theirs": "theirs_plugin"})
        (site / "theirs_plugin.py").write_text(described)
        (site / "theirs_quantizer.py").write_text(quantizer)
        monkeypatch.syspath_prepend(site)
        registry.cache_clear()
        return model

    part = {"kind": "quantizer", "name": "theirs", "distribution": "their-plugin 1.0"}
    rewrite(model, lambda info: info["components"].update(quantizer={**part, "options": {}}))
    yield install
    monkeypatch.undo()
    for module in ("theirs_plugin", "theirs_quantizer"):
        sys.modules.pop(module, None)
    registry.cache_clear()


def refusal(path: Path) -> str:
    with pytest.raises(genkit.GenkitError) as caught:
        genkit.load(path)
    return str(caught.value)


def test_a_missing_plugin_must_be_installed(
    theirs: Callable[[str, str], Path], model: Path
) -> None:
    text = refusal(model)
    assert "needs the quantizer 'theirs', saved with 'their-plugin 1.0'" in text
    assert "not among the plugins here: install it" in text


def test_a_broken_plugin_is_reported(theirs: Callable[[str, str], Path]) -> None:
    text = refusal(theirs("import no_such_library_of_theirs", ""))
    assert "saved with 'their-plugin 1.0', which is installed but broken" in text
    assert "`genkit plugins --traceback`" in text
    assert "is left out: ModuleNotFoundError: No module named 'no_such_library_of_theirs'" in text


@pytest.mark.parametrize(
    ("quantizer", "message"),
    [
        ("raise RuntimeError('no such machine')", "cannot be loaded from .*: no such machine"),
        ("import no_such_library", "needs the package 'no_such_library', which is not installed"),
        ("Other = 1", "cannot be loaded from .* has no attribute 'Theirs'"),
        (
            "class Theirs:\n    def __init__(self, options):\n        pass",
            "cannot be built: TypeError: .*positional argument",
        ),
        (
            "class Theirs:\n    def __init__(self, *args):\n        raise ValueError('too many')",
            "cannot be built: .*too many",
        ),
    ],
)
def test_a_class_that_fails_is_named(
    theirs: Callable[[str, str], Path], quantizer: str, message: str
) -> None:
    path = theirs(DESCRIBES, quantizer)
    with pytest.raises(CheckpointError, match=message) as caught:
        genkit.load(path)
    assert "the model that" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda options: options.update(depth=3), "no option 'encoder.depth'"),
        (lambda options: options.update(norm="rms"), "'encoder.norm' is 'rms'"),
        (lambda options: options.update(latent_channels=9), "the weights in"),
        (lambda options: options.update(strides=[4]), "encoder: "),
    ],
)
def test_a_file_of_another_version_names_it(
    model: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    def newer(info: dict[str, Any]) -> None:
        change(info["components"]["encoder"]["options"])
        info["components"]["encoder"]["distribution"] = "genkit-vq 9.0"

    rewrite(model, newer)
    text = refusal(model)
    assert message in text
    assert text.endswith("\nIt was saved with genkit-vq 9.0; here is genkit-vq 0.1.0.")


def test_mismatched_weights_are_counted_and_the_first_is_named(model: Path) -> None:
    tensors = load_file(model)
    name = sorted(tensors)[0]
    info = {"format": "pt", "genkit": json.dumps(read_genkit(model)[0])}
    save_file({key: value for key, value in tensors.items() if key != name}, model, info)
    text = refusal(model)
    assert f"of 1 tensors that differ the first is '{name}' (file: missing, model: [" in text
    save_file({**tensors, "extra": torch.zeros(3)}, model, info)
    assert "'extra' (file: [3], model: none of that name)" in refusal(model)


FILES = [
    ("empty", b"", "is empty: copy or save it again"),
    (
        "text",
        b"what\nis this\n",
        "is a text file, not a safetensors file: name a run directory, or a .safetensors file",
    ),
    ("page", b"<!doctype html><title>Not found</title>", "is a text file"),
    ("pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ("pickle", b"\x80\x02}q\x00.", "pickle or an archive"),
    ("other", b"\x89PNG\r\n\x1a\n" + bytes(40), "is not a safetensors file, or was cut short"),
]


@pytest.mark.parametrize(
    ("content", "message"), [case[1:] for case in FILES], ids=[case[0] for case in FILES]
)
def test_files_of_other_kinds_are_recognized(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    for read in (genkit.load, genkit.inspect):
        with pytest.raises(CheckpointError) as caught:
            read(path)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("command", ["inspect", "evaluate"])
def test_pickles_are_never_loaded(tmp_path: Path, zipped: bool, command: str) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "exploded",)

    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": Bomb()}, path, _use_new_zipfile_serialization=zipped)
    code, text = invoke(command, path)
    assert code == 1
    assert "a pickle or an archive, which genkit never loads, since it can run any code" in text
    assert not (tmp_path / "exploded").exists()


def test_a_run_without_a_model_has_its_own_message(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("steps = 3\n")
    with pytest.raises(
        CheckpointError, match=r"folder without model.safetensors: its run has not sav"
    ):
        genkit.load(tmp_path)


def test_integers_are_not_accepted_as_weights(model: Path) -> None:
    info, _ = read_genkit(model)
    tensors = load_file(model)
    name = next(name for name in tensors if name.startswith("encoder."))
    tensors[name] = tensors[name].long()
    save_file(tensors, model, {"format": "pt", "genkit": json.dumps(info)})
    assert f"'{name}' is I64 where the model has torch.float32" in refusal(model)


def test_a_file_cannot_choose_local_paths_or_downloads(tmp_path: Path) -> None:
    """Options that are local to one machine are never taken from a file."""
    settings = {"encoder": {"name": "timm", "model": "test_convnext"}, "steps": 0}
    tiny_run(tmp_path / "run", settings)
    path = tmp_path / "run" / "model.safetensors"

    def spoil(info: dict[str, Any]) -> None:
        info["components"]["encoder"]["options"]["weights"] = str(tmp_path / "secret")
        info["training"]["data"] = {"name": "folder", "location": str(tmp_path)}

    rewrite(path, spoil)
    assert genkit.load(path).options.encoder.options.weights == ""
    alone = tmp_path / "alone.safetensors"
    path.rename(alone)
    code, text = invoke("evaluate", alone)
    assert code == 1
    assert "no image folder was named: name one with --data" in text
