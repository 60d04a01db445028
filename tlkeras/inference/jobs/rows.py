"""Rows of a job's parts: name and SHA-256 of each image, then features or predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow

from tlkeras.data.tasks import Task

MakeTable = Callable[[list[str], list[str], list[np.ndarray]], tuple[pyarrow.Table, np.ndarray]]
"""From names, digests and outputs [n, ...] each to rows, and which of the images have one, bool [n]."""


def feature_table(dtype: str, width: int) -> MakeTable:
    """A function that makes rows of name, SHA-256 and features, a list of `width` numbers in float16 or float32."""

    def make(names: list[str], digests: list[str], outputs: list[np.ndarray]) -> tuple[pyarrow.Table, np.ndarray]:
        values = outputs[0].reshape(len(names), width) if outputs else np.empty((0, width), np.float32)
        with np.errstate(over="ignore"):
            values = values.astype(dtype)
        usable = np.asarray(np.isfinite(values).all(axis=1))
        features = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values[usable].ravel()), width)
        return pyarrow.table({**_identify(names, digests, usable), "features": features}), usable

    return make


def prediction_columns(tasks: Sequence[Task]) -> list[str]:
    """Names of the columns: `label` and `probability of NAME`, or `value`, of several tasks after their names."""
    several = len(tasks) > 1
    return [f"{task.name}: {name}" if several else name for task in tasks for name in task.prediction_columns()]


def prediction_table(tasks: Sequence[Task]) -> MakeTable:
    """A function that makes rows of name, SHA-256 and, for each task, the label and float32 probabilities."""
    header = prediction_columns(tasks)

    def make(names: list[str], digests: list[str], outputs: list[np.ndarray]) -> tuple[pyarrow.Table, np.ndarray]:
        predictions = outputs or [np.empty((0, len(task.class_names)), np.float32) for task in tasks]
        usable = np.asarray(np.all([np.isfinite(prediction).all(axis=1) for prediction in predictions], axis=0))
        columns: list[Any] = []
        for task, prediction in zip(tasks, predictions, strict=True):
            if task.has_classes:
                columns.append(pyarrow.array(task.format(task.decide(prediction[usable])), pyarrow.string()))
            columns += [pyarrow.array(column) for column in prediction[usable].T]
        return pyarrow.table({**_identify(names, digests, usable), **dict(zip(header, columns, strict=True))}), usable

    return make


def _identify(names: list[str], digests: list[str], usable: np.ndarray) -> dict[str, pyarrow.Array]:
    chosen = np.flatnonzero(usable).tolist()
    texts = {"image": names, "sha256": digests}
    return {key: pyarrow.array([text[row] for row in chosen], pyarrow.string()) for key, text in texts.items()}
