"""JSON to tensors and back, with the rules and error messages of TensorFlow Serving's REST interface.

Source of both: tensorflow/serving, tensorflow_serving/util/json_tensor.cc.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tlkeras.serving.status import StatusError, invalid_argument

Dtypes = Mapping[str, np.dtype]  # data types of a signature's inputs by name; object for strings
JsonObject = Mapping[str, Any]  # an object in JSON
FeatureLists = Mapping[str, Sequence[Any]]  # features of an example by name: bytes, floats or integers
_MAX_SHOWN = 200
_MAX_DIMENSIONS = 16


def parse_object(body: bytes) -> JsonObject:
    """The JSON object in a body; StatusError if the body is something else."""
    if not body:
        raise invalid_argument("JSON Parse error: The document is empty")
    try:
        found = json.loads(body)
    except json.JSONDecodeError as error:
        raise invalid_argument(f"JSON Parse error: {error.msg} at offset: {error.pos}") from None
    except UnicodeDecodeError as error:
        raise invalid_argument(f"JSON Parse error: Invalid encoding in string. at offset: {error.start}") from None
    except RecursionError:
        raise invalid_argument("JSON Parse error: The document is nested too deeply.") from None
    except ValueError as error:  # an integer of thousands of digits
        raise invalid_argument(f"JSON Parse error: {error}") from None
    if not isinstance(found, dict):
        raise _refuse(found, "Is not object")
    return found


def read_signature_name(request: JsonObject) -> str:
    """Name of the signature in a request; "" where there is none."""
    name = request.get("signature_name", "")
    if not isinstance(name, str):
        raise _refuse(request, "not formatted correctly. 'signature_name' key must be a string value.")
    return name


def read_inputs(request: JsonObject, dtypes: Dtypes) -> tuple[dict[str, np.ndarray], bool]:
    """Arrays by name of input, and whether they came row by row; StatusError if they do not fit the signature."""
    if "instances" in request and "inputs" in request:
        raise _refuse(request, "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist ")
    if "instances" in request:
        rows = request["instances"]
        if not isinstance(rows, list):
            raise _refuse(request, "Excepting 'instances' to be an list/array")
        if not rows:
            raise _refuse(request, "No values in 'instances' array")
        return _read_rows(rows, dtypes), True
    if "inputs" in request:
        return _read_columns(request["inputs"], dtypes), False
    raise invalid_argument("Missing 'inputs' or 'instances' key")


def _read_rows(rows: list[Any], dtypes: Dtypes) -> dict[str, np.ndarray]:
    named = isinstance(rows[0], dict) and not _is_base64(rows[0])
    if not named and len(dtypes) > 1:
        raise invalid_argument(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as per"
            " tensorinfo_map"
        )
    columns: dict[str, list[Any]] = {name: [] for name in dtypes}
    for index, row in enumerate(rows):
        if (isinstance(row, dict) and not _is_base64(row)) != named:
            expected, got = ("object", "list") if named else ("value/list", "object")
            raise invalid_argument(f"Expecting {expected} but got {got} at item {index} of input list")
        for name, value in row.items() if named else [(next(iter(dtypes)), row)]:
            if name not in columns:
                raise invalid_argument(
                    f"Failed to process element: {index} key: {name} of 'instances' list. Error: INVALID_ARGUMENT: JSON"
                    f" object: does not have named input: {name}"
                )
            columns[name].append(value)
        if named and set(row) != set(dtypes):
            raise invalid_argument(
                f"Failed to process element: {index} of 'instances' list. JSON object: {_show(row)} keys must be equal"
                f" to: {','.join(sorted(dtypes))}"
            )
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = make_array(values, dtypes[name])
        except StatusError as error:
            raise invalid_argument(f"Failed to process 'instances' list. Error: {error}") from None
    return arrays


def _read_columns(inputs: Any, dtypes: Dtypes) -> dict[str, np.ndarray]:
    if not isinstance(inputs, dict) or _is_base64(inputs):
        if len(dtypes) > 1:
            raise invalid_argument(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per"
                " tensorinfo_map"
            )
        ((name, dtype),) = dtypes.items()
        return {name: make_array(inputs, dtype)}
    missing = [name for name in dtypes if name not in inputs]
    if missing:
        raise invalid_argument(f"Missing named input: {missing[0]} in 'inputs' object.")
    return {name: make_array(inputs[name], dtype) for name, dtype in dtypes.items()}


def make_array(value: Any, dtype: np.dtype) -> np.ndarray:
    """A value or lists as an array; StatusError if a list is unlike its first sibling, or a value's type is wrong."""
    shape = _find_shape(value)
    if dtype.kind != "O":
        array = _convert_numbers(value, shape, dtype)
        if array is not None:
            return array
    leaves: list[Any] = []
    _fill(value, 0, shape, dtype, leaves)
    array = np.empty(len(leaves), dtype)
    array[:] = leaves
    return array.reshape(shape)


def _find_shape(value: Any) -> tuple[int, ...]:
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
        if len(shape) > _MAX_DIMENSIONS:
            raise invalid_argument(f"Encountered list at unexpected level: {len(shape)} expected < {_MAX_DIMENSIONS}")
    return tuple(shape)


def _convert_numbers(value: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
    """Numbers as an array; None where a shape or type is wrong, which `_fill` then reports."""
    try:
        array = np.array(value)
    except (ValueError, OverflowError):
        return None
    if array.shape != shape or array.dtype.kind not in ("biu" if dtype.kind in "iu" else "iuf"):
        return None
    if dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        if array.dtype.kind == "b" or array.min() < limits.min or array.max() > limits.max:
            return None
    return array.astype(dtype)


def _fill(value: Any, level: int, shape: tuple[int, ...], dtype: np.dtype, leaves: list[Any]) -> None:
    rank = len(shape)
    if not isinstance(value, list):
        if level != rank:
            expected = f"Expected at level: {rank}"
            raise _refuse(value, f"found at incorrect level: {level + 1} in the JSON DOM. {expected}")
        leaves.append(_convert(value, dtype))
        return
    if level >= rank:
        raise invalid_argument(f"Encountered list at unexpected level: {level} expected < {rank}")
    if len(value) != shape[level]:
        raise invalid_argument(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
        )
    for part in value:
        _fill(part, level + 1, shape, dtype, leaves)


def _convert(value: Any, dtype: np.dtype) -> Any:
    kind = dtype.kind
    if kind == "O" and isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if kind == "O" and isinstance(value, dict):
        return decode_base64(value)
    if kind == "b" and isinstance(value, bool):
        return value
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind == "f" and is_number:
        return value
    if kind in "iu" and is_number and isinstance(value, int):
        limits = np.iinfo(dtype)
        if limits.min <= value <= limits.max:
            return value
    expected = "string" if kind == "O" else dtype.name
    raise _refuse(value, f"Type: {_name_type(value)} is not of expected type: {expected}")


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def decode_base64(value: Any) -> bytes:
    """The bytes of {"b64": "..."}; StatusError if it is another object, or the text is not base64."""
    if not _is_base64(value):
        raise _refuse(value, "not formatted correctly for base64 data")
    text = value["b64"]
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise invalid_argument("Unable to base64 decode") from None


def _refuse(value: Any, problem: str) -> StatusError:
    return invalid_argument(f"JSON Value: {_show(value)} {problem}")


def _show(value: Any) -> str:
    try:
        text = json.dumps(value)
    except (RecursionError, ValueError):
        text = "..."
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."


def _name_type(value: Any) -> str:
    names = {type(None): "Null", bool: str(value), dict: "Object", list: "Array", str: "String"}
    return names.get(type(value), "Number")


def predict_response(outputs: Mapping[str, np.ndarray], by_rows: bool) -> JsonObject:
    """The response to a predict request; StatusError if it is by rows and the outputs differ in their number."""
    columns = {name: _to_json(name, array) for name, array in outputs.items()}
    if not by_rows:
        return {"outputs": columns if len(columns) > 1 else next(iter(columns.values()))}
    counts = {name: array.shape[0] if array.ndim else None for name, array in outputs.items()}
    count = next(iter(counts.values()))
    for name, rows in counts.items():
        if rows is None or rows != count:
            raise invalid_argument(f"Tensor name: {name} has inconsistent batch size: {rows} expecting: {count}")
    if len(columns) == 1:
        return {"predictions": next(iter(columns.values()))}
    return {"predictions": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]}


def classification_response(classes: np.ndarray, scores: np.ndarray) -> JsonObject:
    """The response to a classify request: a list of [label, score] for each example."""
    rows = zip(_to_json("classes", classes), _to_json("scores", scores), strict=True)
    return {"results": [[list(pair) for pair in zip(*row, strict=True)] for row in rows]}


def _to_json(name: str, array: np.ndarray) -> Any:
    if array.dtype.kind == "O" and name.endswith("_bytes"):
        return _map_leaves(array.tolist(), lambda data: {"b64": base64.b64encode(data).decode()})
    if array.dtype.kind == "O":
        return _map_leaves(
            array.tolist(), lambda text: text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        )
    if array.dtype.kind == "f" and array.dtype.itemsize < 8:  # the shortest digits of the same float32
        return _map_leaves(array.astype(str).astype(np.float64).tolist(), float) if array.size else array.tolist()
    return array.tolist()


def _map_leaves(value: Any, convert: Any) -> Any:
    return [_map_leaves(part, convert) for part in value] if isinstance(value, list) else convert(value)


def read_features(value: Any) -> FeatureLists:
    """Features of an example in a classify request; StatusError if the value is no example."""
    if not isinstance(value, dict):
        raise invalid_argument(f"Example must be JSON object but got JSON {_name_type(value)}")
    return {name: _read_feature(name, content) for name, content in value.items()}


def _read_feature(name: str, content: Any) -> list[Any]:
    values: list[Any] = []
    for item in content if isinstance(content, list) else [content]:
        if item is None or isinstance(item, list) or (isinstance(item, dict) and not _is_base64(item)):
            raise invalid_argument(f"Feature: {name} has element with unexpected JSON type: {_name_type(item)}")
        if isinstance(item, dict):
            values.append(decode_base64(item))
        else:
            values.append(item.encode() if isinstance(item, str) else int(item) if isinstance(item, bool) else item)
    if len({type(item) for item in values}) > 1:
        expected = {bytes: "bytes", float: "float"}.get(type(values[0]), "int64")
        raise invalid_argument(f"Unexpected element type in feature: {name} expecting type: {expected}")
    return values


def read_examples(request: JsonObject) -> tuple[list[FeatureLists], FeatureLists]:
    """Features of each example of a classify request, and those that all share; StatusError if it is malformed."""
    context = read_features(request["context"]) if "context" in request else {}
    if "examples" not in request:
        raise _refuse(request, "When method is classify, key 'examples' is expected and was not found")
    examples: Sequence[Any] = request["examples"]
    if not isinstance(examples, list):
        raise _refuse(request, "Expecting 'examples' value to be an list/array")
    if not examples:
        raise _refuse(request, "'examples' value is an empty array")
    return [read_features(example) for example in examples], context
