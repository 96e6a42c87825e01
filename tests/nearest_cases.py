"""Latents and codes that are hard to search exactly."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

LATENTS, CODES, DIM = 700, 300, 24


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape)


def drawn(codebook: Tensor) -> Tensor:
    return codebook[torch.randint(len(codebook), (LATENTS,))]


def spread() -> tuple[Tensor, Tensor]:
    return randn(LATENTS, DIM), randn(CODES, DIM)


def beside(distance: float, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    codebook = scale * randn(CODES, DIM)
    return drawn(codebook) + distance * scale * randn(LATENTS, DIM), codebook


def halfway() -> tuple[Tensor, Tensor]:
    codebook = randn(CODES, DIM)
    return (drawn(codebook) + drawn(codebook)) / 2, codebook


def twins() -> tuple[Tensor, Tensor]:
    codebook = randn(CODES, DIM)
    return randn(LATENTS, DIM), codebook[torch.randint(CODES // 6, (CODES,))]


def uniform() -> tuple[Tensor, Tensor]:
    codebook = (2 * torch.rand(CODES, DIM) - 1) / CODES
    return drawn(codebook) + 1e-4 / CODES * randn(LATENTS, DIM), codebook


def far_off() -> tuple[Tensor, Tensor]:
    return 1e3 + 1e-2 * randn(LATENTS, DIM), 1e3 + 1e-2 * randn(CODES, DIM)


def outliers() -> tuple[Tensor, Tensor]:
    codebook = randn(CODES, DIM)
    codebook[3] *= 1e3
    codebook[7] *= 1e7
    return randn(LATENTS, DIM), codebook


def in_clusters() -> tuple[Tensor, Tensor]:
    return randn(LATENTS, DIM), randn(4, DIM).repeat(CODES // 4, 1) + 1e-5 * randn(CODES, DIM)


def collapsed() -> tuple[Tensor, Tensor]:
    return randn(LATENTS, DIM), randn(1, DIM) + 1e-6 * randn(CODES, DIM)


def lattice() -> tuple[Tensor, Tensor]:
    return (
        torch.randint(-2, 3, (LATENTS, 5)).float(),
        torch.randint(-2, 3, (CODES, 5)).float(),
    )


def all_scales() -> tuple[Tensor, Tensor]:
    return (
        randn(LATENTS, DIM) * torch.logspace(-20, 5, LATENTS)[:, None],
        randn(CODES, DIM) * torch.logspace(-20, 5, CODES)[:, None],
    )


def squareless() -> tuple[Tensor, Tensor]:
    torch.manual_seed(5)
    return 1e-17 * randn(40, 183), randn(128, 183) * torch.logspace(-20, 5, 128)[:, None]


def doubles() -> tuple[Tensor, Tensor]:
    codebook = torch.randn(CODES, DIM, dtype=torch.float64)
    near = 1e-9 * torch.randn(CODES, DIM, dtype=torch.float64)
    return drawn(codebook) + 1e-9, torch.cat([codebook, codebook + near])


def halves() -> tuple[Tensor, Tensor]:
    return randn(LATENTS, DIM).bfloat16(), randn(CODES, DIM).bfloat16()


CASES: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "spread": spread,
    "beside their codes by 1e-4": lambda: beside(1e-4),
    "beside their codes by 1e-7": lambda: beside(1e-7),
    "midway between codes": halfway,
    "many equal codes": twins,
    "codes of 1/K": uniform,
    "far from the origin": far_off,
    "codes of huge norm": outliers,
    "collapsed": collapsed,
    "codes in clusters": in_clusters,
    "one code only": lambda: (randn(LATENTS, DIM), randn(1, DIM)),
    "all codes equal": lambda: (randn(90, DIM), randn(1, DIM).expand(CODES, DIM)),
    "all codes zero": lambda: (randn(LATENTS, DIM), torch.zeros(CODES, DIM)),
    "a lattice": lattice,
    "latents of zero": lambda: (torch.zeros(LATENTS, DIM), randn(CODES, DIM)),
    "beside the middle": lambda: (
        0.01 * randn(LATENTS, DIM),
        torch.linspace(0.1, 2, CODES)[:, None] * randn(CODES, DIM),
    ),
    "too near each other for their middle": lambda: (
        1e4 - 3 + randn(LATENTS, 8),
        torch.tensor([[1e4, 1e4 + 2**-10], [1e4 + 2**-10, 1e4]]).repeat(1, 4),
    ),
    "one code at the middle": lambda: (
        0.1 * randn(LATENTS, 16),
        torch.cat([eye := torch.eye(16), -eye, 2 * eye, -2 * eye, 0 * eye[:1]]),
    ),
    "none nearer than another": lambda: (
        torch.cat([randn(LATENTS, 50), torch.zeros(9, 50)]),
        torch.cat([torch.eye(50), -torch.eye(50)]),
    ),
    "float32 among float64": lambda: (
        torch.ones(LATENTS, 4),
        torch.cat(
            [
                torch.tensor([[1 + 0.6 * 2**-23], [1 - 0.7 * 2**-23]], dtype=torch.float64).expand(
                    2, 4
                ),
                randn(CODES, 4).double(),
            ]
        ),
    ),
    "latents of 1e10 times the codes": lambda: (1e10 * randn(LATENTS, DIM), randn(CODES, DIM)),
    "everything of 1e-150": lambda: (
        1e-150 * randn(LATENTS, DIM).double(),
        1e-150 * randn(CODES, DIM).double(),
    ),
    "on the sphere": lambda: (F.normalize(randn(LATENTS, DIM)), F.normalize(randn(CODES, DIM))),
    "latents of 1e8": lambda: (1e8 * randn(LATENTS, DIM), randn(CODES, DIM)),
    "everything of 1e-25": lambda: beside(0.3, 1e-25),
    "everything of 1e-15": lambda: beside(0.3, 1e-15),
    "everything of 1e15": lambda: beside(0.3, 1e15),
    "everything of 1e25": lambda: beside(0.3, 1e25),
    "all scales": all_scales,
    "squares below the range of float32": squareless,
    "float64": doubles,
    "bfloat16": halves,
    "one number": lambda: (randn(LATENTS, 1), randn(CODES, 1)),
    "more than a chunk": lambda: (randn(2500, 3), randn(65, 3)),
}


# Cases as in training: a GPU's host must not find doubts in them.
USUAL = {
    "spread",
    "beside their codes by 1e-4",
    "beside their codes by 1e-7",
    "midway between codes",
    "codes of 1/K",
    "far from the origin",
    "collapsed",
    "beside the middle",
    "on the sphere",
    "float64",
    "bfloat16",
    "more than a chunk",
}
