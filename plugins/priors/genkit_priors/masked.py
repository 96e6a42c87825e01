"""The masked prior: many indices at once, level after level (Chang et al. 2022, MaskGIT)."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from genkit.interfaces import Conditioning, Rules
from genkit.layout import Grid, Layout
from genkit.ops.sampling import draw, guided, shaped
from genkit_priors import MaskedOptions
from genkit_priors.blocks import Transformer, Turn, seeded, turns
from genkit_priors.codes import Codes, coordinates
from genkit_priors.conditions import GUIDANCE, Prefix

# Passes per image and noise on the confidence, unless the rules of sampling have others.
STEPS = 16
NOISE = 4.5
# Masks per image and level whose mean is the bound that `nats` gives.
DRAWS = 8


class Part(NamedTuple):
    """A level's tokens (one per place) and positions (one per index) in the sequence."""

    grid: Grid
    tokens: slice
    positions: slice

    @property
    def places(self) -> int:
        """The number of tokens."""
        return self.grid.rows * self.grid.columns


class Masked(nn.Module):
    """A bidirectional transformer that predicts masked indices from the others.

    It sees one token per place. The codebooks of a place are masked together and predicted
    independently. While a level is predicted, all coarser ones are known, and finer ones unseen.
    """

    exact = False
    turns: Tensor
    ranks: Tensor

    def __init__(self, options: MaskedOptions, layout: Layout, conditioning: Conditioning) -> None:
        super().__init__()
        self.options = options
        self.rules = ["temperature", "top_k", "top_p", "steps"]
        self.rules += ["noise"] if options.order == "confidence" else []
        self.rules += GUIDANCE if conditioning else []
        width = options.width
        self.parts = parts(layout)
        self.codes = Codes(layout, width, width)
        self.prefix = Prefix(conditioning, width)
        self.masks = nn.Embedding(len(self.parts), width)
        self.positions = nn.Embedding(self.parts[-1].tokens.stop, width)
        self.body = Transformer(width, options.depth, options.heads, options.dropout)
        at = nn.functional.pad(
            coordinates(layout)[layout.codebook == 0], (0, 0, self.prefix.length, 0)
        )
        self.register_buffer("turns", turns(at, at, width // options.heads), persistent=False)
        ranks = torch.cat([halton(part.grid.rows, part.grid.columns) for part in self.parts])
        self.register_buffer("ranks", ranks, persistent=False)

    def loss(
        self, sequence: Tensor, condition: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        """Nats per masked index, each level by its share of the indices."""
        condition = self.prefix.dropped(condition, self.options.condition_dropout, generator)
        seen = self.codes.noisy(sequence, self.options.token_noise, generator)
        batch, total = sequence.shape
        losses = []
        with seeded(sequence.device, generator):
            for level, part in enumerate(self.parts):
                # Evenly spread shares: the loss varies less than with independent ones.
                done = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
                count = (self._share(done) * part.places).ceil().clamp(1, part.places)
                hidden = chosen(count[:, None], (batch, part.places), generator).to(seen.device)
                features = self._features(seen, hidden, condition, level)[hidden]
                targets = sequence[:, part.positions].unflatten(1, (part.places, -1))[hidden]
                nats = self.codes.nats_at(features, targets, level, self.options.label_smoothing)
                losses.append(nats.mean() * (part.places * part.grid.codebooks / total))
        return torch.stack(losses).sum()

    @torch.no_grad()
    def nats(self, sequence: Tensor, condition: Tensor | None) -> Tensor:
        """Nats `[B, N]` whose sum over a sequence is an upper bound, up to the choice of masks.

        The number of masked places is uniform, and their nats count by its inverse (Uria et al.
        2014). The masks follow from the image's own indices, so they are the same in any batch.
        """
        result = torch.zeros(sequence.shape, device=sequence.device)
        rows = sequence.cpu().numpy()
        generators = [torch.Generator().manual_seed(zlib.crc32(row.tobytes())) for row in rows]
        for level, part in enumerate(self.parts):
            for turn in range(DRAWS):
                shares = torch.cat([torch.rand(1, generator=each) for each in generators])
                count = ((turn + shares) / DRAWS * part.places).ceil().clamp(1, part.places)
                keys = torch.stack([torch.rand(part.places, generator=g) for g in generators])
                hidden = (keys.argsort(1).argsort(1) < count[:, None]).to(sequence.device)
                features = self._features(sequence, hidden, condition, level)[hidden]
                targets = sequence[:, part.positions].unflatten(1, (part.places, -1))
                nats = torch.zeros(targets.shape, device=sequence.device)
                nats[hidden] = self.codes.nats_at(features, targets[hidden], level)
                weight = (part.places / count / DRAWS).to(sequence.device)
                result[:, part.positions] += nats.flatten(1) * weight[:, None]
        return result

    @torch.no_grad()
    def sample(
        self,
        condition: Tensor | None,
        kept: Tensor | None,
        generators: Sequence[torch.Generator],
        rules: Rules,
    ) -> Tensor:
        """Draw a sequence `[B, N]` per generator: level by level, the surest places first."""
        device = self.turns.device
        shape = len(generators), len(self.codes.size)
        sequence = torch.full(shape, -1, device=device) if kept is None else kept.clone()
        if rules.guidance != 1 and condition is not None:
            condition = torch.cat([condition, self.prefix.without(condition)])
        counts = passes(self.parts, STEPS if rules.steps is None else rules.steps)
        passed = 0
        for level, (part, steps) in enumerate(zip(self.parts, counts, strict=True)):
            known = sequence[:, part.positions].unflatten(1, (part.places, -1)).clone()
            hidden = (known < 0).any(-1)
            unknown = hidden.sum(1)
            for step in range(steps):
                # Two numbers per index: for its code, and for the noise on its confidence.
                chance = [torch.rand(2, *known.shape[1:], generator=each) for each in generators]
                for_code, for_noise = torch.stack(chance, 1).to(device, non_blocking=True)
                guidance = rules.guidance_at(passed / sum(counts))
                passed += 1
                logits = self._logits(sequence, hidden, condition, level, guidance)
                code = draw(shaped(logits, rules), for_code)
                code = torch.where(known < 0, code, known)
                fresh = torch.where(
                    hidden[..., None], code, sequence[:, part.positions].view_as(code)
                )
                sequence[:, part.positions] = fresh.flatten(1)
                done = (step + 1) / steps
                sure = self._sureness(logits, code, for_noise, part, rules, done)
                left = (self._share(torch.tensor(done)) * unknown).floor().long()
                left = torch.minimum(left, (hidden.sum(1) - 1).clamp(min=0))
                left = left * (step + 1 < steps)
                order = sure.masked_fill(~hidden, torch.inf).argsort(1).argsort(1)
                hidden = hidden & (order < left[:, None])
        return sequence

    def _logits(
        self,
        sequence: Tensor,
        hidden: Tensor,
        condition: Tensor | None,
        level: int,
        guidance: float,
    ) -> Tensor:
        """Logits `[B, tokens, codebooks, K]` of a level, with guidance."""
        times = 1 if condition is None else len(condition) // len(sequence)
        seen = sequence.clamp(min=0).repeat(times, 1)
        features = self._features(seen, hidden.repeat(times, 1), condition, level)
        logits = self.codes.logits_at(features, level)
        if times == 1:
            return logits
        conditional, unconditional = logits.chunk(2)
        return guided(conditional, unconditional, guidance)

    def _sureness(
        self, logits: Tensor, code: Tensor, chance: Tensor, part: Part, rules: Rules, done: float
    ) -> Tensor:
        """How early `[B, tokens]` to keep each place."""
        if self.options.order == "halton":
            return -self.ranks[part.tokens].float().expand(len(code), -1)
        noise = NOISE if rules.noise is None else rules.noise
        gumbel = -(-chance.clamp(min=1e-20).log()).clamp(min=1e-20).log()
        sure = logits.log_softmax(-1).gather(-1, code[..., None])[..., 0]
        return (sure + noise * (1 - done) * gumbel).sum(-1)

    def _features(
        self, sequence: Tensor, hidden: Tensor, condition: Tensor | None, level: int
    ) -> Tensor:
        """Features `[B, tokens, width]` of one level with `hidden` places, given coarser ones."""
        end = self.parts[level].tokens.stop
        known = sequence[:, : self.parts[level].positions.stop]
        codes = self.codes.embed(known, range(known.shape[1]))
        embedded = [
            codes[:, part.positions].unflatten(1, (part.places, -1)).sum(2)
            for part in self.parts[: level + 1]
        ]
        embedded[-1] = torch.where(hidden[..., None], self.masks.weight[level], embedded[-1])
        tokens = torch.cat(embedded, 1) + self.positions.weight[:end]
        prefix, real = self.prefix(condition, len(tokens))
        mask = None
        if real is not None:
            mask = nn.functional.pad(real, (0, end), value=True)[:, None, None]
        turn = Turn(*self.turns[:, : self.prefix.length + end])
        features = self.body(torch.cat([prefix, tokens], 1), turn, mask)
        return features[:, -self.parts[level].places :]

    def _share(self, done: Tensor) -> Tensor:
        """The share of masked places when a share of the passes is done."""
        if self.options.schedule == "cosine":
            return (done * (math.pi / 2)).cos()
        return done.arccos() * (2 / math.pi)


def parts(layout: Layout) -> list[Part]:
    """The levels of a layout, coarsest first."""
    found, token, position = [], 0, 0
    for grid in reversed(layout.grids):
        tokens = slice(token, token + grid.rows * grid.columns)
        positions = slice(position, position + len(grid))
        found.append(Part(grid, tokens, positions))
        token, position = tokens.stop, positions.stop
    return found


def chosen(count: Tensor, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Bools of this shape; a random `count` `[B, 1]` of each row are true."""
    return torch.rand(shape, generator=generator).argsort(1).argsort(1) < count


def passes(levels: Sequence[Part], steps: int) -> list[int]:
    """Passes per level, at least one each, by the square root of its number of places."""
    roots = [part.places**0.5 for part in levels]
    spare = max(0, steps - len(levels))
    ends = [round(spare * sum(roots[: n + 1]) / sum(roots)) for n in range(len(roots))]
    more = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    return [min(part.places, 1 + extra) for part, extra in zip(levels, more, strict=True)]


def halton(rows: int, columns: int) -> Tensor:
    """The turn `[rows x columns]` of each place in an order that spreads places evenly.

    It follows the Halton sequence in bases 2 and 3 (Besnier et al. 2025).
    """
    count = rows * columns
    points = torch.arange(1, 32 * count + 1)
    cell = (_radical(points, 2) * rows).long() * columns + (_radical(points, 3) * columns).long()
    # Places that the sequence misses come last.
    visits = torch.cat([cell, torch.arange(count)])
    first = torch.full((count,), len(visits)).scatter_reduce(
        0, visits, torch.arange(len(visits)), "amin"
    )
    return first.argsort().argsort()


def _radical(numbers: Tensor, base: int) -> Tensor:
    """The digits of numbers in a base, mirrored behind the point."""
    result, weight = torch.zeros(len(numbers), dtype=torch.float64), 1.0 / base
    while bool(numbers.any()):
        result += weight * (numbers % base)
        numbers, weight = numbers // base, weight / base
    return result
