"""Every file read once before work starts: what cannot be read is listed and left out."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import repeat

import numpy as np

from tlkeras.data.headers import EXTENSIONS, Header, ImageError, ImageWarning, InvalidImage, check_header, read_image
from tlkeras.data.issues import describe_issues
from tlkeras.data.tables import Dataset
from tlkeras.data.tasks import Task
from tlkeras.errors import DataError, list_some
from tlkeras.progress import progress_bar

TINY = 32  # pixels of the shorter side
HUGE = 24_000_000  # pixels

UPPER_BITS = "of its 16 bits the upper 8 are kept"

_CHUNK = 1024
_TURNED = ("JPEG", "AVIF")  # TIFF and HEIC are turned before anybody sees them
_MODES = {
    "1": "black and white only",
    "P": "colours are looked up in a palette",
    "CMYK": "CMYK is converted to RGB",
    **dict.fromkeys(
        ("LA", "La", "PA", "RGBA", "RGBa"), "alpha is composited over, or dropped, as data.background says"
    ),
}


def validate_images(dataset: Dataset, *, workers: int | None = None) -> Dataset:
    """The images whose headers can be read, with digests and warnings; a DataError if a class has none left."""
    digests: list[str] = []
    rejected: list[InvalidImage] = []
    warnings: list[ImageWarning] = []
    kept, limits = np.zeros(len(dataset), bool), repeat(dataset.rendering.max_pixels)
    progress = progress_bar("Checking images", len(dataset), "images")
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool, progress as advance:
        for start in range(0, len(dataset), _CHUNK):
            paths = dataset.paths[start : start + _CHUNK]
            for row, seen in enumerate(pool.map(read_header_and_digest, paths, limits), start):
                if isinstance(seen, InvalidImage):
                    rejected.append(seen)
                else:
                    kept[row] = True
                    digests.append(seen[0])
                    warnings += list_warnings(dataset.paths[row], seen[1])
            advance(len(paths))
    remaining = _reject(dataset, kept, rejected)
    return replace(remaining, digests=np.array(digests, dtype=object), warnings=tuple(warnings))


def read_header_and_digest(path: str, *max_pixels: int) -> tuple[str, Header] | InvalidImage:
    """SHA-256 of a file and its header, or why it cannot be used; pixels are not decoded."""
    try:
        data = read_image(path)
        return hashlib.sha256(data).hexdigest(), check_header(data, *max_pixels)
    except ImageError as error:
        return InvalidImage(path, error.code, error.reason)


def drop_undecodable(dataset: Dataset, readable: np.ndarray) -> Dataset:
    """The images at the positions `readable`, int64 [k]; a DataError if none of all or of a class is left."""
    if len(readable) == len(dataset):
        return dataset
    reason = "its pixels cannot be decoded: it is cut off or damaged"
    rejected = [InvalidImage(path, "damaged", reason) for path in np.delete(dataset.paths, readable)]
    remaining = _reject(dataset, readable, rejected)
    lost = {bad.path for bad in rejected}
    return replace(remaining, warnings=tuple(one for one in dataset.warnings if one.path not in lost))


def list_warnings(path: str, header: Header) -> list[ImageWarning]:
    """What is odd in an image that can be used."""
    width, height, pixels = header.width, header.height, header.width * header.height
    promised = EXTENSIONS.get(os.path.splitext(path)[1].lower())
    named = f"named like a {promised}" if promised else "not named like an image"
    loses_depth = header.format == "TIFF" and header.mode[0] != "I" and not header.is_deep_colour  # CMYK
    remarks = {
        "wrong-extension": promised != header.format and f"{named}, and read as the {header.format} that it is",
        "transcoded": header.transcoded and f"this {header.format} is read by way of PNG",
        "turned": header.format in _TURNED and f"turned as its EXIF orientation {header.orientation} says",
        "orientation-ignored": header.format not in _TURNED
        and f"the EXIF orientation {header.orientation} of a {header.format} is not applied",
        "mode": _MODES.get(header.mode),
        "deep": header.deep and not loses_depth and "its 16 bits become 8 as data.depth_range says",
        "upper-bits": header.deep and loses_depth and UPPER_BITS,
        "animated": header.frames > 1 and f"only the first of {header.frames:,} frames is taken",
        "tiny": min(width, height) < TINY and f"{width} x {height} pixels are few",
        "huge": pixels > HUGE and f"{width} x {height} pixels take long to decode",
    }
    if header.orientation == 1:
        del remarks["turned"], remarks["orientation-ignored"]
    return [ImageWarning(path, code, reason) for code, reason in remarks.items() if reason]


def _reject(before: Dataset, kept: np.ndarray, rejected: list[InvalidImage]) -> Dataset:
    after = replace(before.take(kept), rejected=(*before.rejected, *rejected))
    reasons = list_some(describe_issues(rejected))
    if not len(after):
        raise DataError.from_problems(f"No image of {before.source!r} can be read.", reasons)
    vanished = [
        f"{task.name!r}: every image of class {name!r} was rejected."
        for task in before.tasks
        for name, was, remains in zip(task.class_names, _present(task, before), _present(task, after), strict=True)
        if was and not remains
    ]
    if vanished:
        raise DataError.from_problems("A class has lost all its images:", vanished + reasons)
    return after


def _present(task: Task, dataset: Dataset) -> np.ndarray:
    return np.any(task.members(dataset.targets[task.name]), axis=0)
