"""The health of codebooks during training: codes in use, idle codes, collapsed codebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genkit.distributed import all_min, all_sum
from genkit.evaluation.usage import check_countable, code_use, count_into, places
from genkit.training.modules import load_module_state, module_state

# A codebook has collapsed if less than a quarter of it is used ...
_COLLAPSED = 0.25
# ... while this many latents for each of its codes pass.
_LATENTS_PER_CODE = 20


class CodeHealth(nn.Module):
    """Exact use of every level's codes over an epoch, and the time since each code was last used.

    All processes count together: call `gather` before reading a count. Between two calls no process
    waits for another or for its device.
    """

    def __init__(self, codebooks: Sequence[tuple[int, int]], images: int, epoch: int) -> None:
        """`images` in a forward pass of all processes, and `epoch` images.

        Every level's `codebooks` are (how many, codes in each).
        """
        super().__init__()
        check_countable(codebooks)
        self.images, self.epoch = images, max(1, -(-epoch // images))
        self.passes = 0
        self.levels = range(len(codebooks))
        self.latents = [0] * len(codebooks)
        for level, shape in enumerate(codebooks):
            # This process's counts since the last gathering; all processes' counts until then since
            # the last row, in this epoch, and in the epoch before; and forward passes since a code
            # was last used.
            for name in ("fresh", "row", "counts", "before", "idle"):
                self.register_buffer(f"{name}{level}", torch.zeros(shape, dtype=torch.int64))

    def add(self, indices: Sequence[Tensor]) -> None:
        """Count the indices of a forward pass, one tensor per level."""
        for level, each in enumerate(indices):
            count_into(self._of("fresh", level), each)
            idle = self._of("idle", level).add_(1)
            idle.view(-1).index_fill_(0, places(each, *idle.shape), 0)
            self.latents[level] = each[0].numel() // len(idle)
        self._pass()

    def skip(self) -> None:
        """Let a forward pass go by without counting its indices."""
        for level in self.levels:
            self._of("idle", level).add_(1)
        self._pass()

    def _pass(self) -> None:
        self.passes += 1
        if self.passes % self.epoch == 0:
            self.gather()
            for level in self.levels:
                self._of("before", level).copy_(self._of("counts", level))
                self._of("counts", level).zero_()

    def gather(self) -> None:
        """Bring all processes to the same state."""
        for level in self.levels:
            fresh = all_sum(self._of("fresh", level))
            self._of("counts", level).add_(fresh)
            self._of("row", level).add_(fresh)
            self._of("fresh", level).zero_()
            all_min(self._of("idle", level))

    def row(self) -> list[dict[str, Any]]:
        """The use of codes since the last call, per level, with `unused` of every level."""
        self.gather()
        levels = []
        for level, unused in zip(self.levels, self.unused(), strict=True):
            counts = self._of("row", level)
            levels.append({**code_use(counts.cpu()), "unused": unused})
            counts.zero_()
        return levels

    def unused(self) -> list[int]:
        """Per level, the number of images since the longest-idle code was last used."""
        return [int(self._of("idle", level).max()) * self.images for level in self.levels]

    def last_epoch(self) -> tuple[int, list[Tensor]]:
        """The number of images and every level's counts `[Q, K]` of the last whole epoch.

        Before the first epoch ends, those of its part so far.
        """
        name = "before" if self.passes >= self.epoch else "counts"
        passes = min(self.passes, self.epoch)
        return passes * self.images, [self._of(name, level).cpu() for level in self.levels]

    def summary(self) -> dict[str, Any]:
        """`images` and, per level, the use of codes over the last epoch, and the dead codes' age.

        `dead` codes were not used in it; `dead_age` is the mean number of images since they were.
        """
        images, counts = self.last_epoch()
        levels = []
        for level, each in enumerate(counts):
            dead = self._of("idle", level).cpu()[each == 0]
            age = float(dead.double().mean()) * self.images if len(dead) else 0.0
            levels.append({**code_use(each), "dead": len(dead), "dead_age": age})
        return {"images": images, "levels": levels}

    def collapsed(self, advice: str) -> list[dict[str, Any]]:
        """Levels that use less than a quarter of their codes, each with a `message`.

        Their `kind` is "collapsed". The message ends with the `advice`. Of several codebooks the
        least used one counts.
        """
        found = []
        for level in self.levels:
            idle = self._of("idle", level)
            codebooks, size = idle.shape
            window = -(-_LATENTS_PER_CODE * size // max(1, self.latents[level] * self.images))
            used = (idle < window).sum(1).tolist()
            active = min(used)
            if self.passes < window or active >= _COLLAPSED * size:
                continue
            where = f"level {level}" + (f", codebook {used.index(active)}," * (codebooks > 1))
            message = (
                f"{where} has collapsed: {active} of {size} codes were used in the last "
                f"{window * self.images} images. {advice}"
            )
            alarm = {"kind": "collapsed", "level": level, "active": active, "message": message}
            found.append(alarm)
        return found

    def state(self) -> dict[str, Any]:
        """The state for a resumed run, equal on all processes."""
        self.gather()
        return {"passes": self.passes, "counts": module_state(self)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""
        self.passes = state["passes"]
        load_module_state(self, state["counts"])

    def _of(self, name: str, level: int) -> Tensor:
        return self.get_buffer(f"{name}{level}")
