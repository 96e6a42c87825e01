"""A summary of tokens: tokenizer, source, grids, labels and use of the codes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from genkit.errors import CheckpointError
from genkit.evaluation.usage import check_countable, code_use, count_into
from genkit.tokens.dataset import Tokens
from genkit.tokens.rows import Ragged

_CHUNK = 4096
# Entries of a token file's table that a summary repeats.
_FACTS = ("model", "components", "source", "resolution", "views", "precision", "sampled")


def summary(
    tokens: Tokens, progress: Callable[[int, int], object] = lambda done, total: None
) -> dict[str, Any]:
    """The contents of tokens, read a few thousand images at a time.

    `progress` is called with the images read and their total.

    `levels` has, per level, the grids with their numbers of images, and the use of the codes
    where the size of the codebook is known.
    """
    listed = tokens.table.get("levels", [{}] * tokens.shards[0].levels)
    known = [(entry.get("codebooks", 1), entry.get("codebook_size", 0)) for entry in listed]
    if len(known) != tokens.shards[0].levels:
        raise CheckpointError("the tokens are damaged: their table lists other levels")
    check_countable(known)
    counts = [torch.zeros(shape, dtype=torch.int64) for shape in known]
    grids: list[Counter[tuple[int, ...]]] = [Counter() for _ in known]
    for start in range(0, len(tokens), _CHUNK):
        rows = tokens.rows(start, start + _CHUNK)
        for level, counted, found in zip(rows.levels, counts, grids, strict=True):
            if isinstance(level, Ragged):
                found.update(map(tuple, level.grids.tolist()))
                values = level.indices
            else:
                found[tuple(level.shape[1:3])] += len(level)
                values = level
            if counted.numel() and len(values):
                if values.min() < 0 or values.max() >= counted.shape[1]:
                    raise CheckpointError(
                        f"the tokens are damaged: indices are not below {counted.shape[1]}"
                    )
                several = values.ndim > (1 if isinstance(level, Ragged) else 3)
                if len(counted) != (values.shape[-1] if several else 1):
                    raise CheckpointError("the tokens are damaged: another number of codebooks")
                count_into(counted, values.long())
        progress(min(start + _CHUNK, len(tokens)), len(tokens))
    labels = tokens.labels
    named = 0 if labels is None else int((labels >= 0).sum())
    return {
        "images": len(tokens),
        "shards": len(tokens.shards),
        **{key: tokens.table[key] for key in _FACTS if key in tokens.table},
        "levels": [
            {
                **entry,
                "grids": [[*grid, images] for grid, images in found.most_common()],
                **(code_use(counted) if counted.numel() else {}),
            }
            for entry, counted, found in zip(listed, counts, grids, strict=True)
        ],
        "classes": tokens.classes,
        "labelled": named,
        "captions": sum(map(bool, tokens.captions)),
        "unreadable": tokens.table.get("unreadable", {}),
        "names": [tokens.names[0], tokens.names[-1]] if len(tokens) else [],
    }
