"""Other forms of an exported model: LiteRT for phones and boards, OpenVINO, ONNX; each opened again and asked."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tlkeras.data.tasks import Task
from tlkeras.errors import MissingExtraError, TlkerasError, suggest
from tlkeras.exporting.inference_graph import add_features, freeze
from tlkeras.exporting.parity import PredictFn
from tlkeras.exporting.signatures import name_main

INPUT = "images"
CALIBRATED = 128
"""Images that int8 takes the ranges of activations from."""


@dataclass(frozen=True)
class ConversionInputs:
    """What the forms are made of.

    Attributes:
        model: uint8 images to the probabilities of each task, in their order.
        tasks: What is predicted.
        calibration: Images of the training split, uint8 [n, size, size, 3].
    """

    model: keras.Model
    tasks: Sequence[Task]
    calibration: np.ndarray

    @property
    def outputs(self) -> list[str]:
        """The names of the outputs."""
        return [name_main(self.tasks, task) for task in self.tasks]


@dataclass(frozen=True)
class ExportFormat:
    """One form of the model.

    Attributes:
        file: Its place in the version's folder.
        write: Writes it.
        open: From its path and the names of its outputs, a function that asks it.
        extra: What must be installed, and the package that tells whether it is.
        tolerance: What a probability may differ by; None where it is rounded on purpose and accuracy alone decides.
    """

    file: str
    write: Callable[[ConversionInputs, Path], None]
    open: Callable[[Path, Sequence[str]], PredictFn]
    extra: tuple[str, str] | None = None
    tolerance: float | None = None


def check_forms(names: Sequence[str]) -> None:
    """Refuse forms that there are not, and those whose extra is not installed.

    Raises:
        TlkerasError: There is no such form; the nearest is told.
        MissingExtraError: Its extra is not installed.
    """
    for name in names:
        if name not in FORMATS:
            raise TlkerasError(f"A format is one of {', '.join(FORMATS)}.", repr(name), suggest(name, FORMATS))
        extra = FORMATS[name].extra
        if extra and importlib.util.find_spec(extra[1]) is None:
            raise MissingExtraError(f"The format {name}", extra[0])


def _freeze(material: ConversionInputs, batch: int | None) -> Any:
    """Return the folded network without its features, as a concrete function without variables."""
    whole, has_features = add_features(material.model, material.tasks)
    outputs = whole.outputs[1:] if has_features else whole.outputs
    return freeze(keras.Model(whole.input, outputs, name=whole.name), batch)


# -- LiteRT ----------------------------------------------------------------------------------------------------------


def _write_litert(material: ConversionInputs, path: Path, prepare: Callable[[Any, ConversionInputs], None]) -> None:
    names = material.outputs
    frozen = _freeze(material, 1)

    def run(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return dict(zip(names, frozen(images), strict=True))

    function = tf.function(run, input_signature=[tf.TensorSpec(frozen.inputs[0].shape, tf.uint8, name=INPUT)])
    module = tf.Module()
    module.run = function
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], module)
    prepare(converter, material)
    with _quiet():
        path.write_bytes(converter.convert())


def _keep_float32(converter: Any, material: ConversionInputs) -> None:
    pass


def _use_float16(converter: Any, material: ConversionInputs) -> None:
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]


def _use_int8(converter: Any, material: ConversionInputs) -> None:
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[None]] for image in material.calibration)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.lite.OpsSet.TFLITE_BUILTINS]


def _open_litert(path: Path, names: Sequence[str]) -> PredictFn:
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")  # it advises ai-edge-litert, which reads the same files
        interpreter = tf.lite.Interpreter(model_path=str(path), num_threads=os.cpu_count())
        interpreter.allocate_tensors()
        run = interpreter.get_signature_runner()

    def ask(encoded: list[bytes], images: np.ndarray) -> list[np.ndarray]:
        rows = [run(**{INPUT: image[None]}) for image in images]
        return [np.concatenate([row[name] for row in rows]) for name in names]

    return ask


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the converter's C++ from talking on standard error."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


# -- OpenVINO --------------------------------------------------------------------------------------------------------


def _write_openvino(material: ConversionInputs, path: Path) -> None:
    import openvino

    frozen = _freeze(material, None)
    graph = path.with_suffix(".pb")
    graph.write_bytes(frozen.graph.as_graph_def().SerializeToString())
    model = openvino.Core().read_model(graph)
    graph.unlink()
    model.input(0).get_tensor().set_names({INPUT})
    for name, tensor in zip(material.outputs, frozen.outputs, strict=True):
        model.output(tensor.name).get_tensor().set_names({name})
    openvino.save_model(model, path, compress_to_fp16=False)


def _open_openvino(path: Path, names: Sequence[str]) -> PredictFn:
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def ask(encoded: list[bytes], images: np.ndarray) -> list[np.ndarray]:
        predictions = compiled({INPUT: images})
        return [predictions[name] for name in names]

    return ask


# -- ONNX ------------------------------------------------------------------------------------------------------------


def _write_onnx(material: ConversionInputs, path: Path) -> None:
    import tf2onnx

    frozen = _freeze(material, None)
    with _quiet():
        proto, _ = tf2onnx.convert.from_graph_def(
            frozen.graph.as_graph_def(),
            name=material.model.name,
            input_names=[frozen.inputs[0].name],
            output_names=[tensor.name for tensor in frozen.outputs],
            opset=17,
        )
    renamed = {frozen.inputs[0].name: INPUT}
    renamed |= {tensor.name: name for tensor, name in zip(frozen.outputs, material.outputs, strict=True)}
    for node in proto.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for value in (*proto.graph.input, *proto.graph.output):
        value.name = renamed.get(value.name, value.name)
        value.type.tensor_type.shape.dim[0].dim_param = "n"
    path.write_bytes(proto.SerializeToString())


def _open_onnx(path: Path, names: Sequence[str]) -> PredictFn:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def ask(encoded: list[bytes], images: np.ndarray) -> list[np.ndarray]:
        return session.run(list(names), {INPUT: images})

    return ask


def _litert(prepare: Callable[[Any, ConversionInputs], None]) -> Callable[[ConversionInputs, Path], None]:
    return lambda material, path: _write_litert(material, path, prepare)


FORMATS: Mapping[str, ExportFormat] = {
    "litert-float32": ExportFormat("litert/float32.tflite", _litert(_keep_float32), _open_litert, tolerance=1e-3),
    "litert-float16": ExportFormat("litert/float16.tflite", _litert(_use_float16), _open_litert),
    "litert-int8": ExportFormat("litert/int8.tflite", _litert(_use_int8), _open_litert),
    "openvino": ExportFormat("openvino/model.xml", _write_openvino, _open_openvino, tolerance=1e-3),
    "onnx": ExportFormat("onnx/model.onnx", _write_onnx, _open_onnx, ("onnx", "tf2onnx"), 1e-3),
}
