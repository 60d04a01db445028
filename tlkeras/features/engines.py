"""Engines that run a frozen extractor: OpenVINO on a CPU, TensorFlow on a GPU, plain Keras for all other graphs."""

import importlib.util
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from tlkeras.backbones.graph import fold_batch_norm, max_batch_size, run_in_parts
from tlkeras.errors import TlkerasError, suggest
from tlkeras.features.handcrafted.layer import list_handcrafted

EngineBatch = tuple[np.ndarray, np.ndarray]
"""Index, any integer [n]; images, uint8 [n, height, width, 3]."""

EngineOutput = tuple[np.ndarray, list[np.ndarray]]
"""The index of a batch, and one float32 [n, ...] per output of the extractor."""

_TOLERANCE = 1e-3
_REQUEST_PIXELS = 224 * 224
_REQUEST_IMAGES = 32


class Engine(Protocol):
    """Runs an extractor over batches, several at once perhaps; they come out in the order given."""

    name: str

    def run(self, batches: Iterable[EngineBatch]) -> Generator[EngineOutput, None, None]: ...


def make_engine(extractor: keras.Model, name: str = "auto") -> Engine:
    """The named engine for an extractor, or, with a warning, the next one that can run it.

    `auto` is OpenVINO where it is installed, TensorFlow sees no GPU and no layer calls Python, else TensorFlow; the
    last is "keras". The others are used only if they agree with it on two random images to 1e-3 of the largest value.
    None compiles with XLA: on a CPU it is seven to nine times slower for depthwise convolutions. The extractor is a
    functional model from images [n, height, width, 3], whose weights are read once.
    """
    if name != "auto" and name not in _ENGINES:
        raise TlkerasError(f"Unknown engine {name!r}.", way_out=suggest(name, ["auto", *_ENGINES]))
    if name == "auto":
        on_processor = importlib.util.find_spec("openvino") and not tf.config.list_physical_devices("GPU")
        name = "openvino" if on_processor and not list_handcrafted(extractor) else "tensorflow"
    names = list(_ENGINES)
    traced = _trace(extractor, lambda images: extractor(images, training=False))
    for candidate in names[names.index(name) : -1]:
        try:
            engine = _ENGINES[candidate](extractor, traced)
            _check_agreement(engine, traced)
            return engine
        except Exception as problem:
            sentence = f"The {candidate} engine cannot run {extractor.name!r}; trying the next one."
            warnings.warn(f"{sentence} Cause: {problem}", RuntimeWarning, stacklevel=2)
    return KerasEngine(extractor, traced)


class _Part(NamedTuple):
    images: np.ndarray
    rows: list[np.ndarray]
    batch: EngineOutput
    is_last: bool


class OpenVinoEngine:
    """Asynchronous requests of few images, as many at once as the processor has streams.

    A request has the pixels of one image of 224x224, whose activations stay in a core's cache: at 224 single images
    were 1.1 to 1.6 times as fast as batches of 8, at 64 eight at once 1.5 to 2 times as fast as single ones. All
    requests have that one shape, so rows hardly depend on the batch size.
    """

    name = "openvino"

    def __init__(self, extractor: keras.Model, traced: Any):
        import openvino

        frozen = convert_variables_to_constants_v2(traced)
        core = openvino.Core()
        with tempfile.TemporaryDirectory() as folder:
            # thirty times as fast as openvino.convert_model, which also reports its use over the network
            path = Path(folder) / "model.pb"
            path.write_bytes(frozen.graph.as_graph_def().SerializeToString())
            model = core.read_model(path)
        height, width, channels = frozen.inputs[0].shape[1:]
        fitting = min(_REQUEST_PIXELS // (height * width), _REQUEST_IMAGES)
        self._group = 1 << max(0, fitting.bit_length() - 1)
        model.reshape([self._group, height, width, channels])
        properties = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "f32"}
        self.compiled = core.compile_model(model, "CPU", properties)
        self._ports = [self.compiled.output(tensor.name) for tensor in frozen.outputs]

    def run(self, batches: Iterable[EngineBatch]) -> Generator[EngineOutput, None, None]:
        streams = self.compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        free = [self.compiled.create_infer_request() for _ in range(2 * streams)]  # one runs, the next waits
        pending: deque[tuple[Any, _Part]] = deque()
        try:
            for part in self._divide(batches):
                if not free:
                    yield from self._finish(free, pending)
                request = free.pop()
                request.start_async({0: part.images})
                pending.append((request, part))
            while pending:
                yield from self._finish(free, pending)
        finally:
            for request, _ in pending:
                request.wait()

    def _divide(self, batches: Iterable[EngineBatch]) -> Iterator[_Part]:
        for index, images in batches:
            outputs = [np.empty((len(index), *port.shape[1:]), np.float32) for port in self._ports]
            for start in range(0, len(index), self._group):
                rows = slice(start, start + self._group)
                group = images[rows]
                if missing := self._group - len(group):  # the end of a batch is padded with black images
                    group = np.concatenate([group, np.zeros((missing, *group.shape[1:]), np.uint8)])
                yield _Part(group, [output[rows] for output in outputs], (index, outputs), rows.stop >= len(index))

    def _finish(self, free: list[Any], pending: deque[tuple[Any, _Part]]) -> Iterator[EngineOutput]:
        """Wait for the oldest request; yield its batch if that is complete."""
        request, part = pending.popleft()
        request.wait()
        for rows, port in zip(part.rows, self._ports, strict=True):
            rows[:] = request.get_tensor(port).data[: len(rows)]
        free.append(request)
        if part.is_last:
            yield part.batch


class KerasEngine:
    """The unchanged extractor, as a graph."""

    name = "keras"

    def __init__(self, extractor: keras.Model, traced: Any):
        self._function, self._size = traced, max_batch_size(extractor, _REQUEST_IMAGES)

    def run(self, batches: Iterable[EngineBatch]) -> Generator[EngineOutput, None, None]:
        for index, images in batches:
            yield index, run_in_parts(lambda part: self._function(tf.constant(part)), images, self._size)


class TensorFlowEngine(KerasEngine):
    """Batch norm folded into the convolutions, variables frozen into constants."""

    name = "tensorflow"

    def __init__(self, extractor: keras.Model, traced: Any):
        folded = _trace(extractor, fold_batch_norm(extractor))
        super().__init__(extractor, convert_variables_to_constants_v2(folded))


_ENGINES: dict[str, Callable[[keras.Model, Any], Engine]] = {
    "openvino": OpenVinoEngine,
    "tensorflow": TensorFlowEngine,
    "keras": KerasEngine,
}


def _trace(extractor: keras.Model, call: Callable[[Any], Any]) -> Any:
    [entry] = extractor.inputs

    def run(images: tf.Tensor) -> list[tf.Tensor]:
        outputs = keras.tree.flatten(call(tf.cast(images, entry.dtype)))
        return [tf.cast(output, tf.float32) for output in outputs]

    function = tf.function(run, autograph=False, jit_compile=False)
    return function.get_concrete_function(tf.TensorSpec(entry.shape, tf.uint8, name="images"))


def _check_agreement(engine: Engine, traced: Any) -> None:
    shape = traced.inputs[0].shape[1:]
    images = np.random.default_rng(0).integers(0, 256, (2, *shape), dtype=np.uint8)
    [(_, received)] = engine.run([(np.arange(2), images)])
    for output, expected in zip(received, traced(tf.constant(images)), strict=True):
        reference = expected.numpy()
        difference = float(np.abs(output - reference).max())
        allowed = _TOLERANCE * float(np.abs(reference).max())
        if not difference <= allowed:
            raise ArithmeticError(f"its result differs by {difference:.2g}, more than {allowed:.2g}")
