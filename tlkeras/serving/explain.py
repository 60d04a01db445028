"""Which part of an image speaks for the answer: what covering it takes away from the answer's probability.

Source: Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014, section 4.2.
"""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import tensorflow as tf

from tlkeras.data.headers import ImageError, check_header
from tlkeras.exporting.signatures import Preprocessing
from tlkeras.serving.handlers import RequestHandler
from tlkeras.serving.models import ModelSpec, Version
from tlkeras.serving.status import invalid_argument

GRID = 8
_COVER = 0.25


async def explain(desk: RequestHandler, encoded: bytes) -> dict[str, Any]:
    """Return what a model says of an image, and where it sees it.

    Returns:
        `version`; `resize`, how the image was made a square; `tasks`: for each its `name`, `label`, `probabilities`
        (label and value, the highest first) and `heat`, [GRID, GRID] from 0 to 1: how much the answer loses where that
        part is covered.

    Raises:
        StatusError: It is no image, or the version was not made by `tlkeras export`.
    """
    version = desk.model.find(ModelSpec(desk.model.name))
    if not version.facts or not version.labels or "uint8" not in version.served.signatures:
        raise invalid_argument("Only versions that `tlkeras export` wrote can be explained")
    try:
        check_header(encoded, desk.model.limits.pixels)
    except ImageError as error:
        raise invalid_argument(f"The content cannot be used: {error.reason}") from None
    facts = version.facts["image"]
    entry = Preprocessing(facts["size"], facts["resize"])
    loop = asyncio.get_running_loop()
    (image,) = await loop.run_in_executor(None, lambda: entry.decode(tf.constant([encoded])).numpy())
    outputs = await _ask_all(desk, version, np.concatenate([image[None], occlude(image)]))
    return {
        "version": version.number,
        "resize": facts["resize"],
        "tasks": [_describe(name, labels, outputs, len(version.labels)) for name, labels in version.labels.items()],
    }


async def _ask_all(desk: RequestHandler, version: Version, images: np.ndarray) -> dict[str, np.ndarray]:
    step = desk.model.batching.max_batch_size
    parts = [
        await desk.model.run(version, "uint8", {"images": images[start : start + step]})
        for start in range(0, len(images), step)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def occlude(image: np.ndarray) -> np.ndarray:
    """Return the image with each part of it covered by its mean colour: uint8 [GRID * GRID, size, size, 3]."""
    size = image.shape[0]
    half = max(1, round(size * _COVER / 2))
    centres = ((np.arange(GRID) + 0.5) * size / GRID).astype(int)
    covered = np.repeat(image[None], GRID * GRID, axis=0)
    mean = image.mean(axis=(0, 1)).round().astype(np.uint8)
    for place, (row, column) in enumerate((row, column) for row in centres for column in centres):
        covered[place, max(0, row - half) : row + half, max(0, column - half) : column + half] = mean
    return covered


def _describe(name: str, labels: list[str], outputs: dict[str, np.ndarray], tasks: int) -> dict[str, Any]:
    prefix = "" if tasks == 1 else f"{name}_"
    if f"{prefix}value" in outputs:
        values = outputs[f"{prefix}value"][:, 0]
        changed = np.abs(values[0] - values[1:]).reshape(GRID, GRID)
        return {
            "name": name,
            "label": f"{values[0]:.6g}",
            "explained": name,
            "probabilities": [],
            "heat": (changed / changed.max() if changed.max() > 0 else changed).round(4).tolist(),
            "most_lost": float(changed.max()),
        }
    probabilities, label = outputs[f"{prefix}probabilities"], outputs[f"{prefix}label"][0]
    best = int(probabilities[0].argmax())
    lost = np.maximum(probabilities[0, best] - probabilities[1:, best], 0.0).reshape(GRID, GRID)
    order = np.argsort(-probabilities[0], kind="stable")
    return {
        "name": name,
        "label": label.decode("utf-8", "replace"),
        "explained": labels[best],
        "probabilities": [[labels[index], float(probabilities[0, index])] for index in order],
        "heat": (lost / lost.max() if lost.max() > 0 else lost).round(4).tolist(),
        "most_lost": float(lost.max()),
    }
