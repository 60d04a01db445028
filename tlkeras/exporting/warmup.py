"""Requests that a server runs before it accepts any other, in the file where TensorFlow Serving looks for them.

A record that fails keeps the version from being loaded, so every one is run before the version is published.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import classification_pb2, input_pb2, predict_pb2, prediction_log_pb2

from tlkeras.exporting.loaded_model import LoadedSavedModel
from tlkeras.exporting.signatures import CLASSIFY, EXAMPLE_KEY

FILE = "assets.extra/tf_serving_warmup_requests"
Log = prediction_log_pb2.PredictionLog


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
