"""Heat maps of a prediction: the probability that it loses where a part of the image is covered.

Source: Zeiler and Fergus, Visualizing and Understanding Convolutional Networks, ECCV 2014, section 4.2.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from tlkeras.data.headers import ImageError, check_header
from tlkeras.exporting.signatures import Preprocessing
from tlkeras.results import Result
from tlkeras.serving.handlers import RequestHandler
from tlkeras.serving.models import ModelSpec, Version
from tlkeras.serving.status import invalid_argument

GRID = 8
_COVER = 0.25


@dataclass(frozen=True)
class TaskExplanation(Result):
    """The prediction of one task, and the parts of the image that it depends on."""

    name: str
    label: str
    explained: str  # the class whose probability the heat map is of; the task of a regression
    probabilities: list[tuple[str, float]]  # labels with their probabilities, the highest first; empty for a regression
    # [GRID, GRID], 0 to 1: loss of probability (change of the value) where that part is covered, divided by the largest
    heat: list[list[float]]
    most_lost: float


@dataclass(frozen=True)
class ImageExplanation(Result):
    """The predictions for an image, explained."""

    version: int
    resize: str  # how the image was made square
    tasks: list[TaskExplanation]


async def explain(handler: RequestHandler, encoded: bytes) -> ImageExplanation:
    """The newest version's predictions, explained; StatusError if it is no image, or not `export` wrote the version."""
    version = handler.model.find(ModelSpec(handler.model.name))
    if not version.report or not version.labels or "uint8" not in version.loaded.signatures:
        raise invalid_argument("Only versions that `tlkeras export` wrote can be explained")
    try:
        check_header(encoded, handler.model.options.max_pixels)
    except ImageError as error:
        raise invalid_argument(f"The content cannot be used: {error.reason}") from None
    preprocessing = Preprocessing(**version.report["image"])
    loop = asyncio.get_running_loop()
    (image,) = await loop.run_in_executor(None, lambda: preprocessing.decode(tf.constant([encoded])).numpy())
    outputs = await _predict(handler, version, np.concatenate([image[None], occlude(image)]))
    several = len(version.labels) > 1
    tasks = [_explain_task(name, labels, outputs, several) for name, labels in version.labels.items()]
    return ImageExplanation(version.number, preprocessing.resize, tasks)


async def _predict(handler: RequestHandler, version: Version, images: np.ndarray) -> dict[str, np.ndarray]:
    step = handler.model.options.max_batch_size
    parts = [
        await handler.model.run(version, "uint8", {"images": images[start : start + step]})
        for start in range(0, len(images), step)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def occlude(image: np.ndarray) -> np.ndarray:
    """Copies of the image, each with one part covered by the mean colour: uint8 [GRID * GRID, size, size, 3]."""
    size = image.shape[0]
    half = max(1, round(size * _COVER / 2))
    centres = ((np.arange(GRID) + 0.5) * size / GRID).astype(int)
    covered = np.repeat(image[None], GRID * GRID, axis=0)
    mean = image.mean(axis=(0, 1)).round().astype(np.uint8)
    for index, (row, column) in enumerate((row, column) for row in centres for column in centres):
        covered[index, max(0, row - half) : row + half, max(0, column - half) : column + half] = mean
    return covered


def _explain_task(name: str, labels: list[str], outputs: dict[str, np.ndarray], several: bool) -> TaskExplanation:
    """The explanation of a task from outputs for the image, first, and its covered copies."""
    prefix = f"{name}_" if several else ""
    if f"{prefix}value" in outputs:
        values = outputs[f"{prefix}value"][:, 0]
        label, explained, pairs = f"{values[0]:.6g}", name, []
        lost = np.abs(values[0] - values[1:])
    else:
        probabilities = outputs[f"{prefix}probabilities"]
        best = int(probabilities[0].argmax())
        label, explained = outputs[f"{prefix}label"][0].decode("utf-8", "replace"), labels[best]
        order = np.argsort(-probabilities[0], kind="stable")
        pairs = [(labels[index], float(probabilities[0, index])) for index in order]
        lost = np.maximum(probabilities[0, best] - probabilities[1:, best], 0.0)
    most = float(lost.max())
    heat = (lost / lost.max() if most > 0 else lost).round(4).reshape(GRID, GRID).tolist()
    return TaskExplanation(name, label, explained, pairs, heat, most)
