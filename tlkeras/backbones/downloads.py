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
    except OSError as error:
        return isinstance(error, urllib.error.HTTPError)  # it responds; a folder is not a file
    return True


def fetch(download: WeightsFile) -> Path:
    """A file in Keras' cache, downloaded where needed; a BackboneError if it is not the one that Keras published."""
    path = cache_folder() / download.name
    if not path.exists():
        return _download(download, path)
    if download.digest is not None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256" if len(download.digest) == 64 else "md5").hexdigest()
        if found != download.digest:
            rule = "A file in Keras' cache is not the one that Keras published."
            way_out = "Move it away to download it again, or pass its path if these are weights of your own."
            raise BackboneError(rule, f"{path}, whose digest is not {download.digest}", way_out)
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
        rule = "ImageNet weights are not in Keras' cache and could not be downloaded."
        way_out = f"Put that file into {folder} as {download.name}, or pass a file of weights instead of 'imagenet'."
        raise BackboneError(rule, f"{download.url}: {error}", way_out) from error
    return path
