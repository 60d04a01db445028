"""The part of TensorFlow Serving's protos that a client needs, without TensorFlow, whose package holds the originals.

Names, numbers and types are those of tensorflow/core/framework/{tensor,tensor_shape}.proto and
tensorflow_serving/apis/{model,predict,get_model_status}.proto; a test compares each field. The messages live in a pool
of their own, so that both can be imported in one process.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_SCALARS = {"int32": 5, "int64": 3, "string": 9, "bytes": 12, "bool": 8, "float": 2, "double": 1, "enum": 5}

# message -> (field, number, type, whether it is repeated); enums are read as the integers that they are on the wire
FIELDS: dict[str, list[tuple[str, int, str, bool]]] = {
    "tensorflow.TensorShapeProto.Dim": [("size", 1, "int64", False)],
    "tensorflow.TensorShapeProto": [("dim", 2, "tensorflow.TensorShapeProto.Dim", True)],
    "tensorflow.TensorProto": [
        ("dtype", 1, "enum", False),
        ("tensor_shape", 2, "tensorflow.TensorShapeProto", False),
        ("tensor_content", 4, "bytes", False),
        ("float_val", 5, "float", True),
        ("double_val", 6, "double", True),
        ("int_val", 7, "int32", True),
        ("string_val", 8, "bytes", True),
        ("int64_val", 10, "int64", True),
        ("bool_val", 11, "bool", True),
    ],
    "google.protobuf.Int64Value": [("value", 1, "int64", False)],
    "tensorflow.serving.ModelSpec": [
        ("name", 1, "string", False),
        ("version", 2, "google.protobuf.Int64Value", False),
        ("version_label", 4, "string", False),
        ("signature_name", 3, "string", False),
    ],
    "tensorflow.serving.PredictRequest.InputsEntry": [
        ("key", 1, "string", False),
        ("value", 2, "tensorflow.TensorProto", False),
    ],
    "tensorflow.serving.PredictRequest": [
        ("model_spec", 1, "tensorflow.serving.ModelSpec", False),
        ("inputs", 2, "tensorflow.serving.PredictRequest.InputsEntry", True),
        ("output_filter", 3, "string", True),
    ],
    "tensorflow.serving.PredictResponse.OutputsEntry": [
        ("key", 1, "string", False),
        ("value", 2, "tensorflow.TensorProto", False),
    ],
    "tensorflow.serving.PredictResponse": [
        ("outputs", 1, "tensorflow.serving.PredictResponse.OutputsEntry", True),
        ("model_spec", 2, "tensorflow.serving.ModelSpec", False),
    ],
    "tensorflow.serving.GetModelStatusRequest": [("model_spec", 1, "tensorflow.serving.ModelSpec", False)],
    "tensorflow.serving.StatusProto": [("error_code", 1, "enum", False), ("error_message", 2, "string", False)],
    "tensorflow.serving.ModelVersionStatus": [
        ("version", 1, "int64", False),
        ("state", 2, "enum", False),
        ("status", 3, "tensorflow.serving.StatusProto", False),
    ],
    "tensorflow.serving.GetModelStatusResponse": [
        ("model_version_status", 1, "tensorflow.serving.ModelVersionStatus", True)
    ],
}

# DataType of tensorflow/core/framework/types.proto, with the list that holds single values
_DTYPES: dict[int, tuple[Any, str]] = {
    1: (np.float32, "float_val"),
    2: (np.float64, "double_val"),
    3: (np.int32, "int_val"),
    4: (np.uint8, "int_val"),
    7: (object, "string_val"),
    9: (np.int64, "int64_val"),
    10: (np.bool_, "bool_val"),
}
_STRING, _UINT8 = 7, 4


@cache
def load_messages() -> SimpleNamespace:
    """Return the message classes by their short names, such as `PredictRequest`."""
    pool = descriptor_pool.DescriptorPool()
    file = descriptor_pb2.FileDescriptorProto(name="tlkeras/serving.proto", package="tlkeras", syntax="proto3")
    for name, fields in FIELDS.items():
        message = file.message_type.add(name=_flatten(name))
        for field, number, kind, repeated in fields:
            added = message.field.add(name=field, number=number, label=3 if repeated else 1)
            added.type = _SCALARS.get(kind, 11)
            if kind not in _SCALARS:
                added.type_name = f".tlkeras.{_flatten(kind)}"
    pool.Add(file)
    return SimpleNamespace(
        **{
            name.rpartition(".")[2]: message_factory.GetMessageClass(
                pool.FindMessageTypeByName(f"tlkeras.{_flatten(name)}")
            )
            for name in FIELDS
        }
    )


def _flatten(name: str) -> str:
    return name.replace(".", "_")


def write_tensor(array: np.ndarray, tensor: Any) -> None:
    """Fill a TensorProto with bytes (an array of objects) or with uint8 images."""
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)
    if array.dtype == object:
        tensor.dtype = _STRING
        tensor.string_val.extend(array.ravel().tolist())
    else:
        tensor.dtype = _UINT8
        tensor.tensor_content = np.ascontiguousarray(array, np.uint8).tobytes()


def read_tensor(tensor: Any) -> np.ndarray:
    """Return a TensorProto as an array; a single value stands for all of them, as in TensorFlow.

    Raises:
        ValueError: Its type is none that a classifier answers with.
    """
    if tensor.dtype not in _DTYPES:
        raise ValueError(f"tensors of the type {tensor.dtype} cannot be read")
    dtype, field = _DTYPES[tensor.dtype]
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    if tensor.tensor_content:
        return np.frombuffer(tensor.tensor_content, dtype).reshape(shape)
    values = np.array(list(getattr(tensor, field)), dtype)
    return np.broadcast_to(values, shape) if values.size == 1 else values.reshape(shape)
