"""Memory: the peak of this process, the free memory of the machine, and the check before features are computed."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tlkeras.errors import ResourceError

# Of one value while a head is fitted: as cached, as float32, and twice as the float64 of solvers.
_BYTES = 2 + 4 + 2 * 8
_MEMINFO = Path("/proc/meminfo")
_CONTROL_GROUP = Path("/sys/fs/cgroup")


def check_memory(rows: int, shape: Sequence[int]) -> None:
    """Raise a ResourceError if a head cannot be fitted on features [rows, *shape] in the free memory, if known."""
    needed, free = rows * math.prod(shape) * _BYTES, free_memory()
    if free is not None and needed > free:
        values = " x ".join(f"{length:,}" for length in (rows, *shape))
        rule = "There is not enough memory to fit a head on the features of all images."
        received = f"{values} values need about {needed / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free"
        way_out = "Use fewer taps or backbones, pooling average, or a part of the images by data.limit."
        raise ResourceError(rule, received, way_out)


def peak_memory() -> int | None:
    """Peak memory of this process so far, bytes; None where the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_memory() -> int | None:
    """Bytes that this process may still use, of the machine and of its container; None if unknown."""
    found: list[int] = []
    with suppress(OSError):
        lines = _MEMINFO.read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError):
        limit, used = ((_CONTROL_GROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        if limit.isdigit():
            found.append(int(limit) - int(used))
    return min(found, default=None)
