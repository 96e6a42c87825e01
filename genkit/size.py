"""Height and width of images, as options, files and commands state them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from genkit.errors import OptionError

# Images in their own sizes.
NATIVE = "native"
SIZE_TEXT = "a number of pixels, or HEIGHTxWIDTH"
# How a caller may state a size.
Resolution = int | tuple[int, int] | str


@dataclass(frozen=True)
class Size:
    """A height and a width in pixels: `64`, or `128x256` if they differ."""

    height: int
    width: int

    @staticmethod
    def of(value: Any) -> Size | None:
        """The size that a number, two numbers or a text states; None for anything else."""
        if isinstance(value, Size):
            return value
        if isinstance(value, str):
            if not (found := re.fullmatch(r"(\d{1,9})(?:[x×](\d{1,9}))?", value.strip())):
                return None
            value = [int(side) for side in found.groups() if side]
        sides = [value] if isinstance(value, int) else value
        if not isinstance(sides, list | tuple) or len(sides) not in (1, 2):
            return None
        if not all(type(side) is int for side in sides):
            return None
        return Size(sides[0], sides[-1])

    @property
    def plain(self) -> int | list[int]:
        """The size as files hold it: a number, or a list of two."""
        return self.height if self.height == self.width else [self.height, self.width]

    @property
    def pair(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    def __str__(self) -> str:
        return f"{self.height}" if self.height == self.width else f"{self.height}x{self.width}"


def parsed_size(value: Any) -> Size:
    """`Size.of`; `OptionError` for no size."""
    if (size := Size.of(value)) is None:
        raise OptionError(
            f"--resolution is {value!r}; it must be {SIZE_TEXT}, such as 64 or 128x256"
        )
    return size
