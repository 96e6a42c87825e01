"""Optimizers and learning-rate schedules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from genkit import Component, NoOptions, hookimpl, option


def _betas(help: str) -> Any:
    return option((0.9, 0.99), help, minimum=0, maximum=0.9999999)


@dataclass(frozen=True)
class AdamOptions:
    """Options of Adam and AdamW."""

    betas: tuple[float, ...] = _betas("decay rates of the two moments")
    weight_decay: float = option(0.0, "weight decay", minimum=0)

    def __post_init__(self) -> None:
        if len(self.betas) != 2:
            raise ValueError(f"betas are two numbers, not {len(self.betas)}")


@dataclass(frozen=True)
class MuonOptions(AdamOptions):
    """Options of Muon."""

    betas: tuple[float, ...] = _betas("decay rates of Adam's moments, for biases and norms")
    momentum: float = option(0.95, "Nesterov momentum of weights", minimum=0, maximum=0.9999999)


@dataclass(frozen=True)
class TimmOptions(AdamOptions):
    """Options of timm's optimizers."""

    algorithm: str = option("lamb", "optimizer of timm, by its name there")
    betas: tuple[float, ...] = _betas("decay rates of the moments, where the algorithm has two")


@dataclass(frozen=True)
class CosineOptions:
    """Options of the cosine schedule."""

    final_lr: float = option(
        0.01, "last learning rate, as a share of the peak", minimum=0, maximum=1
    )


@hookimpl
def genkit_components() -> list[Component]:
    here = "genkit_optimizers"
    return [
        Component(
            "optimizer",
            "muon",
            f"{here}.muon:muon",
            MuonOptions,
            "orthogonal steps for weight matrices, Adam for the rest",
        ),
        Component("optimizer", "adam", f"{here}.adam:adam", AdamOptions, "fused Adam of PyTorch"),
        Component(
            "optimizer", "adamw", f"{here}.adam:adamw", AdamOptions, "fused AdamW of PyTorch"
        ),
        Component(
            "optimizer",
            "timm",
            f"{here}.of_timm:of_timm",
            TimmOptions,
            "any optimizer of timm; --optimizer lamb is short for it",
        ),
        Component(
            "schedule",
            "cosine",
            f"{here}.schedules:Cosine",
            CosineOptions,
            "half a cosine from the peak learning rate to the last",
        ),
        Component(
            "schedule",
            "constant",
            f"{here}.schedules:Constant",
            NoOptions,
            "the peak learning rate throughout",
        ),
    ]


@hookimpl
def genkit_settings_for(kind: str, name: str) -> dict[str, Any] | None:
    if kind != "optimizer":
        return None
    # timm takes seconds to import, so only a name that no component has waits for it.
    from timm.optim import list_optimizers

    return {"name": "timm", "algorithm": name} if name in list_optimizers() else None
