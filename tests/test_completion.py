"""Completion of values by the shell, through click's protocol."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from genkit_cli.main import cli


def offered(line: str) -> list[tuple[str, str]]:
    """The types and values that are offered for the last word of a line."""
    words = shlex.split(line) + [""] * line.endswith(" ")
    found = ShellComplete(cli, {}, "genkit", "_GENKIT_COMPLETE").get_completions(
        words[1:-1], words[-1]
    )
    return [(item.type, item.value) for item in found]


def names(line: str) -> list[str]:
    return [value for kind, value in offered(line) if kind == "plain"]


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("genkit train --encoder ", ["aren", "timm", "vqgan"]),
        ("genkit train --quantizer=residual-v", ["residual-vq"]),
        ("genkit train --attention ", ["none", "pixel"]),
        ("genkit train --encoder.attention p", ["pixel"]),
        ("genkit train --discriminator n", ["none"]),
        ("genkit train --mixed-precision ", ["no", "bf16", "fp16"]),
        ("genkit train --trainable encoder,d", ["encoder,decoder", "encoder,discriminator"]),
        ("genkit train --preset vqgan,adv", ["vqgan,adversarial"]),
        ("genkit train --data fa", ["faces"]),
        ("genkit train --quantizer fsq --bin", ["--bins"]),
        ("genkit train --encoder nothing --quantizer fs", ["fsq"]),
        ("genkit train --attention none --encoder.attention pixel --quantizer fs", ["fsq"]),
        ("genkit train-prior nowhere --prior ", ["autoregressive", "masked"]),
        ("genkit components opt", ["optimizer"]),
        ("genkit components encoder ", ["aren", "timm", "vqgan"]),
        ("genkit evaluate runs/x --metric d", ["distances"]),
        ("genkit evaluate runs/x --data fol", ["folder"]),
        ("genkit import x --family llam", ["llamagen"]),
        ("genkit encode x --split ", ["train", "heldout", "all"]),
        ("genkit sam", ["sample"]),
    ],
)
def test_values_are_completed(line: str, values: list[str]) -> None:
    assert names(line) == values


def test_presets_are_those_of_the_command() -> None:
    assert "vqgan" in names("genkit train --preset ")
    assert "vqgan" not in names("genkit train-prior --preset ")


@pytest.mark.parametrize(
    "line",
    [
        "genkit evaluate ru",
        "genkit compare runs/a ru",
        "genkit encode runs/x ./ph",
        "genkit train --config ow",
        "genkit train --data ./ph",
        "genkit train --from ru",
        "genkit train --encoder timm --encoder.weights mo",
        "genkit sample ru",
        "genkit import we",
    ],
)
def test_files_are_completed_by_the_shell(line: str) -> None:
    assert offered(line) == [("file", line.split()[-1])]


def test_descriptions_come_with_the_names() -> None:
    (item,) = ShellComplete(cli, {}, "genkit", "_GENKIT_COMPLETE").get_completions(
        ["train", "--quantizer"], "fsq"
    )
    assert item.help == "finite scalar quantization"


def test_the_installed_command_answers_bash_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from genkit_cli.main import main\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules, file=sys.stderr)"
    )
    line = "genkit train --encoder v"
    asked = {"_GENKIT_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": "3"}
    # A warning would be printed into the line that is being typed.
    asked["GENKIT_PLUGINS"] = "avqvae,backbones,datasets,losses,optimizers,vqgan,no-such-plugin"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("plain,vqgan\n", "False\n")
