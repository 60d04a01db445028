"""Importing TensorFlow without the messages of its libraries, and on no other backend of Keras; names on first use."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

from tlkeras.errors import TlkerasError
from tlkeras.progress import is_visible

_seconds = 0.0


def import_tensorflow_quietly() -> None:
    """Import TensorFlow (some seconds) with the process's standard error redirected to nowhere.

    Its libraries print a few lines before any setting can silence them. Errors are raised as usual. Later messages
    follow TF_CPP_MIN_LOG_LEVEL; unless the user has set it, it is set to 3, because TensorFlow logs the absence of a
    GPU as an error. TlkerasError if Keras is to use another backend.
    """
    global _seconds
    _refuse_backend("tlkeras", os.environ.get("KERAS_BACKEND") or "tensorflow")
    if "tensorflow" in sys.modules:
        return
    start = time.perf_counter()
    if is_visible():
        print("Loading TensorFlow (about 6 s) ...", file=sys.stderr, flush=True)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with silence_stderr():
        import keras  # noqa: F401
        import tensorflow  # noqa: F401
    _seconds += time.perf_counter() - start
    check_backend("tlkeras")


def check_backend(what: str) -> None:
    """Raise a TlkerasError that names `what` unless Keras, which is imported, uses TensorFlow."""
    import keras

    _refuse_backend(what, keras.backend.backend())


def _refuse_backend(what: str, backend: str) -> None:
    if backend != "tensorflow":
        way_out = "Set KERAS_BACKEND=tensorflow before Keras is imported."
        raise TlkerasError(f"{what} needs the TensorFlow backend of Keras.", backend, way_out)


def export_lazily(package: str, modules: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose public names come from its modules, imported on first use."""

    def find(name: str) -> Any:
        if name in modules:
            return getattr(import_module(f"{package}.{modules[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find, lambda: sorted([*vars(sys.modules[package]), *modules])


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
