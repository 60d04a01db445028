"""A SavedModel opened as TensorFlow Serving does, and the requests that it runs before it accepts any other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import classification_pb2, input_pb2, predict_pb2, prediction_log_pb2

from tlkeras.exporting.signatures import CLASSIFY, EXAMPLE_KEY, quiet_deprecations

FILE = "assets.extra/tf_serving_warmup_requests"
Log = prediction_log_pb2.PredictionLog


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


def write_warmup(
    path: Path, loaded: LoadedSavedModel, name: str, encoded: Sequence[bytes], images: np.ndarray, batch_size: int
) -> int:
    """Write requests for each signature: one image, and a batch for the two that predict; the number of requests.

    The images are real ones, as bytes and as uint8 [n, size, size, 3]; a batch repeats them where there are fewer.
    """
    file = path / FILE
    file.parent.mkdir(exist_ok=True)
    logs = list(_make_logs(loaded, name, encoded, images, batch_size))
    with tf.io.TFRecordWriter(str(file)) as writer:
        for log in logs:
            writer.write(log.SerializeToString())
    return len(logs)


def run_warmup_requests(path: Path, loaded: LoadedSavedModel) -> None:
    """Read a version's requests and run them all; tf.errors.OpError if the file is damaged, or a request fails."""
    for record in tf.data.TFRecordDataset(str(path / FILE)).as_numpy_iterator():
        log = Log.FromString(record)
        if log.HasField("classify_log"):
            request = log.classify_log.request
            examples = [example.SerializeToString() for example in request.input.example_list.examples]
            loaded.run(request.model_spec.signature_name, inputs=examples)
        else:
            request = log.predict_log.request
            inputs = {key: tf.make_ndarray(tensor) for key, tensor in request.inputs.items()}
            loaded.run(request.model_spec.signature_name, **inputs)


def _make_logs(
    loaded: LoadedSavedModel, name: str, encoded: Sequence[bytes], images: np.ndarray, batch_size: int
) -> Iterator[prediction_log_pb2.PredictionLog]:
    rows = np.arange(batch_size) % len(encoded)
    for signature, definition in loaded.signatures.items():
        if definition.method == CLASSIFY:
            yield _log_classify(name, signature, encoded[0])
            continue
        (key,) = definition.inputs
        values = images if key == "images" else np.array(list(encoded), dtype=object)
        batches = [rows[:1]] if signature == "features" else [rows[:1], rows]
        for batch in batches:
            request = predict_pb2.PredictRequest()
            request.model_spec.name, request.model_spec.signature_name = name, signature
            request.inputs[key].CopyFrom(tf.make_tensor_proto(values[batch]))
            yield Log(predict_log=prediction_log_pb2.PredictLog(request=request))


def _log_classify(name: str, signature: str, encoded: bytes) -> prediction_log_pb2.PredictionLog:
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded]))
    example = tf.train.Example(features=tf.train.Features(feature={EXAMPLE_KEY: feature}))
    request = classification_pb2.ClassificationRequest(
        input=input_pb2.Input(example_list=input_pb2.ExampleList(examples=[example]))
    )
    request.model_spec.name, request.model_spec.signature_name = name, signature
    return Log(classify_log=prediction_log_pb2.ClassifyLog(request=request))
