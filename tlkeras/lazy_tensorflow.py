"""Importing TensorFlow without the messages of its libraries."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator

_seconds = 0.0


def import_tensorflow_quietly() -> None:
    """Import TensorFlow (some seconds) with the process's standard error redirected to nowhere.

    Its libraries print a few lines before any setting can silence them. Errors are raised as usual. Later messages
    follow TF_CPP_MIN_LOG_LEVEL; unless the user has set it, it is set to 3, because TensorFlow logs the absence of a
    GPU as an error.
    """
    global _seconds
    if "tensorflow" in sys.modules:
        return
    start = time.perf_counter()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with silence_stderr():
        import keras  # noqa: F401
        import tensorflow  # noqa: F401
    _seconds += time.perf_counter() - start


@contextlib.contextmanager
def silence_stderr() -> Iterator[None]:
    """Discard what is written to the process's standard error, also by C++ code."""
    sys.stderr.flush()
    original, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)
        os.close(null)


def take_import_seconds() -> float:
    """Seconds that importing TensorFlow took since the last call."""
    global _seconds
    taken, _seconds = _seconds, 0.0
    return taken
