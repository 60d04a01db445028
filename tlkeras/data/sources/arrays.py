"""Images in memory written as files, so that a run of them can be evaluated, exported and resumed tomorrow."""

import csv
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tlkeras.errors import DataError, ResourceError
from tlkeras.files import cache_folder

_PIXELS = "uint8 [height, width, 3], values 0 to 255; floats from 0 to 1: (255 * x).astype('uint8')"
_INDICES = "integers from 0 in the order of the classes, texts, or 0 and 1 in a column for each label"


class _Example(NamedTuple):
    pixels: np.ndarray  # uint8 [h, w], [h, w, 1], [h, w, 3] or [h, w, 4]
    target: Any  # an index, a text, or int [k]


def is_in_memory(source: Any) -> bool:
    """Whether a source is a pair (x, y), a data set of TensorFlow, or such by split."""
    if isinstance(source, Mapping):
        return bool(source) and all(map(is_in_memory, source.values()))
    return _is_pair(source) or hasattr(source, "element_spec")


def save_images(source: Any, class_names: Sequence[str] | None = None) -> tuple[str, bool]:
    """The path of a table of images written as PNG files into the cache, and whether one has several labels or none.

    The folder is named by its content.

    `source` is a pair of images, uint8 [n, h, w], [n, h, w, 1], [n, h, w, 3] or [n, h, w, 4], and labels: integers
    from 0, whose names are `class_names`, or texts, [n]; or 0 and 1 for each class or label, [n, k]. Or a finite
    `tf.data.Dataset` of such pairs, one by one or in batches, also of floats from 0 to 255, which are rounded. Or a
    mapping from "train", "validation", "test" to either. DataError if it is something else; ResourceError if the disk
    does not take it.
    """
    parts = source if isinstance(source, Mapping) else {"": source}
    known = (list(part.class_names) for part in parts.values() if hasattr(part, "class_names"))
    names = class_names or next(known, None)
    root = cache_folder() / "images"
    folder = root / f".{os.getpid()}-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True)
        digest, several = _write(folder, parts, names)
        target = root / f"arrays-{digest}"
        if not target.exists():
            os.rename(folder, target)
    except OSError as error:
        raise ResourceError("Cannot keep the images.", f"{root}: {error.strerror}", "Set TLKERAS_CACHE.") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return str(target / "labels.csv"), several


def _write(folder: Path, parts: Mapping[str, Any], names: Sequence[str] | None) -> tuple[str, bool]:
    """Write images and their table into an empty folder; a digest of all, and whether one has not exactly one label."""
    digests: list[bytes] = []
    several = False
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", *(("split",) if "" not in parts else ())))
        for split, part in parts.items():
            for example in _iter_examples(part):
                labels, pixels = _name_target(example.target, names), check_pixels(example.pixels)
                label, several = "|".join(labels), several or len(labels) != 1
                name = f"{len(digests):07d}.png"
                Image.fromarray(pixels).save(folder / name, compress_level=1)
                writer.writerow((name, label, *((split,) if split else ())))
                content = f"{split}\t{label}\t{pixels.shape}\t".encode() + pixels.tobytes()
                digests.append(hashlib.sha256(content).digest())
    if not digests:
        raise DataError("There are no images in these arrays.")
    whole = b"".join(sorted(digests))  # in any order: a data set may be shuffled anew
    return hashlib.sha256(whole).hexdigest()[:16], several


def _iter_examples(part: Any) -> Iterator[_Example]:
    if _is_pair(part):
        x, y = (np.asarray(values) for values in part)
        if not is_batch(x):
            raise DataError(f"Several images are {_PIXELS} each.", f"{x.dtype} {list(x.shape)}")
        if len(x) != len(y):
            raise DataError("Images and labels differ in number.", f"{len(x):,} and {len(y):,}")
        return (_Example(*pair) for pair in zip(x, y, strict=True))
    return _iter_dataset(part)


def _iter_dataset(dataset: Any) -> Iterator[_Example]:
    spec = dataset.element_spec
    if not (isinstance(spec, tuple) and len(spec) == 2 and hasattr(spec[0], "shape")):
        raise DataError("A tf.data.Dataset is one of pairs (image, label).", spec)
    if int(dataset.cardinality()) == -1:  # tf.data.INFINITE_CARDINALITY
        raise DataError("A tf.data.Dataset has an end.", "an endless one", "Leave `repeat` out.")
    for x, y in dataset.as_numpy_iterator():
        if is_batch(x):
            yield from (_Example(*pair) for pair in zip(x, y, strict=True))
        else:
            yield _Example(x, y)


def is_batch(x: Any) -> bool:
    """Whether an array holds several images: [n, h, w, c], or grey ones, [n, h, w]."""
    return np.ndim(x) == 4 or (np.ndim(x) == 3 and np.shape(x)[-1] not in (1, 3, 4))


def check_pixels(pixels: np.ndarray) -> np.ndarray:
    """Pixels as Pillow takes them; floats are rounded if they go to 255, and refused if they may go to 1."""
    if np.issubdtype(pixels.dtype, np.floating) and pixels.size:
        low, high = pixels.min(), pixels.max()
        if low >= 0 and (1 < high <= 255 or high == 0):  # a black image is black on either scale
            pixels = np.rint(pixels).astype(np.uint8)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (1,), (3,), (4,)):
        values = f", {pixels.min():g} to {pixels.max():g}" if pixels.size else ""
        raise DataError(f"An image is {_PIXELS}.", f"{pixels.dtype} {list(pixels.shape)}{values}")
    return pixels[..., 0] if pixels.shape[2:] == (1,) else pixels


def _name_target(target: Any, names: Sequence[str] | None) -> list[str]:
    """The names of an image's labels."""
    if isinstance(target, bytes | str):
        return [target.decode() if isinstance(target, bytes) else str(target)]
    value = np.asarray(target)
    if value.ndim == 1 and np.isin(value, (0, 1)).all() and len(value) > 1:
        given = names or list(map(str, range(len(value))))
        return [given[index] for index in np.flatnonzero(value).tolist()]
    value = value.reshape(()) if value.size == 1 else value
    if value.ndim or not float(value).is_integer():
        raise DataError(f"Labels are {_INDICES}.", str(target))
    if names is None:
        return [str(int(value))]
    if not 0 <= value < len(names):
        raise DataError("A label has no name in class_names.", f"{int(value)} of {len(names)} names")
    return [str(names[int(value)])]


def _is_pair(source: Any) -> bool:
    return isinstance(source, tuple) and len(source) == 2 and not any(isinstance(one, str) for one in source)
