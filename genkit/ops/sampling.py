"""Rules for drawing from logits, as functions of logits `[..., K]` and one number.

Their order is guidance, temperature, top-k, top-p, draw.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genkit.interfaces import Rules


def guided(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance: u + g (c - u). 1 is off (Ho and Salimans 2022, Eq. 6)."""
    return unconditional + guidance * (conditional - unconditional)


def with_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Logits divided by a temperature. 0 keeps the most likely code alone."""
    return logits / temperature if temperature else keep_top_k(logits, 1)


def keep_top_k(logits: Tensor, count: int) -> Tensor:
    """Logits of the `count` most likely codes; the others become -inf. 0 keeps all."""
    if not 0 < count < logits.shape[-1]:
        return logits
    kept = logits.topk(count)
    return torch.full_like(logits, -torch.inf).scatter(-1, kept.indices, kept.values)


def keep_top_p(logits: Tensor, mass: float) -> Tensor:
    """Logits of the fewest most likely codes whose probabilities reach `mass`; 1 keeps all.

    The others become -inf (nucleus sampling, Holtzman et al. 2020).
    """
    if mass >= 1:
        return logits
    ordered, order = logits.sort(-1, descending=True)
    chances = ordered.softmax(-1)
    before = chances.cumsum(-1) - chances
    return torch.empty_like(logits).scatter(
        -1, order, ordered.masked_fill(before >= max(mass, 1e-9), -torch.inf)
    )


def shaped(logits: Tensor, rules: Rules) -> Tensor:
    """Logits after temperature, top-k and top-p."""
    logits = with_temperature(logits.float(), rules.temperature)
    return keep_top_p(keep_top_k(logits, rules.top_k), rules.top_p)


def draw(logits: Tensor, chance: Tensor) -> Tensor:
    """A code int64 `[...]` for each number of `chance` `[...]`, uniform in [0, 1).

    The cumulative probability of the code is the first to exceed the number.
    """
    chances = logits.float().softmax(-1)
    reached = chances.cumsum(-1)
    code = (reached <= chance.to(logits.device)[..., None] * reached[..., -1:]).sum(-1)
    # Rounding may place the last step below the number: take the last code that can be drawn.
    last = logits.shape[-1] - 1 - (chances > 0).flip(-1).int().argmax(-1)
    return torch.minimum(code, last)
