"""Everything a component built with some options computes, to compare it with another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from genkit import Level, Part
from genkit.interfaces import Conditioning, Rules
from genkit.layout import Grid, Layout
from genkit.plugin.registry import registry
from genkit.settings import choose, specs

LEVELS = [Level(0, 8, 4), Level(1, 8, 8)]
Settings = Mapping[str, Any]


def look(kind: str, name: str, settings: Settings, levels: int = 2) -> list[Any]:
    """The state, outputs, losses and gradients of a component, in order and as plain lists."""
    part = choose(kind, {"name": name, **settings})
    torch.manual_seed(0)
    found: list[Any] = _LOOKS[kind](part, levels)
    return found


def _encoder(part: Part, _: int) -> list[Any]:
    module = part.build(3).train()
    images = _noise(0, 2, 3, 32, 32)
    return [[level.stride for level in module.levels], *_passed(module, images)]


def _quantizer(part: Part, _: int) -> list[Any]:
    module = part.build(LEVELS[0]).train()
    descent = torch.optim.SGD([*module.parameters(), torch.nn.Parameter(torch.zeros(1))], 0.1)
    found: list[Any] = [module.codebook_size]
    for step in range(4):
        torch.manual_seed(step)
        # Latents near few points at first and others later, so that codes become unused.
        latents = (_noise(step, 3, 8, 4, 6) * 0.1 + step).requires_grad_()
        out = module(latents)
        (out.latents.square().mean() + out.loss).backward()
        descent.step()
        descent.zero_grad()
        found += [*map(_plain, (out.latents, out.indices, out.loss)), _plain(latents.grad)]
    return [*found, _state(module), _plain(module.eval()(latents).latents)]


def _fusion(part: Part, _: int) -> list[Any]:
    return _passed(part.build(*LEVELS).train(), _noise(0, 2, 8, 8, 8), _noise(1, 2, 8, 4, 4))


def _decoder(part: Part, levels: int) -> list[Any]:
    latents = [_noise(0, 2, 8, 8, 8), _noise(1, 2, 8, 4, 4)]
    return _passed(part.build(LEVELS[:levels], 3).train(), latents[:levels])


def _attention(part: Part, _: int) -> list[Any]:
    return _passed(part.build(8).train(), _noise(0, 2, 8, 4, 4), _noise(1, 2, 6, 4, 4))


def _discriminator(part: Part, _: int) -> list[Any]:
    return _passed(part.build(3).train(), _noise(0, 4, 3, 32, 32))


def _perceptual(part: Part, _: int) -> list[Any]:
    loss = part.build(3).eval()(_noise(0, 1, 3, 64, 64).tanh(), _noise(1, 1, 3, 64, 64).tanh())
    return [_plain(loss)]


def _metric(part: Part, _: int) -> list[Any]:
    metric = part.build(3)
    metric.update(_noise(0, 6, 3, 64, 64).tanh(), _noise(1, 6, 3, 64, 64).tanh())
    return [metric.result()]


def _features(part: Part, _: int) -> list[Any]:
    network = part.build()
    images = _noise(0, 2, 3, 64, 64).mul(80).add(128).clamp(0, 255).to(torch.uint8)
    return [{name: _plain(each) for name, each in network(images).items()}, network.details]


def _dataset(part: Part, _: int) -> list[Any]:
    found: list[Any] = []
    whole = part.build((32, 32), 0)
    for split in ("train", "heldout"):
        dataset = whole.split(split)
        every = range(min(len(dataset), 40))
        found += [len(dataset), [dataset.name(index) for index in every]]
        found += [dataset.classes, [dataset.label(index) for index in every]]
        found += [dataset.images(every).tobytes(), dataset.images(every, every).tobytes()]
    return found


def _optimizer(part: Part, _: int) -> list[Any]:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    optimizer = part.build(module, 0.01, torch.float32)
    for step in range(3):
        module(_noise(step, 2, 3, 4, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [_state(module)]


def _schedule(part: Part, _: int) -> list[Any]:
    schedule = part.build(10, 2)
    return [schedule(step) for step in range(11)]


def _prior(part: Part, _: int) -> list[Any]:
    layout = Layout([Grid(4, 4, 1, 7), Grid(2, 2, 1, 5)])
    module = part.build(layout, Conditioning(classes=3))
    before = _state(module)
    sequence = (_noise(0, 6, 20).sigmoid() * layout.size).long()
    classes = torch.arange(6) % 3
    for step in range(2):
        loss = module.loss(sequence, classes, torch.Generator().manual_seed(step))
        loss.backward()
        # From the second step on, a gradient passes the head, which starts at zero.
        with torch.no_grad():
            for parameter in module.parameters():
                parameter -= 0.1 * parameter.grad
    draws = [torch.Generator().manual_seed(seed) for seed in range(2)]
    drawn = module.eval().sample(None, None, draws, Rules())
    return [before, _state(module), drawn.tolist()]


_LOOKS: Mapping[str, Any] = {
    "optimizer": _optimizer,
    "schedule": _schedule,
    "prior": _prior,
    "encoder": _encoder,
    "quantizer": _quantizer,
    "fusion": _fusion,
    "decoder": _decoder,
    "attention": _attention,
    "discriminator": _discriminator,
    "perceptual": _perceptual,
    "metric": _metric,
    "features": _features,
    "dataset": _dataset,
}


def _passed(module: nn.Module, *inputs: Any) -> list[Any]:
    torch.manual_seed(1)
    before = _state(module)
    out = module(*inputs)
    outputs = out if isinstance(out, list) else [out]
    torch.stack([each.square().mean() for each in outputs]).sum().backward()
    grads = [_plain(each.grad) for each in module.parameters()]
    return [before, [_plain(each) for each in outputs], grads]


def _state(module: nn.Module) -> dict[str, Any]:
    return {name: _plain(each) for name, each in module.state_dict().items()}


def _plain(tensor: torch.Tensor | None) -> Any:
    return None if tensor is None else (list(tensor.shape), tensor.detach().numpy().tobytes())


def _noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def another(kind: str, name: str, option: str, settings: Settings) -> Any:
    """A value that differs from the option's own, guessed from its type."""
    config = registry().component(kind, name).config
    spec = next(spec for spec in specs(config, settings) if spec.path == (option,))
    return next_value(spec.value, spec.type, spec.choices)


def next_value(value: Any, type_: Any, choices: list[str]) -> Any:
    """A value of this type that differs from the given one."""
    if choices:
        return next(choice for choice in choices if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple | list):
        return [item * 2 for item in value]
    return value * 2 if value else type_(1)
