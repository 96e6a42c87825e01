"""Priors to run directories and back: the prior's file, with its tokenizer's beside it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import genkit
from genkit.checkpoint import model as tokenizers
from genkit.checkpoint.hub import fetch, is_address
from genkit.checkpoint.metadata import SCHEMA, describe_part, model_file, prior_part, read_prior
from genkit.checkpoint.model import (
    built,
    distinct_state,
    fill,
    fingerprint,
    plain_tensors,
    write_tensors,
)
from genkit.errors import CheckpointError
from genkit.files import TOKENIZER, is_file
from genkit.prior import Prior

_log = logging.getLogger(__name__)


def save_prior(prior: Prior, path: Path) -> None:
    """Write a prior to `path` (`.safetensors`), and its tokenizer beside it unless it exists."""
    write_tensors(path, plain_tensors(distinct_state(prior.model)), describe_prior(prior))
    beside = path.with_name(TOKENIZER)
    if not beside.exists():
        tokenizers.save(prior.tokenizer, beside)


def describe_prior(prior: Prior) -> dict[str, Any]:
    """The component, the sequence and the training facts of a prior, as its file holds them."""
    return {
        "schema": SCHEMA,
        "versions": {"genkit": genkit.__version__, "torch": str(torch.__version__)},
        "components": {"prior": describe_part(prior.part)},
        "prior": {
            "tokenizer": fingerprint(prior.tokenizer),
            "levels": prior.layout.table(),
            "size": list(prior.size),
            "classes": prior.classes,
            "length": prior.conditioning.length,
            "channels": prior.conditioning.channels,
        },
        "buffers": sorted(name for name, _ in prior.model.named_buffers()),
        "training": prior.facts,
    }


def load_prior(path: str | os.PathLike[str]) -> Prior:
    """The prior of a run directory, or `hf://owner/name`, with its tokenizer, in eval mode.

    `CheckpointError` if a file is missing or damaged, or the tokenizer is another one than the
    prior was trained on; `MissingComponent` names a component whose plugin is not installed.
    """
    file = model_file(path)
    info, entries = read_prior(file)
    beside = Path(fetch(str(path), TOKENIZER)) if is_address(path) else file.with_name(TOKENIZER)
    if not is_file(beside):
        raise CheckpointError(f"'{file}' is a prior without its tokenizer: '{beside}' is missing")
    return _prior(file, info, entries, tokenizers.load(beside), beside)


def _prior(
    file: Path, info: dict[str, Any], entries: Mapping[str, Any], tokenizer: Any, beside: Path
) -> Prior:
    table = info["prior"]
    if fingerprint(tokenizer) != table["tokenizer"]:
        raise CheckpointError(
            f"'{beside}' is not the tokenizer that the prior '{file}' was trained on"
        )
    part = prior_part(info, file)
    prior = built(
        lambda: Prior(
            part,
            tokenizer,
            tuple(table["size"]),
            table["classes"],
            table["length"],
            table["channels"],
        ),
        info,
        file,
    )
    if prior.layout.table() != table["levels"]:
        raise CheckpointError(f"'{file}' is damaged: its levels differ from its tokenizer's")
    fill(prior.model, entries, info, file)
    prior.facts = dict(info["training"])
    _log.debug("loaded the prior '%s'", file)
    return prior.eval()
