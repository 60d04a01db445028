"""The range of values of images of 16 bits, which becomes 0 to 255: 12 bits in a file of 16 would be almost black."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import tensorflow as tf

from tlkeras.data.headers import DepthRange, ImageError, read_image
from tlkeras.data.tables import Dataset
from tlkeras.data.transcoding import to_decodable

DEEP = "deep"
"""The code of a warning on an image whose 16 bits reach the decoder."""

_FULL = 65_535
_MOST_MEASURED = 500  # images


def measure_depth(paths: Sequence[str], digests: Sequence[str]) -> DepthRange | None:
    """The lowest and the highest value of images of 16 bits, of 500 if they are more; None if none can be read."""
    chosen = list(zip(paths, digests, strict=True))[:: -(-len(paths) // _MOST_MEASURED) or 1]
    with ThreadPoolExecutor() as pool:
        found = [extremes for extremes in pool.map(lambda one: _measure_file(*one), chosen) if extremes]
    return (min(low for low, _ in found), max(high for _, high in found)) if found else None


@lru_cache(maxsize=4 * _MOST_MEASURED)
def _measure_file(path: str, digest: str) -> DepthRange | None:
    try:
        pixels = tf.io.decode_png(to_decodable(read_image(path)), channels=3, dtype=tf.uint16).numpy()
    except (ImageError, tf.errors.OpError):  # whatever is wrong with it, others report
        return None
    return int(pixels.min()), int(pixels.max())


def choose_depth_range(measured: DepthRange | None) -> DepthRange | None:
    """The range of values that becomes 0 to 255; None, the whole one, if more than half of it is used, or one value.

    Both ends are moved outwards to a multiple of a power of two, by an eighth of the range at most, so that some more
    images hardly ever change it: 3 to 4,090 become 0 to 4,095.
    """
    if measured is None or measured[0] == measured[1] or measured[1] - measured[0] > _FULL // 2:
        return None
    low, high = measured
    step = 1 << max(((high - low) // 8).bit_length() - 1, 0)
    return low // step * step, (high // step + 1) * step - 1


def measure_dataset(dataset: Dataset, splits: Sequence[str] = ()) -> DepthRange | None:
    """The values of a validated dataset's images of 16 bits, of some splits or all; None if there are none."""
    deep = {warning.path for warning in dataset.warnings if warning.code == DEEP}
    if not deep:
        return None
    rows = [
        row
        for row, (path, split) in enumerate(zip(dataset.paths, dataset.split, strict=True))
        if path in deep and (not splits or split in splits)
    ]
    return measure_depth(dataset.paths[rows].tolist(), dataset.digests[rows].tolist())


def describe_depth(dataset: Dataset) -> str:
    """A sentence on the values of a dataset's images of 16 bits and on what becomes of them; "" if there are none."""
    measured, used = measure_dataset(dataset), dataset.rendering.depth_range
    if measured is None:
        return ""
    held = f"16-bit images hold values of {measured[0]:,} to {measured[1]:,} of {_FULL:,}"
    low, high = used or (0, _FULL)
    scaled = f"{low:,} to {high:,} are scaled to 8 bits" if used else "the upper 8 bits are kept"
    clipped = "; what lies beyond is clipped" if measured[0] < low or measured[1] > high else ""
    return f"{held}: {scaled}{clipped} (data.depth_range)."
