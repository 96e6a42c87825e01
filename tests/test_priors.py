"""Priors: the contract, caches, guidance, orders, passes, and the rules of sampling."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from genkit import testing
from genkit.errors import GenkitError
from genkit.interfaces import Conditioning, Rules
from genkit.layout import Grid, Layout
from genkit.ops.sampling import draw, guided, keep_top_k, keep_top_p, shaped
from genkit.settings import choose

SMALL: dict[str, Any] = {"width": 32, "depth": 2, "heads": 2, "dropout": 0.1}
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("autoregressive", {"place_width": 16}),
    ("autoregressive", {"place_width": 16, "order": "random", "token_noise": 0.1}),
    ("masked", {}),
    ("masked", {"order": "halton", "schedule": "arccos", "token_noise": 0.1}),
]
# The layout of the first tokenizer of the README, with fewer codes.
FACES = Layout([Grid(16, 16, 1, 32), Grid(8, 8, 1, 32)])
LAYOUTS = {
    "nested": Layout([Grid(4, 6, 1, 7), Grid(2, 3, 1, 5)]),
    "codebooks": Layout([Grid(4, 2, 2, 7), Grid(2, 1, 3, 5)]),
    "no multiples": Layout([Grid(3, 4, 2, 7), Grid(2, 3, 2, 5)]),
    "one index a place": Layout([Grid(2, 3, 1, 5)]),
}
CONDITIONS = {
    "nothing": Conditioning(),
    "class": Conditioning(classes=3),
    "vectors": Conditioning(length=3, channels=4),
}


def built(
    name: str, layout: Layout, conditioning: Conditioning | None = None, **options: Any
) -> Any:
    """A prior whose parameters are all random, in eval mode."""
    torch.manual_seed(0)
    options = {**SMALL, **options}
    prior = choose("prior", {"name": name, **options}).build(layout, conditioning or Conditioning())
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return prior.eval()


def sequences(layout: Layout, count: int = 3) -> Tensor:
    draws = torch.rand(count, len(layout), generator=seeded(5)[0])
    return (draws * layout.size).long()


def conditions(conditioning: Conditioning) -> Tensor | None:
    """Three conditions; the last image has none."""
    if conditioning.classes:
        return torch.tensor([0, 2, -1])
    if not conditioning:
        return None
    vectors = torch.randn(3, conditioning.length, conditioning.channels, generator=seeded(6)[0])
    return vectors * torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]])[..., None]


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_the_contract(name: str, options: dict[str, Any]) -> None:
    testing.check_prior(name, **SMALL, **options)


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("order", ["raster", "random"])
def test_cached_logits_equal_uncached_ones(layout: str, condition: str, order: str) -> None:
    """With both halves of guidance."""
    chosen, conditioning = LAYOUTS[layout], CONDITIONS[condition]
    prior = built("autoregressive", chosen, conditioning, order=order)
    sequence, given = sequences(chosen), conditions(conditioning)
    null = None if given is None else prior.prefix.without(given)
    with torch.no_grad():
        features = [prior._hidden(sequence, each, None) for each in (given, null)]
        times = 1 if given is None else 2
        both = None if given is None or null is None else torch.cat([given, null])
        drawn = torch.full_like(sequence, -1)
        seen = []
        for position, logits in prior._walk(drawn, both, times):
            wanted = torch.cat(
                [prior.codes.logits(each[:, position], position) for each in features]
            )
            assert torch.allclose(logits, wanted[: len(logits)], atol=1e-5)
            drawn[:, position] = sequence[:, position]
            seen.append(position)
    assert sorted(seen) == list(range(len(chosen)))


def test_fewer_places_are_passed_if_all_their_indices_are_kept() -> None:
    prior = built("autoregressive", FACES)
    kept = sequences(FACES, 2)
    kept[:, prior.places[32:].flatten()] = -1
    with torch.no_grad():
        sequence = kept.clone()
        drawn = 0
        for position, _ in prior._walk(sequence, None, 1):
            sequence[:, position] = 0
            drawn += 1
    assert drawn == 160
    completed = prior.sample(None, kept, seeded(0, 1), Rules())
    assert torch.equal(completed[kept >= 0], kept[kept >= 0])


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_guidance_is_the_published_formula(name: str, options: dict[str, Any]) -> None:
    """A strong one draws what the condition makes likelier; that of 0 ignores the condition."""
    layout, conditioning = LAYOUTS["nested"], CONDITIONS["class"]
    prior = built(name, layout, conditioning, **options)
    seeds, classes = range(3), torch.tensor([0, 1, 2])

    def drawn(given: Tensor | None, guidance: float) -> Tensor:
        return prior.sample(given, None, seeded(*seeds), Rules(guidance=guidance))

    assert torch.equal(drawn(classes, 0.0), drawn(None, 1.0))
    assert not torch.equal(drawn(classes, 0.0), drawn(classes, 1.0))
    assert not torch.equal(drawn(classes, 1.0), drawn(classes, 4.0))


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_a_sequence_is_the_same_in_any_batch(name: str, options: dict[str, Any]) -> None:
    prior = built(name, LAYOUTS["codebooks"], CONDITIONS["vectors"], **options)
    given = conditions(CONDITIONS["vectors"])
    assert given is not None
    rules = Rules(guidance=2.0, temperature=0.9, top_p=0.95)
    whole = prior.sample(given, None, seeded(1, 2, 3), rules)
    for image in range(3):
        alone = prior.sample(given[image, None], None, seeded(image + 1), rules)
        assert torch.equal(alone[0], whole[image])


@pytest.mark.parametrize("name", ["autoregressive", "masked"])
def test_a_prior_obeys_its_class(name: str) -> None:
    """Class c has only the codes c and c + 3; guidance leaves no others."""
    layout, conditioning = LAYOUTS["nested"], CONDITIONS["class"]
    torch.manual_seed(0)
    prior = choose("prior", {"name": name, **SMALL}).build(layout, conditioning)
    optimizer, (generator,) = torch.optim.Adam(prior.parameters(), 1e-2), seeded(0)
    prior.train()
    for _ in range(60):
        classes = torch.randint(3, (32,), generator=generator)
        either = torch.randint(2, (32, len(layout)), generator=generator)
        sequence = (classes[:, None] + 3 * either).clamp(max=4)
        optimizer.zero_grad()
        prior.loss(sequence, classes, generator).backward()
        optimizer.step()
    prior.eval()
    classes = torch.arange(3).repeat(8)
    drawn = prior.sample(classes, None, seeded(*range(24)), Rules(guidance=3.0))
    wanted = (drawn == classes[:, None]) | (drawn == (classes[:, None] + 3).clamp(max=4))
    assert wanted.float().mean() > 0.85


@pytest.mark.parametrize("steps", [None, 24, 8, 1])
def test_the_masked_prior_takes_few_passes(steps: int | None) -> None:
    prior, passed = built("masked", FACES), 0

    def count(*_: object) -> None:
        nonlocal passed
        passed += 1

    prior.body.register_forward_hook(count)
    drawn = prior.sample(None, None, seeded(0, 1), Rules(steps=steps))
    assert drawn.min() >= 0
    # Each level has one pass at least.
    assert passed == {None: 16, 24: 24, 8: 8, 1: 2}[steps]


def test_more_passes_than_places_are_not_made() -> None:
    layout = Layout([Grid(2, 2, 1, 5), Grid(1, 1, 1, 5)])
    drawn = built("masked", layout).sample(None, None, seeded(0), Rules(steps=100))
    assert drawn.min() >= 0


def test_noise_on_the_confidence_changes_the_order_alone() -> None:
    prior = built("masked", LAYOUTS["nested"])
    few = [prior.sample(None, None, seeded(0), Rules(noise=each, steps=8)) for each in (0.0, 9.0)]
    assert not torch.equal(*few)
    assert "noise" not in built("masked", FACES, order="halton").rules


def test_the_bound_of_the_masked_prior_holds_on_average() -> None:
    """The bound of a uniform model is the exact value."""
    prior = choose("prior", {"name": "masked", **SMALL}).build(FACES, Conditioning()).eval()
    nats = prior.nats(sequences(FACES, 4), None).sum(1)
    assert torch.allclose(nats, torch.full((4,), 320 * math.log(32)), rtol=0.02)


def test_the_halton_order_spreads_places() -> None:
    from genkit_priors.masked import halton

    for rows, columns in ((8, 8), (3, 5), (1, 7), (16, 16)):
        turns = halton(rows, columns)
        assert sorted(turns.tolist()) == list(range(rows * columns))
    early = (halton(16, 16) < 16).view(4, 4, 4, 4).sum((1, 3))
    assert early.max() <= 2


def test_random_orders_become_row_by_row() -> None:
    prior = built("autoregressive", FACES, order="random")
    raster = torch.arange(64)

    def orderly(done: float) -> float:
        prior.progress(done)
        order = prior._order(200, seeded(0)[0])
        if order is None:
            return 1.0
        assert torch.equal(order.sort(1).values, raster.expand(200, -1))
        return (order == raster).all(1).float().mean().item()

    assert [orderly(done) for done in (0.0, 0.5, 0.75, 1.0)] == [0, 0, 1, 1]
    assert 0.3 < orderly(0.625) < 0.7


def test_an_order_row_by_row_gives_the_same_features() -> None:
    prior = built("autoregressive", LAYOUTS["nested"], order="random")
    sequence = sequences(LAYOUTS["nested"])
    plain = prior._hidden(sequence, None, None)
    ordered = prior._hidden(sequence, None, torch.arange(6).expand(3, -1))
    assert torch.allclose(plain, ordered, atol=1e-5)


def test_in_a_random_order_a_place_depends_on_those_before_it_alone() -> None:
    layout = LAYOUTS["nested"]
    prior = built("autoregressive", layout, order="random")
    order = torch.tensor([[4, 1, 0, 5, 2, 3]])
    sequence = sequences(layout, 1)
    plain = prior._hidden(sequence, None, order)
    for turn, place in enumerate(order[0].tolist()):
        other = sequence.clone()
        positions = prior.places[place]
        other[:, positions] = (other[:, positions] + 1) % layout.size[positions]
        changed = (prior._hidden(other, None, order) - plain).abs().amax(2)[0] > 1e-6
        for later, each in enumerate(order[0].tolist()):
            found = changed[prior.places[each]]
            if later < turn:
                assert not found.any()
            elif later == turn:
                assert found.tolist() == [False] + [True] * (len(positions) - 1)
            else:
                assert found.all()


def test_places_hold_the_indices_below_them() -> None:
    from genkit_priors.codes import places

    layout = Layout([Grid(4, 4, 1, 7), Grid(2, 2, 1, 5)])
    found = places(layout)
    assert found[1].tolist() == [1, 4 + 2, 4 + 3, 4 + 6, 4 + 7]
    assert places(LAYOUTS["codebooks"]).shape == (2, 3 + 8)
    assert places(LAYOUTS["no multiples"]).shape == (18, 2)
    assert places(Layout([Grid(3, 3, 2, 7), Grid(2, 2, 1, 9)])).shape == (22, 1)


@pytest.mark.parametrize("name", ["autoregressive", "masked"])
def test_token_noise_replaces_a_share_of_what_is_seen(name: str) -> None:
    prior = built(name, FACES)
    sequence = sequences(FACES, 8)
    assert prior.codes.noisy(sequence, 0.0, seeded(0)[0]) is sequence
    noisy = prior.codes.noisy(sequence, 0.25, seeded(0)[0])
    assert 0.2 < (noisy != sequence).float().mean() < 0.3
    assert ((noisy >= 0) & (noisy < 32)).all()
    # Nats see none.
    loud = built(name, FACES, token_noise=1.0)
    assert torch.equal(loud.nats(sequence, None), prior.nats(sequence, None))


@pytest.mark.parametrize("condition", ["class", "vectors"])
def test_conditions_are_left_out_at_random(condition: str) -> None:
    prefix = built("masked", FACES, CONDITIONS[condition]).prefix
    given = torch.ones(400, dtype=torch.int64) if condition == "class" else torch.ones(400, 3, 4)
    found = prefix.dropped(given, 0.1, seeded(0)[0])
    left = (found == (-1 if condition == "class" else 0)).view(400, -1).all(1)
    assert 20 < left.sum() < 60
    assert torch.equal(found[~left], given[~left])
    assert torch.equal(prefix(None, 2)[0], prefix(prefix.without(given[:2]), 2)[0])


def test_padding_changes_nothing() -> None:
    prior = built("autoregressive", LAYOUTS["nested"], CONDITIONS["vectors"])
    vectors = torch.randn(3, 1, 4, generator=seeded(0)[0])
    padded = torch.cat([vectors, torch.zeros(3, 2, 4)], 1)
    sequence = sequences(LAYOUTS["nested"])
    assert torch.allclose(prior.nats(sequence, vectors), prior.nats(sequence, padded), atol=1e-6)


@pytest.mark.parametrize("name", ["autoregressive", "masked"])
def test_codebooks_too_large_for_a_softmax_are_refused(name: str) -> None:
    layout = Layout([Grid(2, 2, 1, 2**18)])
    with pytest.raises(GenkitError, match="takes codebooks of up to 262143 codes"):
        choose("prior", {"name": name, **SMALL}).build(layout, Conditioning())
    with pytest.raises(GenkitError, match="no multiple of 16"):
        choose("prior", {"name": name, "width": 40, "heads": 4})


def test_drawn_codes_are_as_frequent_as_likely() -> None:
    logits = torch.randn(7, generator=seeded(0)[0])
    chance = torch.rand(40000, generator=seeded(1)[0])
    found = draw(logits.expand(40000, -1), chance).bincount(minlength=7) / 40000
    assert (found - logits.softmax(0)).abs().max() < 0.01


def test_the_rules_of_sampling() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()

    def left(kept: torch.Tensor) -> list[bool]:
        found: list[bool] = (kept > -torch.inf)[0].tolist()
        return found

    assert left(keep_top_k(logits, 2)) == [True, True, False, False]
    assert left(keep_top_k(logits, 0)) == left(keep_top_k(logits, 9)) == [True] * 4
    assert left(keep_top_p(logits, 0.7)) == [True, True, False, False]
    assert left(keep_top_p(logits, 0.71)) == [True, True, True, False]
    assert left(keep_top_p(logits, 0.0)) == [True, False, False, False]
    assert left(shaped(logits, Rules(temperature=0.0))) == [True, False, False, False]
    assert torch.allclose(shaped(logits, Rules(temperature=0.5)), logits * 2)
    # The temperature comes before the mass is counted.
    assert left(shaped(logits, Rules(temperature=0.1, top_p=0.9))) == [True, False, False, False]
    assert torch.allclose(guided(logits, logits - 1, 1.0), logits)
    assert torch.allclose(guided(logits, logits - 1, 3.0), logits + 2)
    last = torch.tensor([1 - 2**-24])
    assert draw(keep_top_k(logits, 2), last).tolist() == [1]
