"""timm's models as extractors of feature maps, and their weights."""

from __future__ import annotations

import logging
import pickle
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_state_dict
from torch import Tensor, nn

from genkit.checkpoint.hub import one_attempt
from genkit.errors import DataError
from genkit.models import RGB
from genkit.plugin.names import nearest

Weights = dict[str, Tensor]
_COUNTER = "num_batches_tracked"


class Features(nn.Module):
    """The feature maps of one of timm's models at the given strides, of images in [-1, 1].

    `channels` are the images' channels, `widths` the maps', and `kind` is the kind of the component
    whose option the strides are. `ValueError` if the model has no such maps. Weights for colours
    are fitted by timm to another number of channels.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        kind: str,
        name: str,
        strides: Sequence[int],
        channels: int,
        weights: str,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        known = _create(name)
        found = dict(zip(known.feature_info.reduction(), range(99), strict=False))  # The deepest.
        if missing := [stride for stride in strides if stride not in found]:
            raise ValueError(
                f"{name} has feature maps of the strides {', '.join(map(str, sorted(found)))}, "
                f"and none of {', '.join(map(str, missing))}: name its own with --{kind}.strides"
            )
        self.indices = tuple(found[stride] for stride in strides)
        state = _state(name, weights) if weights else None
        self.net, self.last = _working(name, self.indices, strides, channels, state)
        self.widths = [known.feature_info.channels()[index] for index in self.indices]
        config = timm.get_pretrained_cfg(name).to_dict()
        mean, deviation = (
            torch.tensor(config.get(key, 0.5)) if normalize else torch.tensor(0.5)
            for key in ("mean", "std")
        )
        # A model of colours has three means, which images of other channels share.
        mean, deviation = (
            value.expand(channels)
            if value.numel() in (1, channels)
            else value.mean().expand(channels)
            for value in (mean, deviation)
        )
        # Of images in [-1, 1] rather than in [0, 1].
        self.register_buffer("mean", (2 * mean - 1).view(-1, 1, 1), persistent=False)
        self.register_buffer("deviation", (2 * deviation).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """The maps `[B, C, H / stride, W / stride]` of images `[B, channels, H, W]`."""
        features: list[Tensor] = self.net((images - self.mean) / self.deviation)
        return [each.permute(0, 3, 1, 2) for each in features] if self.last else features


def _create(name: str, **options: Any) -> Any:
    if timm.is_model(name):
        try:
            return timm.create_model(name, features_only=True, **options)
        except (RuntimeError, AttributeError, AssertionError) as error:
            raise ValueError(f"timm's {name} has no feature maps: {error}") from error
    known = [*timm.list_models(), *timm.list_pretrained()]
    raise ValueError(f"timm knows no model '{name}'.{nearest(name, known)}")


# Whoever loads a model may have switched gradients off.
@torch.inference_mode(False)
@torch.enable_grad()
def _working(
    name: str,
    indices: tuple[int, ...],
    strides: Sequence[int],
    channels: int,
    state: Weights | None,
) -> tuple[nn.Module, bool]:
    """A model that takes images of any size, and whether its maps have their channels last.

    Its maps have been seen to have the sizes that it announces. What none of them needs is frozen.
    """
    options: dict[str, Any] = {"out_indices": indices, "in_chans": channels}
    if state is not None:
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state}}
    problem = ""
    # Transformers are built for one size unless they are told otherwise, each kind in its own way.
    height, width = 2 * max(strides), 3 * max(strides)
    for size in ({}, {"dynamic_img_size": True}, {"strict_img_size": False}):
        try:
            with _silent():
                net = _create(name, **options, **size)
            maps = net.eval()(torch.zeros(1, channels, height, width))
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            problem = problem or str(error)
            continue
        last = maps[-1].shape[1:3] == (2, 3)
        found = [tuple(each.shape[1:3] if last else each.shape[2:]) for each in maps]
        if found != [(height // stride, width // stride) for stride in strides]:
            raise ValueError(
                f"timm's {name} gives maps of {found} for {height} x {width} pixels, "
                f"which are not those of strides {tuple(strides)}"
            )
        sum(each.sum() for each in maps).backward()
        stages = getattr(net, "blocks", None)
        # Some of timm's networks run on to their end, whatever is asked of them.
        while isinstance(stages, nn.Sequential | nn.ModuleList) and _idle(stages[-1]):
            del stages[-1]
        for parameter in net.parameters():
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None
        return net.train(), last
    raise ValueError(f"timm's {name} cannot take images of any size: {problem}")


def _idle(stage: nn.Module) -> bool:
    return all(parameter.grad is None for parameter in stage.parameters())


def check_colours(channels: int) -> None:
    """`ValueError` unless a network of colours can look at images of so many channels."""
    if channels not in (1, RGB):
        raise ValueError(f"it looks at images of 1 or {RGB} channels, not of {channels}")


def as_colours(images: Tensor) -> Tensor:
    """Images `[B, 3, H, W]`; a grey channel is repeated."""
    return images.expand(-1, RGB, -1, -1)


@contextmanager
def _silent() -> Iterator[None]:
    """Without timm's warning that a model's head finds no place in its trunk."""
    logger = logging.getLogger("timm")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _state(name: str, weights: str) -> Weights:
    """The weights of a model under timm's names, from a file or the hub."""
    if weights == "hub":
        with one_attempt() as reached:
            try:
                return dict(timm.create_model(name, pretrained=True).state_dict())
            # The network, the hub and the file fail in many ways, and the advice is the same.
            except Exception as error:
                raise DataError(
                    f"timm's weights of {name} cannot be fetched: "
                    f"{_short(error) if reached else 'the hub is out of reach'}\n"
                    "Where there is no network, give the option weights a file of them."
                ) from error
    return fitted(timm.create_model(name), read(weights), weights, name)


def read(file: str) -> Weights:
    """The tensors in a `.safetensors` or `.pth` file, by name; nothing in it is executed."""
    if not Path(file).is_file():
        raise DataError(f"there is no file '{file}' to read weights from")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of formats of long ago.
            # As older versions of timm do not by themselves.
            state = load_state_dict(file, weights_only=True)
    except Exception as error:  # Torch raises anything on a file that is none of its own.
        # Its advice on pickles is meant for who wrote the file.
        foreign = any(isinstance(e, pickle.UnpicklingError) for e in (error, error.__cause__))
        reason = "it is no .safetensors or .pth file of tensors alone" if foreign else _short(error)
        raise DataError(f"'{file}' holds no weights that can be read: {reason}") from error
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"'{file}' holds no weights by name")
    return dict(state)


def fitted(model: nn.Module, state: Weights, file: str, name: str) -> Weights:
    """`state` under the names of `model`.

    Where names differ, as torchvision's and timm's do, tensors are taken in their order, if that
    gives each its shape. `DataError` if the weights are another model's.
    """
    wanted = model.state_dict()
    heads = timm.get_pretrained_cfg(name).to_dict().get("classifier") if timm.is_model(name) else ()
    prefixes = (heads,) if isinstance(heads, str) else tuple(heads or ())
    # A head may be of other classes or missing, and old files count no batches.
    needed = [key for key in wanted if not key.startswith(prefixes) and not key.endswith(_COUNTER)]
    if all(key in state for key in needed):
        state = {**wanted, **{key: state[key] for key in needed}}
    else:
        names = [key for key in wanted if not key.endswith(_COUNTER)]
        found = [value for key, value in state.items() if not key.endswith(_COUNTER)]
        if len(found) != len(names):
            raise DataError(
                f"'{file}' holds {len(found)} tensors, {name} has {len(names)}: "
                "they are another model's weights"
            )
        if file.endswith(".safetensors"):
            raise DataError(
                f"the tensors in '{file}' have other names than those of {name}, and .safetensors "
                "keeps no order to take them in: give the .pth file"
            )
        state = {**wanted, **dict(zip(names, found, strict=True))}
    for key, value in wanted.items():
        if state[key].shape != value.shape:
            raise DataError(
                f"the weights in '{file}' are not those of {name}: "
                f"{key} is {list(value.shape)}, not {list(state[key].shape)}"
            )
    return state


def _short(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text if len(text) < 200 else f"{text[:200]}…"
