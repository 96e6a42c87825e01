"""Images encoded per second: from files to a token file, beside the bare model and a plain loop."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

import genkit
from benchmarks.jobs import table
from benchmarks.speed.input import draw
from benchmarks.speed.timing import Settings, cell, ratios, spread
from genkit.evaluation.images import all_images
from genkit.images import from_pixels
from genkit.run.options import layered, resolve_run

TITLE = "Encoding"

# Height of the files, resolution, number of files.
CASES = [(256, 64, 256), (512, 128, 64)]
BATCH = 32
BARE, OURS, PLAIN = "the bare model", "genkit encode", "plain loop"
# The smallest share of equal indices in the plain loop, whose crops differ by their rounding.
_ALIKE = 0.5


class _Pictures(TorchDataset[Tensor]):
    """Pictures as one would read them with Pillow."""

    def __init__(self, files: Sequence[Path], size: int) -> None:
        self.files, self.size = files, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Tensor:
        with Image.open(self.files[number]) as file:
            picture = ImageOps.fit(file.convert("RGB"), (self.size,) * 2, Image.Resampling.LANCZOS)
        return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1).div(127.5).sub(1)


def measure(settings: Settings) -> dict[str, Any]:
    """Images per second of each way, in wall time, since reading and encoding overlap."""
    torch.manual_seed(0)
    tokenizer = genkit.Tokenizer(resolve_run(layered(None))).eval()
    with torch.no_grad():
        tokenizer(torch.rand(64, 3, 64, 64) * 2 - 1)
    return {"cases": [_case(tokenizer, *case, settings) for case in CASES]}


def _case(
    tokenizer: genkit.Tokenizer, side: int, size: int, count: int, settings: Settings
) -> dict[str, Any]:
    count = BATCH if settings.quick else count
    with tempfile.TemporaryDirectory() as place:
        folder, out = Path(place) / "pictures", Path(place) / "out"
        folder.mkdir()
        draw(folder, side, count)
        ways = _ways(tokenizer, folder, size, out)
        results = {name: way() for name, way in ways.items()}
        for name, indices in results.items():
            same = (indices == results[BARE]).float().mean()
            if same < (_ALIKE if name.startswith(PLAIN) else 1):
                raise SystemExit(f"{name} gives other indices than {BARE}: {same:.1%} are equal")
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(2 if settings.quick else 9):
            for name, way in ways.items():
                start = time.perf_counter()
                way()
                times[name].append(time.perf_counter() - start)
    return {
        "side": side,
        "size": size,
        "rates": {name: spread([count / each for each in some]) for name, some in times.items()},
        "share": {
            name: spread([b / a for a, b in zip(some, times[BARE], strict=True)])
            for name, some in times.items()
        },
        "ratios": ratios(times, OURS),
    }


def _ways(
    tokenizer: genkit.Tokenizer, folder: Path, size: int, out: Path
) -> dict[str, Callable[[], Tensor]]:
    """Ways to encode a folder; each returns the indices of the finest level."""
    files = sorted(folder.iterdir())
    source = f"{folder}?cache=0"
    split = all_images(source, (size, size))
    memory = from_pixels(split.images(range(len(split))))

    def bare() -> Tensor:
        parts = [tokenizer.encode(batch) for batch in memory.split(BATCH)]
        return torch.cat([levels[0] for levels in parts]).int()

    def ours() -> Tensor:
        shutil.rmtree(out, ignore_errors=True)
        tokens = genkit.encode(tokenizer, all_images(source, (size, size)), out, batch_size=BATCH)
        level = tokens.levels[0]
        assert isinstance(level, Tensor)
        return level

    def plain(workers: int) -> Callable[[], Tensor]:
        def run() -> Tensor:
            loader = DataLoader(_Pictures(files, size), batch_size=BATCH, num_workers=workers)
            parts = [tokenizer.encode(batch) for batch in loader]
            levels = [torch.cat(level).int() for level in zip(*parts, strict=True)]
            save_file({f"level{n}": level for n, level in enumerate(levels)}, f"{out}.plain")
            return levels[0]

        return run

    return {
        BARE: bare,
        OURS: ours,
        f"{PLAIN}, no workers": plain(0),
        f"{PLAIN}, 1 worker": plain(1),
        f"{PLAIN}, 2 workers": plain(2),
    }


def page(figures: dict[str, Any], folder: Path) -> str:
    cases = figures["cases"]
    heads = [f"{case['side']} → {case['size']} px" for case in cases]
    rows = [
        (
            name,
            *(
                f"{cell(case['rates'][name], 0)}, {100 * case['share'][name]['median']:.0f} %"
                for case in cases
            ),
        )
        for name in cases[0]["rates"]
    ]
    return "\n\n".join(
        [
            "Images per second of the default model, from JPEGs of faces to a file of indices, and "
            f"the share of the bare model's rate, which encodes tensors in memory. Batches of "
            f"{BATCH}, wall time. `genkit encode` lists the folder, reads ahead in a thread, "
            "encodes two batches at a time with one thread each, and writes shards with names and "
            "views. The plain loop reads with Pillow through a `DataLoader` and saves all indices "
            "at the end.",
            table(("", *heads), rows),
        ]
    )
