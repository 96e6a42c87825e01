"""The autoregressive prior: places in order, and the indices of a place one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genkit.interfaces import Conditioning, Rules
from genkit.layout import Layout
from genkit.ops.sampling import draw, guided, shaped
from genkit_priors import AutoregressiveOptions
from genkit_priors.blocks import Cache, Transformer, Turn, seeded, turns
from genkit_priors.codes import Codes, coordinates, places
from genkit_priors.conditions import GUIDANCE, Prefix
from genkit_priors.context import Context


class Autoregressive(nn.Module):
    """A transformer over places, and a depth transformer over the indices of each place.

    The first one sees the indices of all places before, the second one also those before in its
    place (Lee et al. 2022). Queries rotate by the place to predict, and keys by the place that they
    know, so any order of places works (Yu et al. 2024).
    """

    exact = True
    places: Tensor
    at: Tensor
    back: Tensor
    turns: Tensor

    def __init__(
        self, options: AutoregressiveOptions, layout: Layout, conditioning: Conditioning
    ) -> None:
        super().__init__()
        self.options, self.done = options, 0.0
        self.rules = ["temperature", "top_k", "top_p", *(GUIDANCE if conditioning else [])]
        width, inner = options.width, options.place_width
        where = places(layout)
        size = where.shape[1]
        self.register_buffer("places", where, persistent=False)
        at = coordinates(layout)[where].mean(1)
        self.register_buffer("at", at, persistent=False)
        self.register_buffer("back", where.flatten().argsort(), persistent=False)
        self.codes = Codes(layout, inner, inner)
        self.prefix = Prefix(conditioning, width)
        self.register_buffer("turns", self._rotations(at), persistent=False)
        self.context = Context(layout, where, inner, width, options.order == "random")
        self.body = Transformer(width, options.depth, options.heads, options.dropout)
        self.outward = nn.Linear(width, inner, bias=False)
        self.slots = nn.Embedding(size, inner)
        self.head = Transformer(
            inner, options.place_depth if size > 1 else 0, options.place_heads, options.dropout
        )

    def progress(self, done: float) -> None:
        """Take note of the share of training done: orders become row by row."""
        self.done = done

    def loss(
        self, sequence: Tensor, condition: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        """Nats per index, a scalar."""
        condition = self.prefix.dropped(condition, self.options.condition_dropout, generator)
        seen = self.codes.noisy(sequence, self.options.token_noise, generator)
        with seeded(sequence.device, generator):
            order = self._order(len(sequence), generator)
            return self._nats(sequence, seen, condition, order).mean()

    @torch.no_grad()
    def nats(self, sequence: Tensor, condition: Tensor | None) -> Tensor:
        """Nats `[B, N]` of each index."""
        return self._nats(sequence, sequence, condition)

    @torch.no_grad()
    def sample(
        self,
        condition: Tensor | None,
        kept: Tensor | None,
        generators: Sequence[torch.Generator],
        rules: Rules,
    ) -> Tensor:
        """Draw a sequence `[B, N]` per generator, place by place."""
        device, count = self.places.device, self.places.numel()
        chance = torch.stack([torch.rand(count, generator=each) for each in generators])
        chance = chance.to(device, non_blocking=True)
        sequence = torch.full_like(chance, -1, dtype=torch.int64) if kept is None else kept.clone()
        guiding = rules.guidance != 1 and condition is not None
        if guiding and condition is not None:
            condition = torch.cat([condition, self.prefix.without(condition)])
        walk = self._walk(sequence, condition, 2 if guiding else 1)
        for drawn, (position, logits) in enumerate(walk):
            if guiding:
                conditional, unconditional = logits.chunk(2)
                guidance = rules.guidance_at(drawn / count)
                logits = guided(conditional, unconditional, guidance)
            code = draw(shaped(logits, rules), chance[:, position])
            known = sequence[:, position]
            sequence[:, position] = torch.where(known < 0, code, known)
        return sequence

    def _walk(
        self, sequence: Tensor, condition: Tensor | None, times: int
    ) -> Iterator[tuple[int, Tensor]]:
        """Each position with an index to draw, and its logits `[times B, K]`.

        The reader writes the index into the sequence before it asks for the next position. With
        `times` 2 the condition has two rows for each of the sequence.
        """
        batch = times * len(sequence)
        prefix, mask = self._prefix(condition, batch)
        body = Cache(self.prefix.length + len(self.places))
        # Whether every image has the index already; read once, as it waits for a GPU.
        known = (sequence >= 0).all(0).tolist()
        slots, raster = self.context.slots, self.context.raster
        memory = prefix.new_zeros(batch, slots * (len(self.places) + 1), prefix.shape[2])
        for place, positions in enumerate(self.places.tolist()):
            tokens = memory[:, raster[place]].sum(1, keepdim=True)
            tokens = tokens + self.context.target.weight[place]
            if not place:
                tokens = torch.cat([prefix, tokens], 1)
            end = body.used + tokens.shape[1]
            seen = None if mask is None else mask[:, :, body.used : end, :end]
            turn = Turn(*self.turns[:, body.used : end])
            hidden = self.body(tokens, turn, seen, True, body)[:, -1:]
            if not all(known[position] for position in positions):
                yield from self._walk_place(hidden, positions, sequence, known)
            codes = self.codes.embed(sequence[:, self.places[place]], positions).flatten(1)
            vectors = self.context.vectors(codes, place).repeat(times, 1, 1)
            memory[:, slots * place : slots * (place + 1)] = vectors

    def _walk_place(
        self, hidden: Tensor, positions: list[int], sequence: Tensor, known: list[bool]
    ) -> Iterator[tuple[int, Tensor]]:
        """The same for one place, from the body's output `[B, 1, width]`."""
        times = len(hidden) // len(sequence)
        cache = Cache(len(positions))
        base = self.outward(hidden)
        codes = torch.zeros_like(base)
        for slot, position in enumerate(positions):
            found = self.head(base + self.slots.weight[slot] + codes, cache=cache)
            if not known[position]:
                yield position, self.codes.logits(found[:, 0], position)
            code = self.codes.embed(sequence[:, position, None], [position])
            codes = code.repeat(times, 1, 1)

    def _nats(
        self,
        sequence: Tensor,
        seen: Tensor,
        condition: Tensor | None,
        order: Tensor | None = None,
    ) -> Tensor:
        """Nats `[B, N]` of a sequence where the model sees another one, such as one with noise."""
        return self.codes.nats(self._hidden(seen, condition, order), sequence)

    def _hidden(self, seen: Tensor, condition: Tensor | None, order: Tensor | None) -> Tensor:
        """The features `[B, N, place_width]` that the logits come from, in the layout's order."""
        batch, (count, size) = len(seen), self.places.shape
        codes = self.codes.embed(seen).index_select(1, self.places.flatten())
        prefix, mask = self._prefix(condition, batch)
        tokens = self.context(codes.view(batch, count, -1), order)
        tokens = torch.cat([prefix, tokens], 1)
        body = self.body(tokens, Turn(*self._turns(order)), mask, True)[:, self.prefix.length :]
        if order is not None:
            body = body.gather(1, order.argsort(1)[..., None].expand_as(body))
        before = F.pad(codes.view(batch, count, size, -1)[:, :, :-1], (0, 0, 1, 0))
        inner = self.outward(body)[:, :, None] + self.slots.weight + before
        found = self.head(inner.flatten(0, 1), None, None, True)
        return found.view(batch, count * size, -1).index_select(1, self.back)

    def _prefix(self, condition: Tensor | None, batch: int) -> tuple[Tensor, Tensor | None]:
        """The tokens of the condition, and what tokens may attend to, `[B, 1, S, S]` or None."""
        prefix, real = self.prefix(condition, batch)
        if real is None:
            return prefix, None
        length = self.prefix.length + len(self.places)
        causal = torch.ones(length, length, dtype=torch.bool, device=real.device).tril()
        real = F.pad(real, (0, len(self.places)), value=True)
        # A token of padding attends to itself: a softmax over nothing would be NaN.
        own = torch.eye(length, dtype=torch.bool, device=real.device)
        return prefix, (causal & real[:, None] | own)[:, None]

    def _order(self, batch: int, generator: torch.Generator) -> Tensor | None:
        """Orders `[B, P]` of places, each random with a probability that falls to 0.

        It is 1 in the first half of training and 0 in the last quarter (Yu et al. 2024).
        """
        share = min(1.0, 3 - 4 * self.done) if self.options.order == "random" else 0.0
        if share <= 0:
            return None
        count = len(self.places)
        keys = torch.rand(batch, count, generator=generator)
        orderly = torch.rand(batch, 1, generator=generator) >= share
        keys = torch.where(orderly, torch.arange(count), keys)
        return keys.argsort(1).to(self.places.device)

    def _turns(self, order: Tensor | None) -> Tensor:
        if order is None:
            return self.turns
        return self._rotations(self.at[order])

    def _rotations(self, at: Tensor) -> Tensor:
        """Rotations of tokens that predict the places `at` `[…, P, 2]`, each knowing the last."""
        length, channels = self.prefix.length, self.options.width // self.options.heads
        queries = F.pad(at, (0, 0, length, 0))
        return turns(queries, F.pad(at[..., :-1, :], (0, 0, length + 1, 0)), channels)
