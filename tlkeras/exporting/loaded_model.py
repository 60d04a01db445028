"""A SavedModel opened with TensorFlow 1's loader and Session, the C++ path of TensorFlow Serving."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tlkeras.exporting.signatures import quiet_deprecations


@dataclass(frozen=True)
class Signature:
    """One function of a SavedModel."""

    method: str  # such as "tensorflow/serving/predict"
    inputs: Mapping[str, Any]  # TensorInfo by name
    outputs: Mapping[str, Any]  # TensorInfo by name
    call: Callable[..., list[np.ndarray]]  # from one array per input, in the order of `inputs`, to one per output


class LoadedSavedModel:
    """A version that several threads may run at once; OSError or tf.errors.OpError if it cannot be loaded.

    `threads` is the number within one operation; 0: one per core.
    """

    def __init__(self, path: Path, threads: int = 0):
        config = tf.compat.v1.ConfigProto(intra_op_parallelism_threads=threads)
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
        with self._session.graph.as_default(), quiet_deprecations():
            meta = tf.compat.v1.saved_model.loader.load(self._session, ["serve"], str(path))
        self.signatures = {
            name: self._make_signature(definition)
            for name, definition in sorted(meta.signature_def.items())
            if not name.startswith("__")
        }
        self.definitions = {name: meta.signature_def[name] for name in self.signatures}

    def _make_signature(self, definition: Any) -> Signature:
        inputs, outputs = dict(definition.inputs), dict(definition.outputs)
        fetches = [info.name for info in outputs.values()]
        call = self._session.make_callable(fetches, feed_list=[info.name for info in inputs.values()])
        return Signature(definition.method_name, inputs, outputs, call)

    def run(self, name: str, **inputs: Any) -> dict[str, np.ndarray]:
        """Outputs of a signature by name, from one array per input."""
        signature = self.signatures[name]
        arrays = (
            np.asarray(inputs[key], tf.as_dtype(info.dtype).as_numpy_dtype) for key, info in signature.inputs.items()
        )
        return dict(zip(signature.outputs, signature.call(*arrays), strict=True))

    def close(self) -> None:
        self._session.close()

    def __enter__(self) -> LoadedSavedModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
