"""The REST interface: the run's own predictions, and the right status for every malformed request."""

import base64
import json
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests

PREDICT = "/v1/models/photos:predict"
CLASSIFY = "/v1/models/photos:classify"


def b64(data):
    return {"b64": base64.b64encode(data).decode()}


def test_predict_by_rows(post, samples):
    response = post(PREDICT, {"instances": [b64(data) for data, _ in samples]})
    assert response.status_code == 200
    rows = response.json()["predictions"]
    np.testing.assert_allclose([row["probabilities"] for row in rows], [p for _, p in samples], atol=1e-4)
    for row, (_, expected) in zip(rows, samples, strict=True):
        assert row["class_index"] == int(np.argmax(expected))
        assert row["label"] == ["day", "night"][row["class_index"]]
    named = post(PREDICT, {"instances": [{"image_bytes": b64(samples[0][0])}]}).json()
    assert named["predictions"] == post(PREDICT, {"instances": [b64(samples[0][0])]}).json()["predictions"]


def test_predict_by_columns_and_other_signatures(post, samples):
    data, expected = samples[0]
    response = post(PREDICT, {"inputs": [b64(data)]}).json()["outputs"]
    assert set(response) == {"probabilities", "class_index", "label"}
    np.testing.assert_allclose(response["probabilities"], [expected], atol=1e-4)
    features = post(PREDICT, {"signature_name": "features", "instances": [b64(data)]}).json()["predictions"]
    assert np.array(features).ndim == 2
    pixels = np.zeros((1, 32, 32, 3), int).tolist()
    dark = post(PREDICT, {"signature_name": "uint8", "instances": pixels}).json()["predictions"]
    assert dark[0]["label"] == "night"


def test_classify(post, samples):
    data, expected = samples[0]
    body = {"signature_name": "classify", "examples": [{"image/encoded": b64(data)}]}
    ((first, second),) = post(CLASSIFY, body).json()["results"]
    assert first[1] >= second[1] and {first[0], second[0]} == {"day", "night"}
    assert first[1] == pytest.approx(max(expected), abs=1e-4)


@pytest.mark.parametrize("path", ["", "/versions/1", "/labels/stable"])
def test_status_and_versions(rest, post, samples, path):
    status = requests.get(f"{rest}/v1/models/photos{path}", timeout=10).json()
    assert status == {
        "model_version_status": [
            {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        ]
    }
    assert post(f"/v1/models/photos{path}:predict", {"instances": [b64(samples[0][0])]}).status_code == 200


def test_metadata(rest):
    response = requests.get(f"{rest}/v1/models/photos/metadata", timeout=10).json()
    assert response["model_spec"] == {"name": "photos", "signature_name": "", "version": "1"}
    signatures = response["metadata"]["signature_def"]["signature_def"]
    assert set(signatures) == {"serving_default", "uint8", "features", "classify"}
    assert signatures["classify"]["method_name"] == "tensorflow/serving/classify"
    tensor = signatures["serving_default"]["inputs"]["image_bytes"]
    assert tensor["dtype"] == "DT_STRING" and tensor["tensor_shape"]["dim"][0]["size"] == "-1"


def make_bomb():
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 16000, 16000, 8, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" * 100)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


GOOD = {"b64": "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"}  # one pixel

# path, body, status, part of the error message
MALFORMED = {
    "empty body": (PREDICT, b"", 400, "JSON Parse error: The document is empty"),
    "no JSON": (PREDICT, b"{", 400, "JSON Parse error: "),
    "no UTF-8": (PREDICT, b'{"instances": "\xff"}', 400, "JSON Parse error: "),
    "no object": (PREDICT, b"[]", 400, "JSON Value: [] Is not object"),
    "a million lists": (PREDICT, b'{"instances":' + b"[" * 1_000_000, 400, "nested too deeply"),
    "an endless integer": (PREDICT, b'{"instances": [' + b"9" * 100_000 + b"]}", 400, ""),
    "neither key": (PREDICT, {}, 400, "Missing 'inputs' or 'instances' key"),
    "both keys": (PREDICT, {"inputs": [], "instances": []}, 400, "expecting only one of 'inputs' or 'instances'"),
    "empty list": (PREDICT, {"instances": []}, 400, "No values in 'instances' array"),
    "no list": (PREDICT, {"instances": GOOD}, 400, "Excepting 'instances' to be an list/array"),
    "scalar inputs": (PREDICT, {"inputs": GOOD}, 400, "Tensor image_bytes has shape [], expected [?]"),
    "ragged lists": (
        PREDICT,
        {"signature_name": "uint8", "instances": [[[1]], [[1, 2]]]},
        400,
        "Encountered list at unexpected size: 2",
    ),
    "wrong shape": (PREDICT, {"signature_name": "uint8", "instances": [[[[1]]]]}, 400, "expected [?,32,32,3]"),
    "NaN": (PREDICT, b'{"signature_name": "uint8", "instances": [[[[NaN]]]]}', 400, "is not of expected type: uint8"),
    "negative pixels": (PREDICT, {"signature_name": "uint8", "instances": [[[[-1]]]]}, 400, "JSON Value: -1"),
    "wrong dtype": (PREDICT, {"instances": [1]}, 400, "is not of expected type: string"),
    "bad base64": (PREDICT, {"instances": [{"b64": "not base64!"}]}, 400, "Unable to base64 decode"),
    "base64 and more": (PREDICT, {"instances": [{"b64": "AA==", "x": 1}]}, 400, "does not have named input: b64"),
    "base64 of no text": (PREDICT, {"instances": [{"b64": 1}]}, 400, "does not have named input: b64"),
    "unknown input": (PREDICT, {"instances": [{"image": GOOD}]}, 400, "does not have named input: image"),
    "unknown and known": (PREDICT, {"instances": [{"image_bytes": GOOD, "x": 1}]}, 400, "named input: x"),
    "missing input": (PREDICT, {"inputs": {"x": [GOOD]}}, 400, "Missing named input: image_bytes in 'inputs' object."),
    "mixed rows": (PREDICT, {"instances": [GOOD, {"image_bytes": GOOD}]}, 400, "Expecting value/list but got object"),
    "signature no text": (PREDICT, {"signature_name": 1, "instances": [GOOD]}, 400, "must be a string value"),
    "wrong signature": (
        PREDICT,
        {"signature_name": "x", "instances": [GOOD]},
        400,
        'Serving signature name: "x" not found in signature def',
    ),
    "wrong model": ("/v1/models/x:predict", {"instances": [GOOD]}, 404, "Servable not found for request: Latest(x)"),
    "wrong version": (
        "/v1/models/photos/versions/7:predict",
        {"instances": [GOOD]},
        404,
        "Servable not found for request: Specific(photos, 7)",
    ),
    "endless version": (
        "/v1/models/photos/versions/99999999999999999999:predict",
        {"instances": [GOOD]},
        400,
        "Failed to convert version: 99999999999999999999 to numeric.",
    ),
    "wrong label": (
        "/v1/models/photos/labels/canary:predict",
        {"instances": [GOOD]},
        400,
        "Unrecognized servable version label: canary",
    ),
    "wrong method": ("/v1/models/photos:guess", {}, 400, "Malformed request: POST /v1/models/photos:guess"),
    "wrong path": ("/v2/models", {}, 400, "Malformed request: POST /v2/models"),
    "traversal": ("/v1/models/..%2f..%2fetc:predict", {"instances": [GOOD]}, 400, "Malformed request"),
    "regress": (
        "/v1/models/photos:regress",
        {"examples": [{}]},
        400,
        "Expected regression signature method_name to be tensorflow/serving/regress",
    ),
    "classify by predict's signature": (
        CLASSIFY,
        {"examples": [{}]},
        400,
        "Expected classification signature method_name to be tensorflow/serving/classify",
    ),
    "no examples": (CLASSIFY, {"signature_name": "classify"}, 400, "key 'examples' is expected and was not found"),
    "examples no list": (CLASSIFY, {"signature_name": "classify", "examples": {}}, 400, "to be an list/array"),
    "empty examples": (CLASSIFY, {"signature_name": "classify", "examples": []}, 400, "is an empty array"),
    "example no object": (CLASSIFY, {"signature_name": "classify", "examples": [1]}, 400, "must be JSON object"),
    "example without the image": (CLASSIFY, {"signature_name": "classify", "examples": [{"x": 1}]}, 400, "image/enc"),
    "null feature": (CLASSIFY, {"signature_name": "classify", "examples": [{"x": None}]}, 400, "JSON type: Null"),
    "mixed feature": (CLASSIFY, {"signature_name": "classify", "examples": [{"x": [1, "a"]}]}, 400, "element type"),
    "huge integer": (CLASSIFY, {"signature_name": "classify", "examples": [{"x": 2**63}]}, 400, "Only int64"),
    "empty image": (PREDICT, {"instances": [{"b64": ""}]}, 400, "empty"),
    "text for an image": (PREDICT, {"instances": [b64(b"hello")]}, 400, "not an image (text)"),
    "a cut JPEG": (PREDICT, {"instances": [b64(b"\xff\xd8\xff\xe0" + b"\0" * 40)]}, 400, ""),
    "TIFF": (PREDICT, {"instances": [b64(b"II*\0" + b"\0" * 60)]}, 400, "TIFF is not supported"),
    "pixel bomb": (PREDICT, {"instances": [b64(make_bomb())]}, 400, "16000 x 16000 pixels are more than"),
    "large body": (PREDICT, b" " * (2**20 + 1), 413, "The body is larger than 1,048,576 bytes"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_requests(post, case):
    path, body, status, message = MALFORMED[case]
    response = post(path, body)
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    assert message in response.json()["error"]
    assert response.elapsed.total_seconds() < 5


def test_unknown_methods_and_paths(rest):
    assert requests.get(f"{rest}/v1/models", timeout=10).json() == {"error": "Missing model name in request."}
    for method in ("PUT", "DELETE", "GET"):
        response = requests.request(method, rest + PREDICT, timeout=10)
        assert response.status_code == 400
        assert f"Malformed request: {method}" in response.json()["error"]
    assert requests.get(f"{rest}/v1/models/x", timeout=10).status_code == 404
    assert requests.get(f"{rest}/v1/models/photos/versions/9", timeout=10).status_code == 404


def test_one_bad_image_fails_only_its_own_request(post, samples):
    good = {"instances": [b64(samples[0][0])]}
    damaged = {"instances": [b64(samples[0][0][:-60])]}
    with ThreadPoolExecutor(8) as pool:
        codes = [response.status_code for response in pool.map(lambda body: post(PREDICT, body), [good, damaged] * 16)]
    assert codes == [200, 400] * 16


def test_metrics_count_requests(rest, post, samples):
    post(PREDICT, {"instances": [b64(samples[0][0])]})
    post("/v1/models/made-up:predict", {})
    text = requests.get(f"{rest}/monitoring/prometheus/metrics", timeout=10).text
    assert 'tlkeras_requests_total{method="predict",model_name="photos",status="OK"}' in text
    assert "made-up" not in text, "clients must not be able to add labels"
    assert 'tlkeras_version_loaded{model_name="photos",version="1"} 1.0' in text
    assert "tlkeras_batch_rows_bucket" in text


def test_explanation(rest, samples):
    response = requests.post(f"{rest}/explain", data=samples[0][0], timeout=20).json()
    (task,) = response["tasks"]
    assert response["version"] == 1 and task["name"] == "label"
    assert task["label"] == ["day", "night"][int(np.argmax(samples[0][1]))]
    heat = np.array(task["heat"])
    assert heat.shape == (8, 8) and heat.min() >= 0 and heat.max() <= 1
    assert requests.post(f"{rest}/explain", data=b"no image", timeout=20).status_code == 400


def test_page_is_served_with_the_models_name(rest):
    page = requests.get(rest, timeout=10)
    assert page.headers["content-type"].startswith("text/html")
    assert 'const model = "photos";' in page.text
    assert json.loads(requests.get(f"{rest}/v1/models/photos", timeout=10).text)
