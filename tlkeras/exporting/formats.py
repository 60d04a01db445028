"""Other formats of an exported model: LiteRT for phones and boards, OpenVINO, ONNX."""

import importlib.util
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tlkeras.data.tasks import Task
from tlkeras.errors import MissingExtraError, TlkerasError, suggest
from tlkeras.exporting.inference_graph import add_features, freeze
from tlkeras.exporting.parity import PredictFn
from tlkeras.exporting.signatures import main_output
from tlkeras.lazy_tensorflow import silence_stderr

INPUT = "images"
CALIBRATION_IMAGES = 128  # images from which int8 takes the ranges of activations


@dataclass(frozen=True)
class ConversionInputs:
    model: keras.Model  # uint8 images to the probabilities of each task, in the order of the tasks
    tasks: Sequence[Task]
    calibration: np.ndarray  # images of the training split, uint8 [n, h, w, 3]

    @property
    def outputs(self) -> list[str]:
        return [main_output(self.tasks, task) for task in self.tasks]


@dataclass(frozen=True)
class ExportFormat:
    file: str  # path in the version's folder
    write: Callable[[ConversionInputs, Path], None]  # converts a model and writes the file
    open: Callable[[Path, Sequence[str]], PredictFn]  # the function that predicts, from a file and names of outputs
    extra: tuple[str, str] | None = None  # the extra that it needs, and a package by which its presence is checked
    tolerance: float | None = None  # largest difference in a probability; None where only accuracy counts


def check_formats(names: Sequence[str]) -> None:
    """Raise a TlkerasError for unknown formats, and a MissingExtraError for those whose extra is not installed."""
    for name in names:
        if name not in FORMATS:
            lite = "tflite" in name.lower() and "For TensorFlow Lite use litert-float32, -float16 or -int8."
            raise TlkerasError(f"Unknown format {name!r}.", way_out=lite or suggest(name, FORMATS))
        extra = FORMATS[name].extra
        if extra and importlib.util.find_spec(extra[1]) is None:
            raise MissingExtraError(f"The format {name}", extra[0])


def _freeze_outputs(inputs: ConversionInputs, batch: int | None) -> Any:
    """The folded network without its features, as a concrete function without variables."""
    whole, has_features = add_features(inputs.model, inputs.tasks)
    outputs = whole.outputs[1:] if has_features else whole.outputs
    return freeze(keras.Model(whole.input, outputs, name=whole.name), batch)


def _write_litert(inputs: ConversionInputs, path: Path, *, numbers: str = "float32") -> None:
    names = inputs.outputs
    frozen = _freeze_outputs(inputs, 1)

    def run(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return dict(zip(names, frozen(images), strict=True))

    function = tf.function(run, input_signature=[tf.TensorSpec(frozen.inputs[0].shape, tf.uint8, name=INPUT)])
    module = tf.Module()
    module.run = function
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], module)
    if numbers != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if numbers == "float16":
        converter.target_spec.supported_types = [tf.float16]
    elif numbers == "int8":
        converter.representative_dataset = lambda: ([image[None]] for image in inputs.calibration)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8, tf.lite.OpsSet.TFLITE_BUILTINS]
    with silence_stderr():
        path.write_bytes(converter.convert())


def _open_litert(path: Path, names: Sequence[str]) -> PredictFn:
    with warnings.catch_warnings(), silence_stderr():
        warnings.simplefilter("ignore")  # a deprecation in favour of ai-edge-litert, which reads the same files
        interpreter = tf.lite.Interpreter(model_path=str(path), num_threads=os.cpu_count())
        interpreter.allocate_tensors()
        run = interpreter.get_signature_runner()

    def predict(encoded: list[bytes], images: np.ndarray) -> list[np.ndarray]:
        rows = [run(**{INPUT: image[None]}) for image in images]
        return [np.concatenate([row[name] for row in rows]) for name in names]

    return predict


def _write_openvino(inputs: ConversionInputs, path: Path) -> None:
    import openvino

    frozen = _freeze_outputs(inputs, None)
    graph = path.with_suffix(".pb")
    graph.write_bytes(frozen.graph.as_graph_def().SerializeToString())
    model = openvino.Core().read_model(graph)
    graph.unlink()
    model.input(0).get_tensor().set_names({INPUT})
    for name, tensor in zip(inputs.outputs, frozen.outputs, strict=True):
        model.output(tensor.name).get_tensor().set_names({name})
    openvino.save_model(model, path, compress_to_fp16=False)


def _open_openvino(path: Path, names: Sequence[str]) -> PredictFn:
    import openvino

    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def predict(encoded: list[bytes], images: np.ndarray) -> list[np.ndarray]:
        outputs = compiled({INPUT: images})
        return [outputs[name] for name in names]

    return predict


def _write_onnx(inputs: ConversionInputs, path: Path) -> None:
    import tf2onnx

    frozen = _freeze_outputs(inputs, None)
    before, after = [frozen.inputs[0].name], [tensor.name for tensor in frozen.outputs]
    with silence_stderr():
        proto, _ = tf2onnx.convert.from_graph_def(
            frozen.graph.as_graph_def(), name=inputs.model.name, input_names=before, output_names=after, opset=17
        )
    renamed = dict(zip([*before, *after], [INPUT, *inputs.outputs], strict=True))
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

    return lambda encoded, images: session.run(list(names), {INPUT: images})


FORMATS: Mapping[str, ExportFormat] = {
    "litert-float32": ExportFormat("litert/float32.tflite", _write_litert, _open_litert, tolerance=1e-3),
    "litert-float16": ExportFormat("litert/float16.tflite", partial(_write_litert, numbers="float16"), _open_litert),
    "litert-int8": ExportFormat("litert/int8.tflite", partial(_write_litert, numbers="int8"), _open_litert),
    "openvino": ExportFormat("openvino/model.xml", _write_openvino, _open_openvino, tolerance=1e-3),
    "onnx": ExportFormat("onnx/model.onnx", _write_onnx, _open_onnx, ("onnx", "tf2onnx"), 1e-3),
}
