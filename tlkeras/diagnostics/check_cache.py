"""What an earlier check computed of the same bytes: thumbnails in the cache of activations, and issues of labels."""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np

from tlkeras.data import decoding
from tlkeras.data.quality.near_duplicates import SIDE, read_thumbnails
from tlkeras.data.tables import Dataset
from tlkeras.diagnostics.data_quality import DataIssues, MislabelledImage, OutlierImage
from tlkeras.errors import ResourceError
from tlkeras.features.cache import ActivationCache, Namespace
from tlkeras.files import atomic_write

_VERSION = 1  # raise it whenever the same images give other thumbnails or issues


def load_thumbnails(dataset: Dataset, cache: ActivationCache | None) -> tuple[np.ndarray, np.ndarray]:
    """Thumbnails and positions, as `read_thumbnails` gives them; those that the cache lacks are made and kept."""
    if cache is not None:
        with suppress(ResourceError):  # no room, or no permission
            return _load_thumbnails(dataset, cache)
    return read_thumbnails(dataset.paths.tolist(), dataset.rendering)


def _load_thumbnails(dataset: Dataset, cache: ActivationCache) -> tuple[np.ndarray, np.ndarray]:
    digests = dataset.digests.astype(str)
    rendering = dataset.rendering
    look = {"background": rendering.background, "decoder": decoding.VERSION, "version": _VERSION}
    depth = {"depth": rendering.depth_range} if rendering.depth_range else {}
    with cache.open(Namespace({"backbone": "thumbnails of check", **look, **depth}, (SIDE, SIDE))) as store:
        first = np.sort(np.unique(digests, return_index=True)[1])
        missing = first[~store.known(digests[first].tolist())]
        made, readable = read_thumbnails(dataset.paths[missing].tolist(), dataset.rendering)
        with store.writer() as writer:
            writer.add(digests[missing[readable]].tolist(), made)
        ids = store.locate(digests.tolist())
        found = np.flatnonzero(ids >= 0)
        return store.gather(ids[found]), found


def load_issues(
    dataset: Dataset, features: np.ndarray, groups: np.ndarray, folder: Path | None, find: Callable[[], DataIssues]
) -> DataIssues:
    """The issues that `find` returns, or those that it returned for the same features, labels, splits and groups."""
    if folder is None:
        return find()
    path = folder / "checks" / f"{_hash_inputs(dataset, features, groups)}.json"
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_text("utf-8"))
        mislabelled = tuple(MislabelledImage(**one) for one in kept["mislabelled"])
        return DataIssues(mislabelled, tuple(OutlierImage(**one) for one in kept["outliers"]))
    issues = find()
    with suppress(OSError):
        os.makedirs(path.parent, exist_ok=True)
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(asdict(issues)), encoding="utf-8")
    return issues


def _hash_inputs(dataset: Dataset, features: np.ndarray, groups: np.ndarray) -> str:
    names = [[task.name, task.kind, *task.class_names] for task in dataset.tasks]
    columns = [dataset.paths, dataset.keys, dataset.split, groups]
    content = hashlib.sha256(json.dumps([_VERSION, names, *(column.tolist() for column in columns)]).encode())
    for array in (features, *(dataset.targets[task.name] for task in dataset.tasks)):
        content.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return content.hexdigest()
