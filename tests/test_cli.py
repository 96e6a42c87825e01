"""The command line as users see it: real processes, exit codes, messages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, flags, genkit_command, genkit_here, invoke
from genkit_cli.main import COMMANDS
from PIL import Image
from safetensors.torch import load_file

from genkit.plugin.installing import to_install
from genkit.settings import data_table
from genkit.tokens.decode import safe_name


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help(command: str) -> None:
    code, text = invoke(command, "--help")
    assert code == 0
    assert "Usage: genkit" in text


def test_help_is_a_command_too() -> None:
    assert invoke("help")[1] == invoke("--help")[1]
    assert invoke("help", "inspect")[1] == invoke("inspect", "--help")[1]


def test_train_help_shows_the_options_of_chosen_components() -> None:
    _, plain = invoke("train", "--help")
    _, chosen = invoke(
        "train",
        "--attention",
        "pixel",
        "--discriminator",
        "patchgan",
        "--quantizer",
        "fsq",
        "--help",
    )
    assert "encoder 'aren':" in plain
    assert "quantizer 'vq':" in plain
    assert "--strides INT,…" in plain
    assert "discriminator 'patchgan':" not in plain
    for section in ("attention 'pixel':", "discriminator 'patchgan':", "quantizer 'fsq':"):
        assert section in chosen
    assert "quantizer 'vq':" not in chosen


def test_help_breaks_no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in ("60", "80", "97"):
        monkeypatch.setenv("COLUMNS", columns)
        text = invoke("train", "--help")[1]
        for name in ("multi-head-vq", "residual-simvq", "zoo-fsq"):
            assert name in text
        assert "\u2011" not in text


WRONG = [
    (["trian"], "Did you mean 'train'"),
    (["train", "--widht", "3"], "Did you mean '--width'"),
    (
        ["train", "--width", "3"],
        "ambiguous: write --encoder.width or --fusion.width or --decoder.width.",
    ),
    (["train", "--encoder", "arem"], "There is no encoder 'arem'. Did you mean 'aren'?"),
    (["train", "--encoder", "arne", "--levels", "2"], "There is no encoder 'arne'. Did you mean"),
    (["train", "--optimizer", "lambb"], "There is no optimizer 'lambb'. Did you mean 'lamb'"),
    (["train", "--attention", "pixle", "--dim", "8"], "There is no attention 'pixle'. Did you"),
    (["train", "--out", ""], "--out is empty; is a variable unset?"),
    (["train", "--config", ""], "--config is empty"),
    (["encode", "x", "y", "--out", ""], "--out is empty"),
    (["train", "--encoder.width", ""], "must be a whole number"),
    (["train", "--levels", "many"], "'encoder.levels' is 'many'; it must be a whole number"),
    (["train", "--levels", "9"], "9 levels need at least 9 strides"),
    (["train", "--dim", "8"], "--dim belongs to attention pixel: add --attention pixel."),
    (["train", "--data", "nowhere"], "neither a folder nor an installed data set"),
    (["train", "--preset", "a-vqva"], "There is no preset 'a-vqva'"),
    (["train", "--batch-size", "0"], "must be at least 1"),
    (["train", "--adversarial-weight", "1"], "without --discriminator NAME, --adversarial-weight"),
    (["train", "--discriminator", "patchgan", "--r1-every", "2"], "without --r1-weight above 0"),
    (["components", "encodr"], "Did you mean 'encoder'"),
    (["evaluate"], "Missing argument"),
]


@pytest.mark.parametrize(("args", "message"), WRONG)
def test_usage_errors_name_the_mistake(args: list[str], message: str) -> None:
    code, text = invoke(*args)
    assert code == 2
    assert message in text


def test_failures_are_one_message_and_an_exit_code(tmp_path: Path) -> None:
    done = genkit_command("evaluate", "nothing", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr == "Error: 'nothing' does not exist: name a run directory, a .safetensors file "
        "or hf://owner/name\n"
    )
    wrong = genkit_command("train", "--stepps", "3", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "Did you mean '--steps'" in wrong.stderr
    assert not list(tmp_path.iterdir())


def test_flags_may_be_written_with_underscores(tmp_path: Path) -> None:
    code, text = invoke("train", "--batch_size=0")
    assert code == 2
    assert "'batch-size' is 0" in text


def test_a_config_file_overrides_presets_and_flags_override_it(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text('steps = 3\n[encoder]\nname = "aren"\nlatent-channels = 5\nlevels = 3\n')
    _, text = invoke("train", "--config", config, "--help")
    options = {
        line.split()[0]: line
        for line in text.replace("\n" + " " * 30, " ").splitlines()
        if line.strip().startswith("--")
    }
    assert options["--steps"].endswith("[3]")
    assert options["--levels"].endswith("[3]")
    assert options["--latent-channels"].endswith("[5]")
    # The file's three levels would need a resolution of 16; the flag overrides them.
    assert (
        genkit_here(
            "train",
            "--config",
            config,
            "--levels",
            "1",
            "--steps",
            "0",
            "--resolution",
            "8",
            "--out",
            tmp_path / "run",
        ).returncode
        == 0
    )
    assert (
        json.loads(invoke("inspect", tmp_path / "run", "--json")[1])["components"]["encoder"][
            "options"
        ]["levels"]
        == 1
    )
    config.write_text("steps = ")
    assert invoke("train", "--config", config)[0] == 2
    config.write_text("stepps = 3")
    assert "Did you mean 'steps'" in invoke("train", "--config", config)[1]


def test_components_and_plugins_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    _, text = invoke("components")
    for name in (
        "aren",
        "pixel",
        "hierarchical",
        "vq",
        "mirror",
        "patchgan",
        "faces",
        "folder",
        "fsq",
    ):
        assert name in text
    assert "genkit-vq-fsq 0.1.0" in text
    _, one = invoke("components", "encoder", "aren")
    assert "latent-channels INT" in one
    # A name of timm's stands for a component with this algorithm.
    _, distances = invoke("components", "metric", "distances")
    assert "figures all|fd|kid|precision|recall|sfid|is,…" in distances
    _, lion = invoke("components", "optimizer", "lion")
    assert "optimizer 'timm'" in lion
    assert "name of a timm optimizer [lion]" in lion
    _, plugins = invoke("plugins")
    assert "genkit-vq-fsq 0.1.0" in plugins
    assert "quantizer fsq" in " ".join(plugins.split())


def test_components_are_listed_for_programs() -> None:
    listed = json.loads(invoke("components", "--json")[1])
    assert {"kind": "quantizer", "name": "fsq"}.items() <= next(
        each.items() for each in listed if each["name"] == "fsq"
    )
    (one,) = json.loads(invoke("components", "optimizer", "lamb", "--json")[1])
    assert one["name"] == "timm"
    values = {each["name"]: each["value"] for each in one["options"]}
    assert values["algorithm"] == "lamb"
    for each in listed:
        assert json.loads(invoke("components", each["kind"], each["name"], "--json")[1])


def test_plugins_are_readable_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line exceeds the width, and no name is broken at its hyphens."""
    monkeypatch.setenv("COLUMNS", "60")
    _, text = invoke("plugins")
    assert max(map(len, text.splitlines())) <= 60
    words = {word.strip(",") for word in text.split()}
    assert {"ah-vqvae-3-exact", "grouped-residual-vq", "genkit-vq-fsq"} <= words
    assert {"ah-vqvae-3-exact", "grouped-residual-vq"} <= set(invoke("components")[1].split())
    listed = {plugin["plugin"]: plugin for plugin in json.loads(invoke("plugins", "--json")[1])}
    assert listed["avqvae"]["components"]["attention"] == ["pixel", "none"]
    assert "ah-vqvae-3-exact" in listed["avqvae"]["presets"]
    assert listed["fsq"]["distribution"] == "genkit-vq-fsq"
    assert listed["fsq"]["error"] is None


@pytest.mark.parametrize("lacking", [[], ["vector-quantize-pytorch"]])
def test_a_component_without_its_library_says_what_to_install(
    lacking: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("genkit_cli.commands.components.missing", lambda requirement: lacking)
    assert ("(needs genkit-vq[zoo])" in invoke("components", "quantizer")[1]) == bool(lacking)
    how = f": {to_install('genkit-vq[zoo]')}" if lacking else ", which is installed"
    assert f"needs genkit-vq[zoo]{how}\n" in invoke("components", "quantizer", "lfq")[1]


def test_inspect(trained: Path) -> None:
    code, text = invoke("inspect", trained)
    assert code == 0
    assert "attention = pixel" in text
    info = json.loads(invoke("inspect", trained, "--json")[1])
    assert info["training"]["step"] == 8
    assert info["parameters"]["total"] == sum(info["parameters"]["modules"].values())


def test_reconstruct_writes_pairs(trained: Path, photographs: Path, tmp_path: Path) -> None:
    (photographs / "broken.png").write_bytes(b"no")
    first = next(photographs.rglob("00.png"))
    code, text = invoke("reconstruct", trained, photographs, first, "--out", tmp_path / "out")
    assert code == 0
    assert "13 pictures" in text
    assert "broken.png is left out" in text
    pictures = sorted((tmp_path / "out").iterdir())
    assert len(pictures) == 13
    with Image.open(pictures[0]) as picture:
        assert picture.size == (60 * 2 + 2, 48)
    assert invoke("reconstruct", trained, tmp_path / "nowhere.png", "--out", tmp_path)[0] == 2


def test_encode_and_decode_match_the_tokenizer(
    trained: Path, photographs: Path, tmp_path: Path
) -> None:
    from genkit_datasets import FolderOptions
    from genkit_datasets.folder import Folder

    import genkit
    from genkit.images import from_pixels, to_uint8

    tokens = tmp_path / "tokens.safetensors"
    assert invoke("encode", trained, photographs, "--out", tokens, "--batch-size", "5")[0] == 0
    images = from_pixels(
        Folder(FolderOptions(location=str(photographs)), (32, 32), 0).split("all").images(range(12))
    )
    tokenizer = genkit.load(trained)
    indices = tokenizer.encode(images)
    written = load_file(tokens)
    assert all(torch.equal(written[f"level{level}"].long(), indices[level]) for level in range(2))
    assert invoke("decode", trained, tokens, "--out", tmp_path / "out")[0] == 0
    pictures = sorted((tmp_path / "out").iterdir())
    expected = to_uint8(tokenizer.decode(indices))
    assert len(pictures) == 12
    for path, pixels in zip(pictures, expected, strict=True):
        assert np.abs(np.asarray(Image.open(path)).astype(int) - pixels).max() <= 1
    assert pictures[0].name == "00000-a-01.png"


def test_encode_overwrites_nothing(trained: Path, photographs: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    model = tmp_path / "run" / "model.safetensors"
    before = model.read_bytes()
    for out, message in (
        (model, "exists already: name another --out"),
        (tmp_path / "run", "is a folder with files already: name another --out"),
        (Path("/proc/nowhere/t.safetensors"), "cannot be written"),
    ):
        code, text = invoke("encode", trained, photographs, "--out", out)
        assert code > 0
        assert message in text
    assert model.read_bytes() == before


@pytest.mark.parametrize("command", ["encode", "reconstruct"])
def test_an_empty_folder_is_an_error(command: str, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, text = invoke(command, trained, tmp_path / "empty", "--out", tmp_path / "out")
    assert code == 1
    assert "no image can be read" in text
    assert not (tmp_path / "out").exists()


def test_decode_takes_only_indices_that_fit(trained: Path, tmp_path: Path) -> None:
    code, text = invoke("decode", trained, trained / "model.safetensors", "--out", tmp_path / "out")
    assert code == 1
    assert "holds no indices" in text
    assert (
        "there is no file"
        in invoke("decode", trained, tmp_path / "no", "--out", tmp_path / "out")[1]
    )
    assert not (tmp_path / "out").exists()


def test_indices_of_another_model_are_not_decoded(trained: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "t.safetensors"
    assert invoke("encode", trained, "faces", "--out", tokens)[0] == 0
    other = tmp_path / "other"
    assert genkit_here("train", *flags({**TINY, "steps": 0}), "--out", other).returncode == 0
    code, text = invoke("decode", other, tokens, "--out", tmp_path / "out")
    assert code == 1
    assert "made by another model" in text
    assert "holds indices, not a tokenizer" in invoke("inspect", tokens)[1]


@pytest.mark.parametrize("command", ["train", "reconstruct", "encode"])
def test_a_file_in_the_way_is_an_error(command: str, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    args = flags(TINY) if command == "train" else [trained, "faces"]
    done = genkit_here(command, *args, "--out", tmp_path / "file" / "x")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr
    assert (tmp_path / "file").read_text() == "in the way"


def test_brackets_in_a_path_are_not_markup(tmp_path: Path) -> None:
    done = genkit_here("train", *flags(TINY), "--out", "m[/y][bold]z", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Next: genkit evaluate 'm[/y][bold]z'" in done.stdout


def test_running_out_of_memory_is_reported(tmp_path: Path) -> None:
    huge = flags({**TINY, "quantizer": {"codebook_size": 10**13}})
    done = genkit_here("train", *huge, "--out", tmp_path / "run")
    assert done.returncode == 1
    assert "there is not enough memory" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/abs/x.png", "a\\b.png", "ä/..", "", "x" * 300, "\x00\n"]
)
def test_safe_names_stay_in_their_folder(name: str) -> None:
    safe = safe_name(name, 3)
    assert safe.startswith("00003-")
    assert not set(safe) & set("/\\.\x00\n")
    assert len(safe.encode()) < 200


def test_resume_refuses_another_run_and_takes_more_steps(trained: Path, tmp_path: Path) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(trained, run)
    code, text = invoke("train", "--resume", "--out", run, "--lr", "3", "--levels", "1")
    assert code == 2
    assert "--encoder.levels, --lr would make it another run" in text
    code, text = invoke("train", "--resume", "--out", tmp_path / "run", "--quantizer", "fsq")
    assert text == (
        "--quantizer would make it another run: leave it out, or start a new run without --resume"
    )
    longer = genkit_here("train", "--resume", "--out", run, "--steps", "10")
    assert longer.returncode == 0, longer.stderr
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 10
    assert (
        "is not a run directory that can be resumed"
        in invoke("train", "--resume", "--out", tmp_path / "nothing")[1]
    )


def test_the_default_run_directory_is_the_next_free_one(tmp_path: Path) -> None:
    (tmp_path / "runs" / "faces").mkdir(parents=True)
    done = genkit_here("train", *flags({**TINY, "steps": 0}), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        "model is runs/faces-2/model.safetensors. Next: genkit evaluate runs/faces-2" in done.stdout
    )


@pytest.mark.parametrize(
    "command",
    [
        ["train", "--data", "faces", "--steps", "0"],
        ["encode", "{run}", "faces", "--out", "codes"],
        ["reconstruct", "{run}", "faces", "--out", "pictures"],
        ["evaluate", "{run}", "--data", "faces"],
    ],
    ids=lambda command: command[0],
)
def test_a_folder_named_like_a_data_set(
    command: list[str], trained: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name on the command line is ambiguous; the data set in a run's config is not."""
    photographs.rename(photographs.parent / "faces")
    monkeypatch.chdir(photographs.parent)
    code, text = invoke(*(part.format(run=trained) for part in command))
    assert code == 2
    assert "give ./faces for the folder or file, or faces: for the data set" in " ".join(
        text.split()
    )
    assert data_table("faces:") == data_table("faces") == {"name": "faces"}
    assert data_table("./faces")["name"] == "folder"


def test_the_data_set_of_a_run_is_not_ambiguous(
    trained: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs.rename(photographs.parent / "faces")
    monkeypatch.chdir(photographs.parent)
    for place in ([], ["--data", "faces:"]):
        code, text = invoke("evaluate", trained, *place, "--images", "2")
        assert code == 0, text
        assert "2 held-out images of faces" in text
    config = trained / "config.toml"
    code, text = invoke("train", "--config", config, "--steps", "0", "--out", "again")
    assert code == 0, text
