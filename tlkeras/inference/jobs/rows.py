"""What a job's rows are made of: names, digests, and what a network says of each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow

from tlkeras.data.tasks import Task
from tlkeras.inference.jobs.worker import MakeTable


def feature_table(dtype: str, width: int) -> MakeTable:
    """Return what makes rows of name, SHA-256 and features, a list of one length in float16 or float32."""

    def make(names: list[str], digests: list[str], outputs: list[np.ndarray]) -> tuple[pyarrow.Table, np.ndarray]:
        values = outputs[0].reshape(len(names), width) if outputs else np.empty((0, width), np.float32)
        with np.errstate(over="ignore"):
            values = values.astype(dtype)
        usable = np.asarray(np.isfinite(values).all(axis=1))
        flat = pyarrow.array(values[usable].ravel())
        columns: dict[str, Any] = {
            "image": pyarrow.array([name for name, keep in zip(names, usable, strict=True) if keep], pyarrow.string()),
            "sha256": pyarrow.array(
                [name for name, keep in zip(digests, usable, strict=True) if keep], pyarrow.string()
            ),
            "features": pyarrow.FixedSizeListArray.from_arrays(flat, width),
        }
        return pyarrow.table(columns), usable

    return make


def prediction_table(tasks: Sequence[Task], names_of_columns: Sequence[str]) -> MakeTable:
    """Return what makes rows of name, SHA-256 and, for each task, the label and float32 probabilities.

    Args:
        names_of_columns: For each task one of the label, then one of each class's probability; of a number one.
    """

    def make(names: list[str], digests: list[str], outputs: list[np.ndarray]) -> tuple[pyarrow.Table, np.ndarray]:
        predictions = outputs or [np.empty((0, len(task.class_names)), np.float32) for task in tasks]
        usable = np.asarray(np.all([np.isfinite(prediction).all(axis=1) for prediction in predictions], axis=0))
        columns: list[Any] = []
        for task, prediction in zip(tasks, predictions, strict=True):
            if task.has_classes:
                columns.append(pyarrow.array(task.format(task.decide(prediction[usable])), pyarrow.string()))
            columns += [pyarrow.array(column) for column in prediction[usable].T]
        table = dict(zip(names_of_columns, columns, strict=True))
        return pyarrow.table({**_identify(names, digests, usable), **table}), usable

    return make


def _identify(names: list[str], digests: list[str], usable: np.ndarray) -> dict[str, Any]:
    chosen = np.flatnonzero(usable).tolist()
    texts = {"image": names, "sha256": digests}
    return {key: pyarrow.array([text[row] for row in chosen], pyarrow.string()) for key, text in texts.items()}
