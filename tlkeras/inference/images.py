"""Images that a person names or holds: paths and folders, bytes, Pillow's images, arrays; one or several."""

import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from tlkeras.data.headers import InvalidImage
from tlkeras.data.sources.arrays import check_pixels, is_batch
from tlkeras.errors import DataError
from tlkeras.inference.results import expand_paths

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_KINDS = "a path, bytes, an image of Pillow, or an array uint8 [height, width, 3]"
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # of Pillow, which a PNG holds as they are


class NamedImage(NamedTuple):
    """An image to predict: how results name it, and its file or the bytes of one."""

    name: str
    path: str
    content: bytes | None = None


def is_single(images: Any) -> bool:
    """Whether these are one image, whose prediction is wanted rather than a list of one."""
    if isinstance(images, str | os.PathLike):
        return not os.path.isdir(images)
    return isinstance(images, bytes | Image.Image) or (_is_array(images) and not is_batch(images))


def list_images(images: Any) -> tuple[list[NamedImage], list[InvalidImage]]:
    """Images in order, those below folders too, and the other files there; those without a path have a number.

    DataError if there is none, some do not exist, or something is no image; all are named at once.
    """
    if isinstance(images, str | os.PathLike | bytes | Image.Image):
        images = [images]
    elif _is_array(images):
        images = list(np.asarray(images)) if is_batch(images) else [np.asarray(images)]
    if isinstance(images, Mapping) or not isinstance(images, Iterable):
        raise DataError(f"An image is {_KINDS}.", type(images).__name__)
    items = list(images)
    if all(isinstance(item, str | os.PathLike) for item in items):
        return _list_files([os.fspath(item) for item in items])
    width, named, problems = len(str(len(items))), [], []
    for number, item in enumerate(items, 1):
        name = f"image {number:0{width}d}"
        try:
            if isinstance(item, str | os.PathLike):
                named += _list_files([os.fspath(item)])[0]
            else:
                named.append(NamedImage(name, "", _encode(item)))
        except DataError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise DataError.from_problems("Some of these are no images:", problems)
    return named, []


def _list_files(paths: Sequence[str]) -> tuple[list[NamedImage], list[InvalidImage]]:
    for path in paths:
        if _ADDRESS.match(path):
            way_out = "Download it first, and give its path or its bytes."
            raise DataError("Images are not fetched from the network.", path, way_out)
    found, rejected = expand_paths(paths)
    return [NamedImage(path, path) for path in found], rejected


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") and not isinstance(value, Image.Image)


def _encode(image: Any) -> bytes:
    """The bytes of an image file: of bytes these, of pixels a PNG, which loses nothing."""
    if isinstance(image, bytes):
        return image
    if _is_array(image):
        image = Image.fromarray(check_pixels(np.asarray(image)))
    if not isinstance(image, Image.Image):
        raise DataError(f"An image is {_KINDS}.", type(image).__name__)
    stream, upright = io.BytesIO(), ImageOps.exif_transpose(image)  # as the file itself would be shown
    upright.save(stream, "PNG" if image.mode in _PNG_MODES else "TIFF", compress_level=1)
    return stream.getvalue()
