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
    block = re.findall(r"^```sh\n(.*?)^```", (HERE / "README.md").read_text(), re.M | re.S)[0]
    encode, train = (shlex.split(line)[1:] for line in block.splitlines())
    run(tmp_path, "-m", "genkit_cli", *encode)
    printed = run(tmp_path, *train, "--steps", "60")
    found = re.search(r"3 held-out images: ([\d.]+) bits per pixel, ([\d.]+) without", printed)
    assert found
    assert float(found[1]) < float(found[2])
    assert (tmp_path / "drawn.png").is_file()
