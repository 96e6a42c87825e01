"""Models on the hub: fetched by address and pushed with a card, on a fake hub on 127.0.0.1."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from conftest import (
    MOBILENET,
    WEIGHTS,
    genkit_here,
    invoke,
    need,
    rows,
    tiny_run,
    weights,
)
from hub_server import Done, Hub, at

import genkit
from genkit.checkpoint.hub import is_name, one_attempt
from genkit.errors import CheckpointError


def test_a_pushed_model_loads_by_its_address(trained: Path, hub: Hub, tmp_path: Path) -> None:
    pushed = at(hub.url, tmp_path, "push", trained, "me/tiny", HF_TOKEN="writes")
    assert pushed.returncode == 0, pushed.stderr
    assert 'genkit.load("hf://me/tiny")' in pushed.stdout
    folder = hub.snapshot("me/tiny", "main")
    assert folder
    assert {path.name for path in folder.iterdir()} == {
        ".gitattributes",
        "README.md",
        "codes.png",
        "config.toml",
        "model.safetensors",
        "samples.png",
    }
    assert (folder / "model.safetensors").read_bytes() == (
        trained / "model.safetensors"
    ).read_bytes()
    assert (folder / "samples.png").read_bytes() == (
        trained / "samples" / "step-000008.png"
    ).read_bytes()

    hub.requests.clear()
    inspected = at(hub.url, tmp_path, "inspect", "hf://me/tiny", "--json")
    assert inspected.returncode == 0, inspected.stderr
    assert json.loads(inspected.stdout)["training"]["step"] == 8
    # Fetched once; given a commit, or without a network, it comes from the cache.
    at_commit = at(hub.url, tmp_path, "inspect", f"hf://me/tiny@{folder.name}")
    assert at_commit.returncode == 0, at_commit.stderr
    own = json.loads(invoke("evaluate", trained, "--json")[1])
    offline = at(hub.url, tmp_path, "evaluate", "hf://me/tiny", "--json", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0, offline.stderr
    assert json.loads(offline.stdout)["psnr"] == pytest.approx(own["psnr"], abs=1e-5)
    assert {request.rpartition("/")[2] for request in hub.requests} == {"", "model.safetensors"}
    # A command checks that the hub answers and then requests the file once.
    assert sum(request.startswith("HEAD") for request in hub.requests) == 3
    assert sum(request.startswith("GET") for request in hub.requests) == 1

    again = at(hub.url, tmp_path, "push", trained, "me/tiny", HF_TOKEN="writes")
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize("command", ["evaluate", "reconstruct", "encode", "export"])
def test_a_command_requests_a_file_once(
    command: str,
    trained: Path,
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def fetch(address: str, file: str) -> Path:
        asked.append(address)
        return trained / file

    monkeypatch.setattr("genkit.checkpoint.metadata.fetch", fetch)
    out = tmp_path / {"evaluate": "a.json", "encode": "a.safetensors"}.get(command, "out")
    images = [photographs] if command in ("reconstruct", "encode") else []
    # A graph of one size takes half as long; one for any size needs a recent PyTorch.
    size = ["--resolution", "16", "--batch-size", "1"] if command == "export" else []
    code, text = invoke(command, "hf://me/tiny", *images, *size, "--out", out)
    assert code == 0, text
    assert asked == ["hf://me/tiny"]


def test_an_unreachable_hub_does_not_disable_the_cache(
    trained: Path, hub: Hub, tmp_path: Path
) -> None:
    hub.commit("me/tiny", {"model.safetensors": (trained / "model.safetensors").read_bytes()})
    assert at(hub.url, tmp_path, "inspect", "hf://me/tiny").returncode == 0
    nobody = "http://127.0.0.1:9"
    assert at(nobody, tmp_path, "inspect", "hf://me/tiny").returncode == 0
    hub.private.add("me/tiny")
    assert at(hub.url, tmp_path, "inspect", "hf://me/tiny").returncode == 0
    other = at(nobody, tmp_path, "inspect", "hf://me/other@v1")
    assert_error(
        other,
        "'hf://me/other' is not in the cache and http://127.0.0.1:9 cannot be reached",
        "`hf download me/other model.safetensors --revision v1`",
    )


def assert_error(done: Done, *texts: str, code: int = 1) -> None:
    """There is one line on stderr, which contains each of the texts, and no traceback."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("Error: ")
    assert len(lines) == 1 or code == 2
    for text in texts:
        assert text in lines[-1]


def test_failed_downloads_are_reported(trained: Path, hub: Hub, tmp_path: Path) -> None:
    hub.commit("me/empty", {"README.md": b"nothing"})
    hub.commit("me/gated", {"model.safetensors": b""})
    hub.commit("me/broken", {"model.safetensors": b"no checkpoint at all"})
    hub.gated.add("me/gated")
    cases = {
        "hf://me/nothing": ("'me/nothing' is not on the hub", "hf auth login"),
        "hf://me/empty": ("'me/empty' has no model.safetensors", "genkit push"),
        "hf://me/empty@v1": ("'me/empty' at revision 'v1' has no model.safetensors",),
        "hf://me/gated": ("'me/gated' is not on the hub, or it is", "ask for access"),
        "hf://me/broken": ("not a safetensors file",),
    }
    for address, texts in cases.items():
        assert_error(at(hub.url, tmp_path, "inspect", address), *texts)
    stranger = at(f"{hub.url}/portal", tmp_path, "inspect", "hf://me/nothing")
    assert_error(stranger, "is not a hub", "HF_ENDPOINT")
    offline = at(hub.url, tmp_path, "inspect", "hf://me/away", HF_HUB_OFFLINE="1")
    assert_error(offline, "HF_HUB_OFFLINE", "hf download me/away model.safetensors")


@pytest.mark.parametrize(
    "address",
    ["hf://", "hf://tiny", "hf://a/b/c", "hf://a/b@", "hf://a/b@x y", "hf://a/..", "hf://ä/b"],
)
def test_a_malformed_address_is_reported(address: str) -> None:
    for read in (genkit.load, genkit.inspect):
        with pytest.raises(CheckpointError, match=r"not the address .* hf://owner/name@revision"):
            read(address)


def test_names_follow_the_rules_of_the_hub() -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    for name in ("me/a", "me/a-b.c_d", "a--b/c", "me/a..b", ".a/b", "a/b-", "a/b.git", "x" * 97):
        try:
            validate_repo_id(name)
            valid = "/" in name
        except HFValidationError:
            valid = False
        assert is_name(name) == valid, name


def test_refusals_of_the_hub_are_reported(trained: Path, hub: Hub, tmp_path: Path) -> None:
    hub.commit("me/public", {"README.md": b"---\n"})
    push = ("push", trained)
    cases: list[tuple[tuple[str | Path, ...], str, str]] = [
        ((*push, "me/x"), "", "hf auth login"),
        ((*push, "me/x"), "wrong", "does not let you write to 'me/x': 401"),
        ((*push, "me/x"), "reads", "does not let you write to 'me/x': 403"),
        ((*push, "you/x"), "writes", "does not let you write to 'you/x': 403"),
        ((*push, "me/public", "--private"), "writes", "already exists and is public"),
        (("push", tmp_path, "me/x"), "writes", "folder without model.safetensors"),
        (("push", "hf://me/x", "me/x"), "writes", "already published"),
    ]
    for args, token, text in cases:
        assert_error(at(hub.url, tmp_path, *args, HF_TOKEN=token), text)
    wrong = at(hub.url, tmp_path, *push, "tiny", HF_TOKEN="writes")
    assert_error(wrong, "'tiny' is not a repository name", code=2)
    for url, env in (("http://127.0.0.1:9", {}), (hub.url, {"HF_HUB_OFFLINE": "1"})):
        away = at(url, tmp_path, *push, "me/x", HF_TOKEN="writes", **env)
        assert_error(away, "--folder DIR")
    assert sorted(path.name for path in (hub.root / "me").iterdir()) == ["public"]
    private = at(hub.url, tmp_path, *push, "me/private", "--private", HF_TOKEN="writes")
    assert private.returncode == 0, private.stderr
    assert hub.private == {"me/private"}


def test_the_card_states_the_figures_and_how_to_load(trained: Path, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    code, text = invoke("push", trained, "me/tiny", "--folder", tmp_path / "out")
    assert code == 0, text
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.library_name == "genkit"
    assert card.data.license is None
    results = {each.metric_type: each for each in card.data.eval_results or []}
    assert results.keys() == {"psnr", "ssim", "mae", "mae_over_variance", "bits_per_pixel"}
    assert results["psnr"].metric_value == pytest.approx(rows(trained)[-1]["validation"]["psnr"])
    assert results["psnr"].dataset_name == "faces, held-out images at 32 x 32"
    text = card.text
    last = rows(trained)[-1]["validation"]
    for part in (
        f"{last['psnr']:.3f} dB",
        f"{last['mae']:.5f}",
        "at step 8: 8 held-out images of the data set `faces` at 32 x 32 pixels",
        "heldout 16",
        f"{last['levels'][1]['active']} ({last['levels'][1]['usage']:.1%})",
        "(samples.png)",
        "(codes.png)",
        'genkit.load("hf://me/tiny")',
        "`genkit-vq 0.1.0`",
    ):
        assert part in text, part
    for picture in re.findall(r"\]\((\w+\.\w+)\)", text):
        assert (tmp_path / "out" / picture).is_file()
    assert "checkpoints" not in {path.name for path in (tmp_path / "out").iterdir()}
    assert genkit.load(tmp_path / "out").codebook_sizes == [16, 16]


def test_no_folder_of_this_machine_is_published(photographs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    tiny_run(run, {"steps": 2, "data": {"name": "folder", "location": str(photographs)}})
    assert str(photographs) in (run / "config.toml").read_text()
    assert invoke("push", run, "me/tiny", "--folder", tmp_path / "out")[0] == 0
    for path in (tmp_path / "out").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name
    settings = tomllib.loads((tmp_path / "out" / "config.toml").read_text())
    assert settings["data"]["heldout"] == 0.1
    assert "location" not in settings["data"]
    done = genkit_here(
        *("train", "--config", tmp_path / "out" / "config.toml", "--data", photographs),
        *("--steps", "0", "--out", tmp_path / "again"),
    )
    assert done.returncode == 0, done.stderr
    assert weights(tmp_path / "again").keys() == weights(run).keys()


def test_publishing_does_not_overwrite_the_run(trained: Path) -> None:
    before = (trained / "config.toml").read_bytes()
    code, text = invoke("push", trained, "me/tiny", "--folder", trained)
    assert code == 2
    assert "must not be the folder of the run itself" in text
    assert (trained / "config.toml").read_bytes() == before


def test_the_card_names_other_inputs_of_a_run(tmp_path: Path) -> None:
    need(WEIGHTS)
    perceptual = {"name": "timm", "weights": MOBILENET}
    tiny_run(tmp_path / "run", {"perceptual": perceptual, "steps": 0})
    code, text = invoke("push", tmp_path / "run", "me/tiny", "--folder", tmp_path / "card")
    assert code == 0, text
    card = (tmp_path / "card" / "README.md").read_text()
    assert "repeats the run, given the data and `--perceptual.weights`" in card
    assert MOBILENET not in card + (tmp_path / "card" / "config.toml").read_text()


def test_files_have_the_usual_permissions(trained: Path) -> None:
    """The safetensors library makes its files readable only by their owner."""
    written = [path for path in trained.rglob("*") if path.is_file()]
    assert len({path.stat().st_mode for path in written}) == 1
    assert {".safetensors", ".json", ".toml", ".png"} <= {path.suffix for path in written}


def test_a_model_file_alone_is_published_with_its_metadata(trained: Path, tmp_path: Path) -> None:
    shutil.copy(trained / "model.safetensors", tmp_path / "some.safetensors")
    args = ("push", tmp_path / "some.safetensors", "me/tiny", "--folder", tmp_path / "out")
    assert invoke(*args)[0] == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md",
        "model.safetensors",
    }
    assert "None are stored" in (tmp_path / "out" / "README.md").read_text()


def test_the_card_of_a_stopped_run_names_the_step_of_its_figures(
    trained: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    kept = (run / "metrics.jsonl").read_text().splitlines()
    kept = [line for line in kept if json.loads(line)["step"] <= 6]
    (run / "metrics.jsonl").write_text("\n".join(kept) + '\n{"step": 7, "lo')
    assert invoke("push", run, "me/tiny", "--folder", tmp_path / "out")[0] == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert "at step 4" in text
    assert "The weights are from step 8." in text


def test_an_unreachable_hub_is_disabled_only_temporarily(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with one_attempt() as reached:
        assert (reached, constants.HF_HUB_OFFLINE) == (False, True)
    assert not constants.HF_HUB_OFFLINE


def test_the_hubs_library_is_imported_only_for_addresses(trained: Path) -> None:
    import sys

    code = (
        "import sys, genkit; genkit.inspect(sys.argv[1])\n"
        "from genkit_cli.commands import push\n"
        "print('huggingface_hub' in sys.modules, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(trained)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
