"""JSON to tensors and back: the rules and error messages of TensorFlow Serving."""

import numpy as np
import pytest

from tlkeras.serving import tensors
from tlkeras.serving.status import StatusError

UINT8, FLOAT, TEXT, BOOL = np.dtype("uint8"), np.dtype("float32"), np.dtype(object), np.dtype(bool)


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        ([[1, 2], [3, 4]], UINT8, [[1, 2], [3, 4]]),
        (7, UINT8, 7),
        ([], FLOAT, []),
        ([1, 2.5], FLOAT, [1.0, 2.5]),
        ([True, False], BOOL, [True, False]),
        (["a", {"b64": "/9j/"}], TEXT, [b"a", b"\xff\xd8\xff"]),
        ({"b64": "/9g"}, TEXT, b"\xff\xd8"),
    ],
)
def test_values_become_arrays(value, dtype, expected):
    array = tensors.make_array(value, dtype)
    assert array.dtype == dtype
    assert array.tolist() == expected


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        ([[1, 2], [3]], UINT8, "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
        ([[1], 2], UINT8, "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2"),
        ([1, [2]], UINT8, "Encountered list at unexpected level: 1 expected < 1"),
        ([1, 256], UINT8, "JSON Value: 256 Type: Number is not of expected type: uint8"),
        ([1, -1], UINT8, "JSON Value: -1 Type: Number is not of expected type: uint8"),
        ([1.5], UINT8, "JSON Value: 1.5 Type: Number is not of expected type: uint8"),
        ([True], UINT8, "JSON Value: true Type: True is not of expected type: uint8"),
        (["1"], FLOAT, 'JSON Value: "1" Type: String is not of expected type: float32'),
        ([None], FLOAT, "JSON Value: null Type: Null is not of expected type: float32"),
        ([1], TEXT, "JSON Value: 1 Type: Number is not of expected type: string"),
        ([{"b64": "?"}], TEXT, "Unable to base64 decode"),
        ([{"b64": "", "more": 1}], TEXT, "not formatted correctly for base64 data"),
    ],
)
def test_errors_are_those_of_tensorflow_serving(value, dtype, message):
    with pytest.raises(StatusError) as raised:
        tensors.make_array(value, dtype)
    assert message in raised.value.message


def test_responses_by_rows_and_by_columns():
    outputs = {"label": np.array([b"day", b"n\xc3\xa4he"], dtype=object), "score": np.array([0.2, 1], np.float32)}
    rows = tensors.predict_response(outputs, True)
    assert rows == {"predictions": [{"label": "day", "score": 0.2}, {"label": "nähe", "score": 1.0}]}
    assert tensors.predict_response(outputs, False) == {"outputs": {"label": ["day", "nähe"], "score": [0.2, 1.0]}}
    single = {"scores": np.array([[0.1]], np.float32)}
    assert tensors.predict_response(single, True) == {"predictions": [[0.1]]}
    assert tensors.predict_response(single, False) == {"outputs": [[0.1]]}
    image = {"image_bytes": np.array([b"\xff\xd8\xff"], dtype=object)}
    assert tensors.predict_response(image, True) == {"predictions": [{"b64": "/9j/"}]}
    with pytest.raises(StatusError, match="Tensor name: b has inconsistent batch size: 2 expecting: 1"):
        tensors.predict_response({"a": np.zeros(1), "b": np.zeros(2)}, True)


def test_classes_are_pairs():
    classes = np.array([[b"day", b"night"]], dtype=object)
    response = tensors.classification_response(classes, np.array([[0.7, 0.3]], np.float32))
    assert response == {"results": [[["day", 0.7], ["night", 0.3]]]}


def test_examples_share_their_context():
    request = {"context": {"a": 1}, "examples": [{"b": [True, 2]}, {"c": {"b64": "AA=="}, "d": "é"}]}
    assert tensors.read_examples(request) == ([{"b": [1, 2]}, {"c": [b"\0"], "d": ["é".encode()]}], {"a": [1]})
