"""The signatures of an exported SavedModel, written with Keras and loaded again as TensorFlow Serving loads them."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import classification_pb2, input_pb2, model_pb2, predict_pb2
from tensorflow_serving.apis.prediction_log_pb2 import ClassifyLog, PredictionLog, PredictLog

from tlkeras.config.image_size import ImageSize, height_and_width
from tlkeras.config.yaml_loader import to_immutable
from tlkeras.data.decoding import decode
from tlkeras.data.headers import MAX_PIXELS, DepthRange, Rendering, read_image
from tlkeras.data.tasks import THRESHOLD, MultiLabelTask, Task
from tlkeras.data.transcoding import to_decodable
from tlkeras.exporting.inference_graph import InferenceModel

EXAMPLE_KEY = "image/encoded"
CLASSIFY = "tensorflow/serving/classify"
WARMUP_FILE = "assets.extra/tf_serving_warmup_requests"
_DECODED_AT_ONCE = 32

NamedTensors = dict[str, tf.Tensor]


@dataclass(frozen=True)
class Preprocessing:
    """Decoding and resizing of image files, which becomes part of the exported graph."""

    size: ImageSize  # of images in pixels
    resize: str  # how an image is brought to that size: stretch, crop or pad
    background: str = "drop"  # what alpha is composited over: white or black; drop: alpha is ignored
    max_pixels: int = MAX_PIXELS  # of an image in memory
    depth_range: DepthRange | None = None  # values of channels of 16 bits that become 0 to 255; None: the upper 8 bits

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Preprocessing":
        """From what a run or an export keeps as JSON."""
        return cls(**to_immutable(dict(config)))

    def read(self, path: str) -> bytes:
        """The bytes of an image file, as PNG where the exported graph does not read its format; or an ImageError."""
        return to_decodable(read_image(path), self.max_pixels)

    def decode(self, image_bytes: tf.Tensor) -> tf.Tensor:
        """Decode a batch, its images in parallel: string [n] -> uint8 [n, h, w, 3]."""
        return _make_decoder(self.size, Rendering.of(vars(self)))(image_bytes)


@cache
def _make_decoder(size: ImageSize, rendering: Rendering) -> Callable[[tf.Tensor], tf.Tensor]:
    """The graph that decodes a batch, traced once per process."""
    spec = tf.TensorSpec((*height_and_width(size), 3), tf.uint8)
    options = {"fn_output_signature": spec, "parallel_iterations": _DECODED_AT_ONCE}

    def run(image_bytes: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(lambda encoded: decode(encoded, size, rendering), image_bytes, **options)

    return tf.function(run, input_signature=[tf.TensorSpec((None,), tf.string)], autograph=False)


def name_output(tasks: Sequence[Task], task: Task, name: str) -> str:
    """Name of an output: `label`, or `shape_label` where `shape` is one of several tasks."""
    return name if len(tasks) == 1 else f"{task.name}_{name}"


def main_output(tasks: Sequence[Task], task: Task) -> str:
    """Name of the network's own output for a task: its probabilities, or the value of a regression."""
    return name_output(tasks, task, task.output_name)


def write_signatures(model: InferenceModel, tasks: Sequence[Task], preprocessing: Preprocessing, path: Path) -> None:
    """Write a SavedModel with the signatures serving_default, uint8, features, and classify for tasks with classes."""
    first = 1 if model.has_features else 0

    def predict(images: tf.Tensor) -> NamedTensors:
        outputs = zip(tasks, model.call(images)[first:], strict=True)
        described = [(task, _describe_output(task, output)) for task, output in outputs]
        return {name_output(tasks, task, name): tensor for task, found in described for name, tensor in found.items()}

    def classify(index: int, inputs: tf.Tensor) -> NamedTensors:
        """All classes with their scores, the most probable first, for serialized tf.Examples, string [n]."""
        features = tf.io.parse_example(inputs, {EXAMPLE_KEY: tf.io.FixedLenFeature((), tf.string)})
        probabilities = model.call(preprocessing.decode(features[EXAMPLE_KEY]))[first + index]
        scores, order = tf.math.top_k(probabilities, len(tasks[index].class_names))
        return {"classes": tf.gather(tf.constant(list(tasks[index].class_names)), order), "scores": scores}

    encoded = tf.TensorSpec((None,), tf.string, name="image_bytes")
    archive = keras.export.ExportArchive()
    if model.model is not None:
        archive.track(model.model)
    archive.add_endpoint("serving_default", lambda image_bytes: predict(preprocessing.decode(image_bytes)), [encoded])
    images = tf.TensorSpec((None, *height_and_width(preprocessing.size), 3), tf.uint8, name="images")
    archive.add_endpoint("uint8", predict, [images])
    if model.has_features:
        archive.add_endpoint(
            "features", lambda image_bytes: {"features": model.call(preprocessing.decode(image_bytes))[0]}, [encoded]
        )
    names = {name_output(tasks, task, "classify"): index for index, task in enumerate(tasks) if task.has_classes}
    for name, index in names.items():
        archive.add_endpoint(name, partial(classify, index), [tf.TensorSpec((None,), tf.string, name="inputs")])
    archive.write_out(str(path), verbose=False)
    with quiet_deprecations():
        updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(str(path))
        for name in names:
            updater.replace_method_name(signature_key=name, method_name=CLASSIFY, tags="serve")
        updater.save()


def _describe_output(task: Task, output: tf.Tensor) -> NamedTensors:
    """A task's outputs by name: the network's own, and the labels derived from it."""
    if not task.has_classes:
        return {task.output_name: output}
    names = tf.constant(list(task.class_names))
    if isinstance(task, MultiLabelTask):
        present = output >= THRESHOLD
        found = tf.ragged.boolean_mask(tf.broadcast_to(names, tf.shape(output)), present)
        # a signature cannot return rows of several lengths: the names are joined as in a table
        label = tf.strings.reduce_join(found, axis=1, separator=task.separator)
        return {"probabilities": output, "present": present, "label": label}
    index = tf.argmax(output, axis=-1)
    return {"probabilities": output, "class_index": index, "label": tf.gather(names, index)}


@contextmanager
def quiet_deprecations() -> Iterator[None]:
    """Suppress TensorFlow's deprecation warnings of its version 1 interface, with which servers load models."""
    logger = logging.getLogger("tensorflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@dataclass(frozen=True)
class Signature:
    """One function of a SavedModel."""

    method: str  # such as "tensorflow/serving/predict"
    inputs: Mapping[str, Any]  # TensorInfo by name
    outputs: Mapping[str, Any]  # TensorInfo by name
    call: Callable[..., list[np.ndarray]]  # from one array per input, in the order of `inputs`, to one per output


class LoadedSavedModel(AbstractContextManager["LoadedSavedModel"]):
    """A version that several threads may run at once; OSError or tf.errors.OpError if it cannot be loaded."""

    def __init__(self, path: Path, threads: int = 0):  # threads within one operation; 0: one per core
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

    def __exit__(self, *_: object) -> None:
        self.close()


def write_warmup(
    path: Path, loaded: LoadedSavedModel, name: str, encoded: Sequence[bytes], images: np.ndarray, batch_size: int
) -> int:
    """Write requests for each signature: one image, and a batch for the two that predict; the number of requests.

    A server runs them before it accepts any other, and does not load a version where one fails. The images are real
    ones, as bytes and as uint8 [n, h, w, 3]; a batch repeats them where there are fewer.
    """
    file = path / WARMUP_FILE
    file.parent.mkdir(exist_ok=True)
    logs = list(_make_logs(loaded, name, encoded, images, batch_size))
    with tf.io.TFRecordWriter(str(file)) as writer:
        for log in logs:
            writer.write(log.SerializeToString())
    return len(logs)


def run_warmup_requests(path: Path, loaded: LoadedSavedModel) -> None:
    """Read a version's requests and run them all; tf.errors.OpError if the file is damaged, or a request fails."""
    for record in tf.data.TFRecordDataset(str(path / WARMUP_FILE)).as_numpy_iterator():
        log = PredictionLog.FromString(record)
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
) -> Iterator[PredictionLog]:
    rows = np.arange(batch_size) % len(encoded)
    for signature, definition in loaded.signatures.items():
        spec = model_pb2.ModelSpec(name=name, signature_name=signature)
        if definition.method == CLASSIFY:
            feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded[0]]))
            example = tf.train.Example(features=tf.train.Features(feature={EXAMPLE_KEY: feature}))
            examples = input_pb2.Input(example_list=input_pb2.ExampleList(examples=[example]))
            request = classification_pb2.ClassificationRequest(model_spec=spec, input=examples)
            yield PredictionLog(classify_log=ClassifyLog(request=request))
            continue
        (key,) = definition.inputs
        values = images if key == "images" else np.array(list(encoded), dtype=object)
        batches = [rows[:1]] if signature == "features" else [rows[:1], rows]
        for batch in batches:
            request = predict_pb2.PredictRequest(model_spec=spec)
            request.inputs[key].CopyFrom(tf.make_tensor_proto(values[batch]))
            yield PredictionLog(predict_log=PredictLog(request=request))
