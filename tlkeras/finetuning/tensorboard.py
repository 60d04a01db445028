"""The history of a training as TensorBoard shows it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

_SCALAR, _TENSOR = 1, 2  # of the enum DataClass in TensorFlow's summary.proto


class TensorBoardLogger:
    """Writes rows of a history into an event file, numbers as curves and texts as texts.

    A log begins empty: a training that goes on writes all its rows again. So no epoch is missing or there twice,
    wherever the process before was killed. `tf.summary.scalar` would need TensorBoard, which only whoever looks at
    the log must have.

    Args:
        folder: Where the file is written; event files that are already there are removed.
    """

    def __init__(self, folder: Path):
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = tf.summary.create_file_writer(str(folder))

    def add(self, row: Mapping[str, Any]) -> None:
        """Write what an epoch's row has beside `epoch`, at that step, and flush it to the file."""
        with self._writer.as_default(step=row["epoch"]):
            for name, value in row.items():
                if name == "epoch":
                    continue
                tensor = tf.constant(value) if isinstance(value, str) else tf.constant(value, tf.float32)
                tf.summary.write(name, tensor, metadata=_describe(name, value))
        self._writer.flush()


def _describe(name: str, value: Any) -> Any:
    """Return the metadata by which TensorBoard knows what to draw: that of its plugins `scalars` and `text`."""
    plugin, kind = ("text", _TENSOR) if isinstance(value, str) else ("scalars", _SCALAR)
    metadata = tf.compat.v1.SummaryMetadata(display_name=name, data_class=kind)
    metadata.plugin_data.plugin_name = plugin
    return metadata
