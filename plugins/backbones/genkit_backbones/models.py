"""Feature maps of timm models, and loading of their weights."""

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
from genkit.errors import DataError, OptionError
from genkit.plugin.names import nearest

Weights = dict[str, Tensor]
_COUNTER = "num_batches_tracked"


class Features(nn.Module):
    """The feature maps of a timm model at the given strides, for images in [-1, 1].

    `channels` is the number of image channels, and `widths` are the channels of the maps. `kind` is
    the component kind to name in messages. `ValueError` if the model has no maps of these strides.
    timm adapts RGB weights to other numbers of channels.
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
        # If several maps have the same stride, the deepest counts.
        maps = dict(zip(known.feature_info.reduction(), range(99), strict=False))
        if missing := [stride for stride in strides if stride not in maps]:
            raise ValueError(
                f"{name} has no feature maps with strides {', '.join(map(str, missing))}: choose "
                f"from {', '.join(map(str, sorted(maps)))} with --{kind}.strides"
            )
        self.indices = tuple(maps[stride] for stride in strides)
        state = trained_state(name, weights) if weights else None
        self.net, self.last = _working(name, self.indices, strides, channels, state)
        self.widths = [known.feature_info.channels()[index] for index in self.indices]
        config = timm.get_pretrained_cfg(name).to_dict()
        mean, deviation = (
            torch.tensor(config.get(key, 0.5)) if normalize else torch.tensor(0.5)
            for key in ("mean", "std")
        )
        # An RGB model has three means; images with other channels use their average.
        mean, deviation = (
            value.expand(channels)
            if value.numel() in (1, channels)
            else value.mean().expand(channels)
            for value in (mean, deviation)
        )
        # timm's values are for images in [0, 1]; convert them for images in [-1, 1].
        self.register_buffer("mean", (2 * mean - 1).view(-1, 1, 1), persistent=False)
        self.register_buffer("deviation", (2 * deviation).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps `[B, C, H / stride, W / stride]` of images `[B, channels, H, W]`."""
        features: list[Tensor] = self.net((images - self.mean) / self.deviation)
        return [each.permute(0, 3, 1, 2) for each in features] if self.last else features


def _create(name: str, **options: Any) -> Any:
    if timm.is_model(name):
        try:
            return timm.create_model(name, features_only=True, **options)
        except (RuntimeError, AttributeError, AssertionError) as error:
            raise ValueError(f"timm's {name} has no feature maps: {error}") from error
    known = [*timm.list_models(), *timm.list_pretrained()]
    raise ValueError(f"timm has no model '{name}'.{nearest(name, known)}")


# The caller may have disabled gradients, but the check below needs them.
@torch.inference_mode(False)
@torch.enable_grad()
def _working(
    name: str,
    indices: tuple[int, ...],
    strides: Sequence[int],
    channels: int,
    state: Weights | None,
) -> tuple[nn.Module, bool]:
    """A model for images of any size, and whether its maps are channels-last.

    The sizes of its maps are checked on a blank image. Parameters that no map depends on are
    frozen.
    """
    options: dict[str, Any] = {"out_indices": indices, "in_chans": channels}
    if state is not None:
        options |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state}}
    problem = ""
    # By default, transformers accept one image size only; the option to change this varies.
    height, width = 2 * max(strides), 3 * max(strides)
    for size in ({}, {"dynamic_img_size": True}, {"strict_img_size": False}):
        try:
            with silent():
                net = _create(name, **options, **size)
            maps = net.eval()(torch.zeros(1, channels, height, width))
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            problem = problem or str(error)
            continue
        last = maps[-1].shape[1:3] == (2, 3)
        sizes = [tuple(each.shape[1:3] if last else each.shape[2:]) for each in maps]
        if sizes != [(height // stride, width // stride) for stride in strides]:
            raise ValueError(
                f"timm's {name} returns maps of size {sizes} for {height} x {width} pixels, "
                f"which contradict its strides {tuple(strides)}: choose another model"
            )
        sum(each.sum() for each in maps).backward()
        stages = getattr(net, "blocks", None)
        # Some timm networks compute all stages, whatever maps are requested. Drop unused ones.
        while isinstance(stages, nn.Sequential | nn.ModuleList) and _idle(stages[-1]):
            del stages[-1]
        for parameter in net.parameters():
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None
        return net.train(), last
    raise ValueError(f"timm's {name} does not accept images of any size: {problem}")


def _idle(stage: nn.Module) -> bool:
    return all(parameter.grad is None for parameter in stage.parameters())


def check_weights(subject: str, kind: str, model: str, weights: str) -> None:
    """`OptionError` if pretrained weights are needed and not named."""
    if not weights:
        raise OptionError(
            f"the {subject} needs pretrained weights: give them with --{kind}.weights FILE "
            f"(.safetensors or .pth, of {model}), or download them with --{kind}.weights hub"
        )


@contextmanager
def silent() -> Iterator[None]:
    """Suppress timm's warning about unused weights of a model's head."""
    logger = logging.getLogger("timm")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def trained_state(name: str, weights: str) -> Weights:
    """The weights of a model with timm's parameter names, from a file or the hub."""
    if weights == "hub":
        with one_attempt() as reached:
            try:
                return dict(timm.create_model(name, pretrained=True).state_dict())
            # The network, the hub and the file raise many types of errors.
            except Exception as error:
                raise DataError(
                    f"timm's weights of {name} cannot be downloaded: "
                    f"{short(error) if reached else 'the hub cannot be reached'}\n"
                    "Without a network connection, set the option weights to a local file."
                ) from error
    return fitted(timm.create_model(name), read(weights), weights, name)


def read(file: str) -> Weights:
    """The tensors in a `.safetensors` or `.pth` file, by name. No code in it is executed."""
    if not Path(file).is_file():
        raise DataError(f"the weights file '{file}' does not exist")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch warns of old file formats.
            # Explicit, because older versions of timm default to False.
            state = load_state_dict(file, weights_only=True)
    except Exception as error:  # PyTorch raises many types of errors on foreign files.
        # PyTorch's advice on pickles is not for the reader of a file: it would disable the check.
        foreign = any(isinstance(e, pickle.UnpicklingError) for e in (error, error.__cause__))
        reason = (
            "it must be a .safetensors or .pth file with only tensors" if foreign else short(error)
        )
        raise DataError(f"weights cannot be read from '{file}': {reason}") from error
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"'{file}' must hold a dictionary of tensors by name")
    return dict(state)


def fitted(model: nn.Module, state: Weights, file: str, name: str) -> Weights:
    """`state` with the parameter names of `model`.

    If names differ, as between torchvision and timm, tensors are matched by their order, provided
    that all shapes fit. `DataError` if the weights belong to another model.
    """
    wanted = model.state_dict()
    heads = timm.get_pretrained_cfg(name).to_dict().get("classifier") if timm.is_model(name) else ()
    prefixes = (heads,) if isinstance(heads, str) else tuple(heads or ())
    # The head may be missing or have other classes, and old files have no batch counters.
    needed = [key for key in wanted if not key.startswith(prefixes) and not key.endswith(_COUNTER)]
    if all(key in state for key in needed):
        state = {**wanted, **{key: state[key] for key in needed}}
    else:
        names = [key for key in wanted if not key.endswith(_COUNTER)]
        tensors = [value for key, value in state.items() if not key.endswith(_COUNTER)]
        if len(tensors) != len(names):
            raise DataError(
                f"'{file}' holds {len(tensors)} tensors, {name} has {len(names)}: "
                "they are another model's weights"
            )
        if file.endswith(".safetensors"):
            raise DataError(
                f"the tensors in '{file}' are named differently from {name}'s, and .safetensors "
                "keeps no order to match them by: give the .pth file"
            )
        state = {**wanted, **dict(zip(names, tensors, strict=True))}
    for key, value in wanted.items():
        if state[key].shape != value.shape:
            raise DataError(
                f"the weights in '{file}' do not fit {name}: the shape of {key} is "
                f"{list(state[key].shape)}, not {list(value.shape)}"
            )
    return state


def short(error: Exception) -> str:
    """The first line of an error's text."""
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return text if len(text) < 200 else f"{text[:200]}…"
