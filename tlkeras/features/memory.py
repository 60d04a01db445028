"""Whether features fit into memory: told before they are computed, not by the kernel when they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from tlkeras.errors import ResourceError

# Of one value while a head is fitted: as it is kept, as float32, and twice as the float64 that solvers work on.
_BYTES = 2 + 4 + 2 * 8
_MEMINFO = Path("/proc/meminfo")
_CONTROL_GROUP = Path("/sys/fs/cgroup")


def check_memory(rows: int, shape: Sequence[int]) -> None:
    """Refuse features that a head cannot be fitted on in the memory that is free.

    Args:
        rows: How many images.
        shape: Of the features of one.

    Raises:
        ResourceError: They would need more; where the system does not say how much is free, nothing is refused.
    """
    needed, free = rows * math.prod(shape) * _BYTES, measure_free_memory()
    if free is not None and needed > free:
        values = " x ".join(f"{side:,}" for side in (rows, *shape))
        raise ResourceError(
            "The features of all images must fit into memory while a head is fitted.",
            f"{values} values need about {needed / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free",
            "Take fewer taps or backbones, pooling average, or a share of the images by data.limit.",
        )


def measure_free_memory() -> int | None:
    """Return the bytes that this process may still use, of the machine and of its container; None if nothing says."""
    found = [free for free in (_read_machine(), _read_container()) if free is not None]
    return min(found, default=None)


def _read_machine() -> int | None:
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _read_container() -> int | None:
    try:
        limit, used = ((_CONTROL_GROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return None
    return int(limit) - int(used) if limit.isdigit() else None
