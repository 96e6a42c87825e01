"""The contract of priors."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genkit.checks import finite, floats, shape, want
from genkit.interfaces import Conditioning, Rules
from genkit.layout import Grid, Layout
from genkit.plugin.options import Part
from genkit.testing.device import also
from genkit.testing.tools import build, call, check_reload, close, halved, has, part, put

SIGNATURE = "Prior(options, layout, conditioning)"
_IMAGES = 6
_STEPS = 40


class Case(NamedTuple):
    """A layout and a kind of condition."""

    layout: Layout
    conditioning: Conditioning

    def sequences(self) -> Tensor:
        """Random sequences."""
        draws = torch.rand(_IMAGES, len(self.layout), generator=torch.Generator().manual_seed(0))
        return put((draws * self.layout.size).long())

    def conditions(self) -> Tensor | None:
        """A condition per sequence; the last image has none, and some vectors are padding."""
        if self.conditioning.classes:
            classes = torch.arange(_IMAGES) % self.conditioning.classes
            classes[-1] = -1
            return put(classes)
        if not self.conditioning:
            return None
        size = _IMAGES, self.conditioning.length, self.conditioning.channels
        vectors = torch.randn(size, generator=torch.Generator().manual_seed(1))
        vectors[1, 1:] = 0
        vectors[-1] = 0
        return put(vectors)


CASES = [
    Case(Layout([Grid(4, 6, 1, 7), Grid(2, 3, 1, 5)]), Conditioning(classes=3)),
    Case(Layout([Grid(2, 3, 2, 6)]), Conditioning(length=3, channels=4)),
    Case(Layout([Grid(3, 4, 1, 5), Grid(2, 2, 2, 6)]), Conditioning()),
]


def check_prior(name: str, *, gpu: bool = True, **options: Any) -> None:
    """Check the prior `name`: its loss, nats and samples, and that it learns, saves and loads.

    The layouts have several levels or codebooks and grids that are not square; the conditions are
    classes, vectors, and nothing. `options` are the component's own.

    Everything is checked once more on a pretend GPU, in a process of its own; `gpu=False` skips
    that.
    """
    __tracebackhide__ = True
    chosen = part("prior", name, options)
    for case in CASES:
        torch.manual_seed(0)
        prior = _built(chosen, case)
        _check_loss(prior, case)
        _check_learning(prior, case)
        _check_nats(prior, case)
        _check_samples(prior, case)
        second = _built(chosen, case)
        check_reload(prior, second, partial(_nats, case))
    _check_sum(chosen)
    if gpu:
        also("prior", name, **options)


def _nats(case: Case, prior: Any) -> list[Tensor]:
    return [prior.nats(case.sequences(), case.conditions())]


def _built(chosen: Part, case: Case) -> Any:
    __tracebackhide__ = True
    prior = build(chosen, SIGNATURE, case.layout, case.conditioning)
    exact = has(prior, "exact", "whether its nats are exact, True or False")
    want(isinstance(exact, bool), f"exact must be True or False, not {exact!r}")
    rules = set(has(prior, "rules", "the names of the rules that sampling follows"))
    unknown = rules - {field.name for field in dataclasses.fields(Rules)}
    want(not unknown, f"rules must be names of fields of Rules; {sorted(unknown)} are not")
    for method in ("loss", "nats", "sample"):
        want(callable(getattr(prior, method, None)), f"it must have the method {method}")
    return prior


def _generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def _check_loss(prior: Any, case: Case) -> None:
    __tracebackhide__ = True
    sequences, condition = case.sequences(), case.conditions()
    before = sequences.clone()
    prior.train()
    said = "loss(sequence, condition, generator)"
    losses = []
    for seed in (0, 1):
        torch.manual_seed(seed)  # Draws from the process's own generator would show.
        losses.append(call(said, prior.loss, sequences, condition, *_generators(7)))
    floats("the loss", losses[0], ())
    want(torch.equal(before, sequences), "loss must not change its sequences")
    want(
        torch.equal(*losses),
        "loss must be the same for generators of the same seed: all its random draws must come "
        f"from the generator; found {losses[0]:.6g} and {losses[1]:.6g}",
    )
    uniform = case.layout.size.double().log().mean().item()
    want(
        abs(losses[0].item() - uniform) < 0.5,
        f"a new prior must hold all codes for about equally likely: a loss near {uniform:.3g} "
        f"nats per index, not {losses[0].item():.3g}",
    )
    call(f"{said} without conditions", prior.loss, sequences, None, *_generators(7))
    with halved():
        rounded = call(f"{said} in a bf16 run", prior.loss, sequences, condition, *_generators(7))
    floats("the loss in a bf16 run", rounded, ())


def _check_learning(prior: Any, case: Case) -> None:
    """Train on a few sequences; every parameter must matter, and the nats must fall."""
    __tracebackhide__ = True
    sequences, condition = case.sequences(), case.conditions()
    start = prior.eval().nats(sequences, condition).sum().item()
    state = copy.deepcopy(prior.state_dict())
    # The right learning rate depends on the prior.
    for lr in (1e-2, 1e-3):
        prior.load_state_dict(state)
        _train(prior, case, lr)
        nats = prior.eval().nats(sequences, condition).sum().item()
        if nats < 0.9 * start:
            return
    raise AssertionError(
        f"{_STEPS} steps of Adam on {_IMAGES} sequences must lower their nats by a tenth, but they "
        f"went from {start:.4g} to {nats:.4g}"
    )


def _train(prior: Any, case: Case, lr: float) -> None:
    __tracebackhide__ = True
    sequences, condition = case.sequences(), case.conditions()
    optimizer = torch.optim.Adam(prior.parameters(), lr)
    generator, missing = torch.Generator().manual_seed(0), dict(prior.named_parameters())
    prior.train()
    for step in range(_STEPS):
        if hasattr(prior, "progress"):
            call("progress(done)", prior.progress, step / _STEPS)
        optimizer.zero_grad()
        prior.loss(sequences, condition, generator).backward()
        for name, parameter in list(missing.items()):
            if parameter.grad is not None and parameter.grad.any():
                finite(f"the gradient of {name}", parameter.grad)
                del missing[name]
        optimizer.step()
    want(not missing, f"a gradient must reach every parameter; none reached {[*missing]}")


def _check_nats(prior: Any, case: Case) -> None:
    __tracebackhide__ = True
    sequences, condition = case.sequences(), case.conditions()
    prior.eval()
    said = "nats(sequence, condition)"
    with torch.no_grad():
        found = call(said, prior.nats, sequences, condition)
        floats("the nats", found, sequences.shape)
        want(bool((found >= -1e-5).all()), "nats must not be negative")
        torch.manual_seed(1)
        want(
            torch.equal(found, prior.nats(sequences, condition)),
            "nats must be the same each time: draw masks, if any, from a generator of a fixed seed",
        )
        fewer = None if condition is None else condition[1:]
        one = call(f"{said} of fewer images", prior.nats, sequences[1:], fewer)
        close(
            "nats of fewer images", one, found[1:], "the nats of the same images in a larger batch"
        )


def _check_samples(prior: Any, case: Case) -> None:
    __tracebackhide__ = True
    count, condition = len(case.layout), case.conditions()
    known = case.sequences()
    kept = known.clone()
    kept[:, 1::2] = -1
    seeds = list(range(_IMAGES))
    said = "sample(condition, kept, generators, rules)"
    prior.eval()
    plain = call(said, prior.sample, condition, None, _generators(*seeds), Rules())
    shape("the sample", plain, (_IMAGES, count))
    want(plain.dtype == torch.int64, f"a sample must be int64, not {plain.dtype}")
    want(
        bool(((plain >= 0) & (plain < put(case.layout.size))).all()),
        "each index of a sample must be from 0 to its codebook's size - 1, layout.size - 1",
    )
    want(
        len({tuple(row) for row in plain.tolist()}) > 1,
        "images with other generators must differ",
    )
    torch.manual_seed(1)
    few = None if condition is None else condition[[3, 1]]
    again = prior.sample(few, None, _generators(3, 1), Rules())
    want(
        torch.equal(again, plain[[3, 1]]),
        "a sequence must depend on its own generator and condition alone, not on the other images "
        "of the batch: draw from each image's generator as often as if it were alone",
    )
    given = kept.clone()
    completed = call(
        f"{said} with kept indices", prior.sample, condition, kept, _generators(*seeds), Rules()
    )
    want(torch.equal(kept, given), "sample must not change the kept indices in place")
    want(torch.equal(completed[:, ::2], known[:, ::2]), "kept indices must stay as they are")
    want(bool((completed >= 0).all()), "each index that is not kept must be drawn")
    _check_rules(prior, condition, seeds)


def _check_rules(prior: Any, condition: Tensor | None, seeds: list[int]) -> None:
    __tracebackhide__ = True

    def drawn(given: Tensor | None, **rules: Any) -> Tensor:
        result: Tensor = prior.sample(given, None, _generators(*seeds), Rules(**rules))
        return result

    if {"temperature", "top_k"} <= set(prior.rules):
        want(
            torch.equal(drawn(condition, temperature=0.0), drawn(condition, top_k=1)),
            "temperature 0 and top_k 1 must both draw the most likely code",
        )
    if "guidance" in prior.rules:
        want(
            torch.equal(drawn(None, guidance=3.0), drawn(None)),
            "guidance must change nothing without a condition",
        )


def _check_sum(chosen: Part) -> None:
    """The probabilities of all sequences of a tiny layout add up to 1."""
    __tracebackhide__ = True
    case = Case(Layout([Grid(1, 2, 1, 3)]), Conditioning())
    torch.manual_seed(0)
    prior = _built(chosen, case)
    if not prior.exact:
        return
    _check_learning(prior, case)
    every = put(torch.tensor(list(itertools.product(range(3), repeat=2))))
    with torch.no_grad():
        total = prior.nats(every, None).double().sum(1).neg().exp().sum().item()
    want(
        math.isclose(total, 1, abs_tol=1e-4),
        f"the probabilities exp(-nats) of all sequences must add up to 1, not to {total:.6g}: an "
        "index may depend only on those before it",
    )
