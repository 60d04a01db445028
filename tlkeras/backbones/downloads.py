"""The ImageNet weights that `keras.applications` publishes: address and digest of each file, and its download."""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import os
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from tlkeras.errors import BackboneError

_STORAGE = "https://storage.googleapis.com/tensorflow/keras-applications/"
_TIMEOUT_SECONDS = 10
_PROBE_SECONDS = 3


class WeightsFile(NamedTuple):
    """One file of weights: its address, its name in the cache, and its MD5 or SHA-256 where Keras knows one."""

    url: str
    name: str
    digest: str | None


def _read_downloads() -> Iterator[tuple[tuple[str, bool], WeightsFile]]:
    """The files by backbone and whether they hold its classifier.

    Keras has most of the digests inside functions, hence this copy, which a test compares with the files it fetches.
    """
    with (files("tlkeras.backbones") / "downloads.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            key = row["backbone"], row["classifier"] == "with"
            yield key, WeightsFile(row["url"], row["name"], row["digest"] or None)


_FILES = dict(_read_downloads())


def find_download(backbone: str, top: bool) -> WeightsFile:
    """The file of ImageNet weights of a backbone of `keras.applications`, with or without its classifier."""
    return _FILES[backbone, top]


def cache_folder() -> Path:
    """The folder of Keras' downloaded weights."""
    return Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "models"


def is_available(download: WeightsFile) -> bool:
    """Whether a file is in Keras' cache or its server responds, which is checked once per process."""
    return (cache_folder() / download.name).exists() or _is_reachable()


@functools.cache
def _is_reachable() -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(_STORAGE, method="HEAD"), timeout=_PROBE_SECONDS).close()
    except urllib.error.HTTPError:
        return True  # it responds; a folder is not a file
    except OSError:
        return False
    return True


def fetch(download: WeightsFile) -> Path:
    """A file in Keras' cache, after downloading it if it is not there yet.

    Raises:
        BackboneError: The download fails, or the file is not the one that Keras published.
    """
    path = cache_folder() / download.name
    if not path.exists():
        return _download(download, path)
    if download.digest is not None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256" if len(download.digest) == 64 else "md5").hexdigest()
        if found != download.digest:
            rule, received = (
                "A file in Keras' cache is not the one that Keras published.",
                f"{path}, whose digest is not",
            )
            way_out = "Move it away to download it again, or pass its path if these are weights of your own."
            raise BackboneError(rule, f"{received} {download.digest}", way_out)
    return path


def _download(download: WeightsFile, path: Path) -> Path:
    import keras

    folder = path.parent
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            stack.callback(socket.setdefaulttimeout, socket.getdefaulttimeout())
            socket.setdefaulttimeout(_TIMEOUT_SECONDS)
            where = {"cache_subdir": folder.name, "cache_dir": str(folder.parent)}
            keras.utils.get_file(download.name, download.url, file_hash=download.digest, **where)
    except Exception as error:  # Keras raises bare exceptions
        raise BackboneError(
            "ImageNet weights are not in Keras' cache and could not be downloaded.",
            f"{download.url}: {error}",
            f"Put that file into {folder} as {download.name}, or pass a file of weights instead of 'imagenet'.",
        ) from error
    return path
