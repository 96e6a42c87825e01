"""The zoo's quantizers compared: quality per bit, and time relative to the library's own modules.

    python -m benchmarks zoo --train FOLDER --test FOLDER

`--train` and `--test` are folders of 64-pixel crops, as for `rate`. Fills in docs/zoo.md.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.jobs import Job, fill, run_all, table

PAGE = Path(__file__).parent.parent / "docs" / "zoo.md"
Settings = dict[str, Any]

QUANTIZERS: dict[str, Settings] = {
    "vq (ours)": {"name": "vq"},
    "residual-vq, 2 x 512": {"name": "residual-vq", "codebooks": 2},
    "residual-vq, 4 x 512": {"name": "residual-vq"},
    "grouped-residual-vq, 4 x 512": {"name": "grouped-residual-vq"},
    "multi-head-vq, 2 x 512": {"name": "multi-head-vq"},
    "simvq": {"name": "simvq"},
    "residual-simvq, 2 x 512": {"name": "residual-simvq", "codebooks": 2},
    "lfq, 9 bits": {"name": "lfq"},
    "bsq, 9 bits": {"name": "bsq"},
    "bsq, 18 bits": {"name": "bsq", "bits": 18},
    "zoo-fsq, 8 x 8 x 8": {"name": "zoo-fsq", "values": [8, 8, 8]},
    "zoo-fsq, 8 x 5 x 5 x 5": {"name": "zoo-fsq"},
    "residual-fsq, 2 of 8 x 8 x 8": {"name": "residual-fsq", "values": [8, 8, 8]},
    "latent, 8 x 8 x 8": {"name": "latent", "values": [8, 8, 8]},
}
# Other encoders and decoders in the default model.
PARTS: dict[str, Settings] = {
    "aren, mirror (default)": {},
    "aren, residual": {"decoder": "residual"},
    "aren, vqgan": {"decoder": "vqgan"},
    "vqgan, mirror": {"encoder": "vqgan"},
    "vqgan, vqgan": {"encoder": "vqgan", "decoder": "vqgan"},
    "timm convnextv2_atto, mirror": {"encoder": "timm"},
}


def pretrained(weights: Path) -> dict[str, Settings]:
    """MobileNetV2 as the encoder, with random weights and with weights from a file."""
    model = {"name": "timm", "model": "mobilenetv2_100"}
    trained = {**model, "weights": str(weights.resolve())}
    return {
        "timm mobilenetv2_100, mirror": {"encoder": model},
        "… with ImageNet's weights": {"encoder": trained},
        "… with these frozen": {"encoder": {**trained, "freeze": True}},
    }


def quality(data: Settings, models: dict[str, Settings], out: Path, jobs: int, steps: int) -> Any:
    """The figures of models after `steps` steps."""
    common = {
        "data": data,
        "mixed_precision": "bf16",
        "validation_images": 1000,
        "checkpoint_every": 10**6,
        "steps": steps,
        "validate_every": steps,
    }
    names = {name: f"{steps}-{''.join(c if c.isalnum() else '-' for c in name)}" for name in models}
    figures = run_all([Job(names[n], (common, m)) for n, m in models.items()], out, jobs)
    return {name: figures[names[name]] for name in models}


def quality_table(figures: dict[str, dict[str, Any]], what: str) -> str:
    """One row per model: PSNR, SSIM, bits, code usage, time and size."""
    rows = []
    for name, each in figures.items():
        use = " and ".join(f"{level['usage']:.0%}" for level in each["levels"])
        rows.append(
            [
                name,
                f"{each['psnr']:.2f}",
                f"{each['ssim']:.3f}",
                f"{each['bits_per_pixel']:.2f}",
                use,
                f"{each['seconds_a_step'] * 1000:.0f}",
                f"{each['parameters'] / 1e6:.2f} M",
            ]
        )
    header = [what, "PSNR, dB", "SSIM", "bits per pixel", "used codes", "ms per step", "parameters"]
    return table(header, rows)


def _speed_cases() -> dict[str, tuple[Any, Any]]:
    """Our quantizers and the library's, with the same weights."""
    from vector_quantize_pytorch import LFQ, ResidualVQ

    from genkit import Level
    from genkit.settings import choose

    def ours(name: str, channels: int, **options: Any) -> Any:
        return choose("quantizer", {"name": name, **options}).build(Level(0, channels, 4))

    def residual(codes: int) -> tuple[Any, Any]:
        mine = ours("residual-vq", 64, codebook_size=codes, kmeans_start=False, revive=0.0)
        theirs = ResidualVQ(
            dim=64, codebook_size=codes, num_quantizers=4, decay=0.99, commitment_weight=0.25
        )
        theirs.load_state_dict(mine.inner.state_dict())
        return mine, theirs

    def signs(bits: int) -> tuple[Any, Any]:
        mine = ours("lfq", 64, bits=bits)
        theirs = LFQ(
            dim=64,
            codebook_size=2**bits,
            entropy_loss_weight=0.1,
            commitment_loss_weight=0.25,
            keep_num_codebooks_dim=True,
        )
        theirs.load_state_dict(mine.inner.state_dict())
        return mine, theirs

    return {
        "residual-vq, 4 x 512": residual(512),
        "residual-vq, 4 x 4,096": residual(4096),
        "lfq, 10 bits": signs(10),
        "lfq, 14 bits": signs(14),
    }


def speed_table(rounds: int) -> str:
    """Alternating training steps of our quantizers and the library's on the same latents."""
    import torch

    rows = []
    for name, (mine, theirs) in _speed_cases().items():
        latents = torch.randn(16, 64, 16, 16)
        flat = latents.flatten(2).transpose(1, 2)
        # Check that both do the same work, before either is trained.
        found, expected = mine.eval()(latents).indices, theirs.eval()(flat)[1]
        same = (found.flatten() == expected.flatten()).float().mean()
        if same < 0.999:
            raise SystemExit(f"{name}: {same:.2%} of the indices agree")
        mine.train()
        theirs.train()

        def step(module: Callable[..., Any], given: torch.Tensor) -> float:
            given = given.detach().clone().requires_grad_()
            start = time.perf_counter()
            quantized, _, loss = module(given)[:3]
            (quantized.square().mean() + loss.sum()).backward()
            return time.perf_counter() - start

        step(mine, latents), step(theirs, flat)
        times = [(step(mine, latents), step(theirs, flat)) for _ in range(rounds)]
        a, b = (statistics.median(each) for each in zip(*times, strict=True))
        ratios = sorted(other / mine for mine, other in times)
        rows.append(
            [
                name,
                f"{a * 1000:.1f}",
                f"{b * 1000:.1f}",
                f"{b / a:.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})",
            ]
        )
    return table(["16 x 16 x 16 latents of 64", "ours, ms", "the library's, ms", "ratio"], rows)


@click.command()
@click.option(
    "--train",
    "train_folder",
    type=click.Path(exists=True, path_type=Path),
    help="Folder of training crops.",
)
@click.option(
    "--test",
    "test_folder",
    type=click.Path(exists=True, path_type=Path),
    help="Folder of test crops.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/zoo"),
    show_default=True,
    help="Folder of the runs.",
)
@click.option("--jobs", default=1, show_default=True, help="Parallel runs, one thread each.")
@click.option("--steps", default=250, show_default=True, help="Training steps per model.")
@click.option(
    "--mobilenet",
    type=click.Path(exists=True, path_type=Path),
    help="File of torchvision's MobileNetV2 weights; adds three rows.",
)
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(["quantizers", "parts", "speed"]),
    help="Tables to fill in; all by default.",
)
def main(
    train_folder: Path | None,
    test_folder: Path | None,
    out: Path,
    jobs: int,
    steps: int,
    mobilenet: Path | None,
    only: Sequence[str],
) -> None:
    """Train and time every quantizer, encoder and decoder, and fill in docs/zoo.md."""
    wanted = only or ("quantizers", "parts", "speed")
    if "speed" in wanted:
        fill(PAGE, "speed", speed_table(9))
    for part in [part for part in wanted if part != "speed"]:
        if not train_folder or not test_folder:
            raise click.UsageError("give --train and --test: folders of 64-pixel crops")
        data = {
            "name": "folder",
            "location": str(train_folder.resolve()),
            "heldout_folder": str(test_folder.resolve()),
        }
        models = {n: {"quantizer": q} for n, q in QUANTIZERS.items()}
        if part == "parts":
            models = {**PARTS, **(pretrained(mobilenet) if mobilenet else {})}
        figures = quality(data, models, out, jobs, steps)
        fill(
            PAGE,
            part,
            quality_table(figures, "encoder, decoder" if part == "parts" else "quantizer"),
        )
