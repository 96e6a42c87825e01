import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from genkit_datasets import FacesOptions
from genkit_datasets.faces import Faces

from genkit.images import save_png

HERE = Path(__file__).parent.parent
TINY = "--out runs/faces --steps 8 --resolution 32 --codebook-size 16 --encoder.width 8"


def run(folder: Path, *args: str) -> str:
    command = [sys.executable, *args]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_readmes_commands_run_as_written(tmp_path: Path) -> None:
    run(tmp_path, "-m", "genkit_cli", "train", *TINY.split(), "--data.heldout", "8")
    shutil.copy(HERE / "prior.py", tmp_path)
    for number, image in enumerate(
        Faces(FacesOptions(), (32, 32), 0).split("train").images(range(24))
    ):
        save_png(tmp_path / "photographs" / f"{number}.png", image)
    (command,) = re.findall(r"^```sh\n(.*?)\n```", (HERE / "README.md").read_text(), re.M | re.S)
    args = [*shlex.split(command)[1:], "--width", "16"]
    printed = run(tmp_path, *args, "--steps", "40")
    found = re.search(r"\d+ held-out images: ([\d.]+) bits per pixel, ([\d.]+) without", printed)
    assert found
    assert float(found[1]) < float(found[2])
    model = tmp_path / "runs" / "faces-prior" / "model.safetensors"
    first, picture = model.read_bytes(), (tmp_path / "drawn.png").read_bytes()
    (tmp_path / "drawn.png").unlink()
    assert run(tmp_path, *args) == printed
    assert model.read_bytes() == first
    assert (tmp_path / "drawn.png").read_bytes() == picture
