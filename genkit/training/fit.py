"""A test run of one blank image through all components, before training."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from genkit.checks import check_counting, check_result
from genkit.errors import GenkitError, OptionError
from genkit.plugin.options import Part
from genkit.run.options import TokenizerRun
from genkit.tokenizer import Tokenizer


@torch.no_grad()
def check_fit(
    run: TokenizerRun,
    tokenizer: Tokenizer,
    perceptual: nn.Module | None,
    discriminator: nn.Module | None,
) -> None:
    """`OptionError` if the components do not work together, or not on images of this size.

    One blank image passes through all of them, so that a run that would fail at its first step is
    refused before it starts.
    """
    stride, size, channels = tokenizer.levels[-1].stride, run.size, tokenizer.channels
    if any(count % stride for count in size):
        raise OptionError(
            f"--resolution {run.resolution} must be a multiple of the coarsest level's stride, "
            f"{stride}"
        )
    wholes = [module for module in (tokenizer, perceptual, discriminator) if module]
    modes = {module: module.training for whole in wholes for module in whole.modules()}
    for whole in wholes:
        whole.eval()
    images = torch.zeros(1, channels, *size)
    with _blamed(run.encoder):
        latents = tokenizer.encoder(images)
        wanted = [[1, level.channels, *level.grid(*size)] for level in tokenizer.levels]
        _check_shapes("latents", latents, wanted)
    with (
        _blamed(run.quantizer, *([run.fusion] if len(latents) > 1 else [])),
        _checked(run.quantizer, tokenizer),
    ):
        quantized = tokenizer.quantize(latents)
    with _blamed(run.decoder):
        made = tokenizer.decoder([level.latents for level in quantized])
        _check_shapes("images", [made], [[1, channels, *size]])
    if perceptual:
        with _blamed(run.perceptual):
            _check_shapes("losses", [perceptual(made, images)], [[]])
    if discriminator:
        with _blamed(run.discriminator):
            logits = discriminator(images)
            _check_shapes("logits", [logits], [[1, 1, *logits.shape[2:]]])
    for module, mode in modes.items():
        module.training = mode


def _check_shapes(what: str, found: list[torch.Tensor], wanted: list[list[int]]) -> None:
    shapes = [list(each.shape) for each in found]
    if shapes != wanted:
        raise ValueError(f"its {what} are {shapes} where they should be {wanted}")


@contextmanager
def _checked(part: Part, tokenizer: Tokenizer) -> Iterator[None]:
    """`OptionError` if a quantizer called inside breaks the contract of its results."""

    def check(quantizer: Any, given: tuple[torch.Tensor], out: Any) -> None:
        try:
            size, codebooks = int(quantizer.codebook_size), int(getattr(quantizer, "codebooks", 1))
            check_result(out, given[0], size, codebooks)
            check_counting(quantizer, out)
        except AssertionError as flaw:
            raise OptionError(f"the quantizer '{part.name}' cannot be trained: {flaw}") from flaw

    hooks = [each.register_forward_hook(check) for each in tokenizer.quantizers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _blamed(*parts: Part) -> Iterator[None]:
    """Report an error raised inside as a misfit of these components."""
    try:
        yield
    except GenkitError:
        raise
    except Exception as error:  # A plugin's component may raise anything.
        if "memory" in str(error):
            raise
        names = " and ".join(f"the {part.kind} '{part.name}'" for part in parts)
        does = "do" if len(parts) > 1 else "does"
        place = _place(error, parts)
        cause = f"{type(error).__name__}: {error} ({place})" if place else error
        raise OptionError(
            f"{names} {does} not work with the other components and options: {cause}"
        ) from error


def _place(error: Exception, parts: tuple[Part, ...]) -> str:
    """The last line of the components' own packages in an error's traceback, if there is one."""
    packages = {part.component.package for part in parts if part.component}
    places = [
        f"{frame.f_code.co_filename}, line {line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").partition(".")[0] in packages
    ]
    return places[-1] if places else ""
