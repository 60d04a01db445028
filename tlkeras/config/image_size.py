"""Sizes of images: a number of pixels for squares, or (height, width)."""

import re
from collections.abc import Sequence
from typing import Any

ImageSize = int | tuple[int, int]
"""A side of square images, or height and width of others, pixels."""

_LARGEST = 4096


def read_size(value: Any) -> ImageSize | None:
    """The size that a recipe or a run gives as 224, [224, 320] or "224x320"; a ValueError for anything else."""
    if value is None:
        return None
    given = tuple(map(int, found.groups())) if (found := _match(value)) else value
    sides = (given,) if isinstance(given, int) else tuple(given) if isinstance(given, (list, tuple)) else ()
    whole = all(isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= _LARGEST for side in sides)
    if not whole or len(sides) not in (1, 2):
        way_out = "take one number for squares, such as 224, or height and width, such as [224, 320]"
        raise ValueError(f"{way_out}, of 1 to {_LARGEST} pixels each. Received: {value!r}.")
    return simplify_size((sides[0], sides[-1]))


def _match(value: Any) -> re.Match[str] | None:
    return re.fullmatch(r"\s*(\d+)\s*[xX]\s*(\d+)\s*", value) if isinstance(value, str) else None


def simplify_size(sides: Sequence[int]) -> ImageSize:
    """One number where height and width are equal."""
    height, width = sides
    return height if height == width else (height, width)


def height_and_width(size: ImageSize) -> tuple[int, int]:
    """Height and width, pixels."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def scale_size(size: ImageSize, factor: float) -> ImageSize:
    """The size with both sides multiplied and rounded."""
    height, width = (max(1, round(side * factor)) for side in height_and_width(size))
    return simplify_size((height, width))


def format_size(size: ImageSize) -> str:
    """224, or 224 x 320."""
    return str(size) if isinstance(size, int) else f"{size[0]} x {size[1]}"
