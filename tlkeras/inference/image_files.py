"""The image files that a user names, by themselves or by their folders, and the files that are left out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tlkeras.data.headers import Header, ImageError, ImageWarning, InvalidImage, check_header
from tlkeras.data.inspection import list_warnings
from tlkeras.data.issues import describe_issues
from tlkeras.data.sources.folders import iter_image_files
from tlkeras.errors import DataError, TlkerasError, list_some

_NOTED = ("orientation-ignored",)
"""Codes of what a prediction must say of an image that it could read."""


def expand_paths(images: Sequence[str | Path]) -> tuple[list[str], list[InvalidImage]]:
    """Image files, and those below folders, in order, and the other files there; DataError if some do not exist."""
    missing = [
        InvalidImage(str(image), "missing", "it does not exist") for image in images if not os.path.lexists(image)
    ]
    if missing:
        raise DataError.from_problems("Some images were not found:", list_some(describe_issues(missing)))
    return find_files(images)


def find_files(images: Sequence[str | Path]) -> tuple[list[str], list[InvalidImage]]:
    """The named files, existing or not, and images below folders, and the other files there; DataError if none."""
    rejected: list[InvalidImage] = []
    paths: list[str] = []
    for image in images:
        paths += iter_image_files(image, rejected) if os.path.isdir(image) else [str(image)]
    if not paths and not rejected:
        raise explain_no_images(images, rejected)
    return paths, rejected


def explain_no_images(places: Sequence[str | Path], rejected: Sequence[InvalidImage]) -> TlkerasError:
    """The error that there is no image in any place, with what is there instead."""
    places = ", ".join(list_some(list(map(str, places)))) or "no file and no folder"
    if not rejected:
        return DataError("No image was found.", places)
    return DataError.from_problems(
        f"No image was found. Received: {places}, with:", list_some(describe_issues(rejected))
    )


def list_notes(path: str, seen: Header | bytes) -> list[ImageWarning]:
    """What must be said of an image, known by its header or bytes, that is not taken as a viewer shows it."""
    try:
        header = check_header(seen) if isinstance(seen, bytes) else seen
    except ImageError:
        return []
    return [warning for warning in list_warnings(path, header) if warning.code in _NOTED]
