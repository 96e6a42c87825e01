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
            raise ValueError(f"betas must be two numbers, not {len(self.betas)}")


@dataclass(frozen=True)
class MuonOptions(AdamOptions):
    """Options of Muon."""

    betas: tuple[float, ...] = _betas(
        "decay rates of Adam's moments, which updates biases and norms"
    )
    momentum: float = option(
        0.95, "Nesterov momentum of weight matrices", minimum=0, maximum=0.9999999
    )


@dataclass(frozen=True)
class TimmOptions(AdamOptions):
    """Options of timm's optimizers."""

    algorithm: str = option("lamb", "name of a timm optimizer")
    betas: tuple[float, ...] = _betas("decay rates of the moments, where the algorithm has two")


@dataclass(frozen=True)
class CosineOptions:
    """Options of the cosine schedule."""

    final_lr: float = option(
        0.01, "final learning rate, as a share of the peak", minimum=0, maximum=1
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
            "orthogonalized momentum for weight matrices, Adam for the rest",
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
            "any timm optimizer, also by its own name: --optimizer lamb",
        ),
        Component(
            "schedule",
            "cosine",
            f"{here}.schedules:Cosine",
            CosineOptions,
            "cosine decay from the peak learning rate to the final one",
        ),
        Component(
            "schedule",
            "constant",
            f"{here}.schedules:Constant",
            NoOptions,
            "constant peak learning rate",
        ),
    ]


@hookimpl
def genkit_settings_for(kind: str, name: str) -> dict[str, Any] | None:
    return {"name": "timm", "algorithm": name} if name in genkit_names_for(kind) else None


@hookimpl
def genkit_names_for(kind: str) -> list[str]:
    if kind != "optimizer":
        return []
    # timm takes seconds to import, so it is imported only for names that no component has.
    from timm.optim import list_optimizers

    names: list[str] = list_optimizers()
    return names
