"""Starting a tokenizer's training from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from genkit.checkpoint.model import distinct_state, fingerprint, load
from genkit.errors import TrainingError
from genkit.tokenizer import Tokenizer

# The most tensors that a note names.
_NAMED = 3


def start_from(path: str, tokenizer: Tokenizer) -> tuple[list[str], dict[str, object]]:
    """Take the weights of a checkpoint into a tokenizer wherever names and shapes allow.

    Of a codebook of another size the first codes are taken. Returns notes on what was taken and
    what is new, and facts about the checkpoint. `TrainingError` if nothing fits.
    """
    source = load(path)
    if source.channels != tokenizer.channels:
        raise TrainingError(
            f"'{path}' takes images of {source.channels} channels, the data have "
            f"{tokenizer.channels}: choose other data"
        )
    given, own = distinct_state(source), distinct_state(tokenizer)
    whole, part = _copy(given, own)
    if not whole:
        raise TrainingError(
            f"no tensor of '{path}' fits the chosen components: leave out the options that change "
            "them"
        )
    new = [name for name in own if name not in whole and name not in part]
    left = [name for name in given if name not in whole and name not in part]
    notes = [f"{len(whole)} of {len(own)} tensors come from '{path}'."]
    if part:
        sizes = [f"{name} ({len(given[name])} of {len(own[name])})" for name in part]
        notes.append(f"Taken as far as they go: {_listed(sizes)}.")
    if new:
        notes.append(f"New: {_listed(new)}.")
    if left:
        notes.append(f"Left out: {_listed(left)}.")
    facts: dict[str, object] = {"fingerprint": fingerprint(source)}
    if imported := source.facts.get("imported"):
        facts["imported"] = imported
    return notes, facts


@torch.no_grad()
def _copy(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Copy tensors; returns the names of the ones taken whole, and of the ones taken in part."""
    whole, part = [], []
    for name, value in given.items():
        target = own.get(name)
        if target is None:
            continue
        if target.shape == value.shape:
            target.copy_(value)
            whole.append(name)
        elif name.startswith("quantizers.") and target.shape[1:] == value.shape[1:]:
            count = min(len(target), len(value))
            target[:count] = value[:count]
            part.append(name)
    return whole, part


def frozen_parts(tokenizer: Tokenizer, trainable: Sequence[str]) -> list[nn.Module]:
    """The parts of a tokenizer that are not to be trained, their weights frozen."""
    parts = {
        "encoder": tokenizer.encoder,
        "quantizer": tokenizer.quantizers,
        "fusion": tokenizer.fusions,
        "decoder": tokenizer.decoder,
    }
    if "all" in trainable:
        return []
    frozen = [part for name, part in parts.items() if name not in trainable]
    if len(frozen) == len(parts):
        raise TrainingError(f"--trainable names no part of the tokenizer: add {', '.join(parts)}")
    for part in frozen:
        part.requires_grad_(False)
    if not any(each.requires_grad for each in tokenizer.parameters()):
        raise TrainingError(
            f"--trainable {','.join(trainable)} leaves nothing that learns by gradient: add a part"
        )
    return frozen


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
