"""The machine and the versions that a result depends on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_LIBRARIES = ("tlkeras", "tensorflow", "keras", "openvino", "scikit-learn", "numpy", "pillow")


def describe_environment() -> dict[str, Any]:
    """Machine, Python and versions of libraries, as environment.json keeps them."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "versions": {library: _version(library) for library in _LIBRARIES},
    }


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
