"""The history of a training as TensorBoard shows it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

_SCALAR, _TENSOR = 1, 2  # of the enum DataClass in TensorFlow's summary.proto


class TensorBoardLogger(keras.callbacks.Callback):
    """Writes the logs of each epoch into an event file, at steps from 1: numbers as curves, the stage's name as text.

    A log begins empty, and a resumed training writes its earlier epochs again: so no epoch is missing or there twice,
    wherever the process before was killed. `tf.summary.scalar` and Keras' own callback would need TensorBoard, which
    only readers of the log must have.

    Args:
        folder: Where the file is written; event files that are already there are removed when training begins.
    """

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Begin the log, with the epochs before a resumed training."""
        for old in self.folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = tf.summary.create_file_writer(str(self.folder))
        for epoch, earlier in enumerate(self.params.get("history", ())):
            self.on_epoch_end(epoch, earlier)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Write the logs, and flush them to the file."""
        stages = self.params.get("stages")
        with self._writer.as_default(step=epoch + 1):
            for name, value in (logs or {}).items():
                is_text = name == "stage" and stages
                tensor = tf.constant(stages[int(value) - 1] if is_text else value, tf.string if is_text else tf.float32)
                tf.summary.write(name, tensor, metadata=_make_metadata(name, "text" if is_text else "scalars"))
        self._writer.flush()


def _make_metadata(name: str, plugin: str) -> Any:
    """What TensorBoard needs to choose its plugin, `scalars` or `text`."""
    kind = _TENSOR if plugin == "text" else _SCALAR
    metadata = tf.compat.v1.SummaryMetadata(display_name=name, data_class=kind)
    metadata.plugin_data.plugin_name = plugin
    return metadata
