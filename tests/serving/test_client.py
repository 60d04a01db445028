"""The client, over REST and gRPC, and `tlkeras predict --url`: the same predictions, plain errors."""

import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from PIL import Image
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

import tlkeras
from tlkeras.cli.main import main
from tlkeras.errors import ServingError
from tlkeras.serving import Client
from tlkeras.serving.client import ServedVersion


@pytest.fixture(params=["rest", "grpc", "version", "label"])
def url(request, rest, rpc):
    return {
        "rest": f"{rest}/v1/models/photos",
        "grpc": f"grpc://{rpc}/photos",
        "version": f"grpc://{rpc}/photos/versions/1",
        "label": f"{rest}/v1/models/photos/labels/stable",
    }[request.param]


def test_client_predicts_as_the_run_did(url, samples):
    encoded, expected = zip(*samples, strict=True)
    with Client(url) as client:
        rows = client.predict(encoded)
        features = client.extract(encoded[:2])
        assert client.read_status() == [ServedVersion(1, "AVAILABLE", "")]
    np.testing.assert_allclose([row["probabilities"] for row in rows], expected, atol=1e-4)
    assert [row["label"] for row in rows] == [["day", "night"][int(np.argmax(p))] for p in expected]
    assert features.shape[0] == 2 and features.dtype == np.float32


def test_refusals_have_the_servers_message(rest, rpc):
    for url in (f"{rest}/v1/models/photos", f"grpc://{rpc}/photos"):
        with Client(url) as client, pytest.raises(ServingError, match="The server refused the request.*not an image"):
            client.predict([b"hello"])
    for url in (f"{rest}/v1/models/x", f"grpc://{rpc}/x"):
        with Client(url) as client, pytest.raises(ServingError, match="Servable not found for request"):
            client.predict([b"hello"])


def test_servers_that_do_not_exist():
    for url in ("http://127.0.0.1:9/v1/models/x", "grpc://127.0.0.1:9/x"):
        with Client(url, timeout=5) as client, pytest.raises(ServingError, match="cannot be reached.*tlkeras serve"):
            client.predict([b"x"])


@pytest.mark.parametrize(
    "url", ["", "localhost:8501", "http://localhost:8501", "ftp://x/y", "http://h/v1/models/a:predict"]
)
def test_urls_of_another_form(url):
    with pytest.raises(ServingError, match="not the URL of a served model"):
        Client(url)


def test_rest_imports_no_tensorflow():
    code = "import sys, tlkeras; tlkeras.predict_remotely\n"
    code += "from tlkeras.serving import Client; Client('http://h/v1/models/m')\n"
    code += "print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"tensorflow", "keras"} & set(done.stdout.split())


def test_official_stubs(rpc, samples):
    data, expected = samples[0]
    with grpc.insecure_channel(rpc) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        status = model_service_pb2_grpc.ModelServiceStub(channel)
        request = predict_pb2.PredictRequest(output_filter=["label"])
        request.model_spec.name = "photos"
        request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([data]))
        response = stub.Predict(request, timeout=20)
        assert list(response.outputs) == ["label"] and response.model_spec.version.value == 1
        classify = classification_pb2.ClassificationRequest()
        classify.model_spec.name, classify.model_spec.signature_name = "photos", "classify"
        classify.input.example_list.examples.add().features.feature["image/encoded"].bytes_list.value.append(data)
        best = stub.Classify(classify, timeout=20).result.classifications[0].classes[0]
        assert best.score == pytest.approx(max(expected), abs=1e-4)
        assert best.label.encode() == tf.make_ndarray(response.outputs["label"])[0]
        several = inference_pb2.MultiInferenceRequest(input=classify.input)
        several.tasks.add(model_spec=classify.model_spec, method_name="tensorflow/serving/classify")
        (result,) = stub.MultiInference(several, timeout=20).results
        assert result.classification_result.classifications[0].classes[0] == best
        metadata = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        metadata.model_spec.name = "photos"
        found = get_model_metadata_pb2.SignatureDefMap()
        assert stub.GetModelMetadata(metadata, timeout=20).metadata["signature_def"].Unpack(found)
        assert "features" in found.signature_def
        with pytest.raises(grpc.RpcError) as raised:
            status.HandleReloadConfigRequest(model_management_pb2.ReloadConfigRequest(), timeout=20)
        assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED


def spoil(change):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "photos"
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([b"x"]))
    change(request)
    return request


MALFORMED = {
    "no name": (lambda r: r.model_spec.ClearField("name"), "INVALID_ARGUMENT", "ModelSpec has no name specified."),
    "no such model": (lambda r: setattr(r.model_spec, "name", "x"), "NOT_FOUND", "Latest(x)"),
    "no such version": (lambda r: setattr(r.model_spec.version, "value", 9), "NOT_FOUND", "Specific(photos, 9)"),
    "no such signature": (lambda r: setattr(r.model_spec, "signature_name", "x"), "INVALID_ARGUMENT", "not found"),
    "no inputs": (lambda r: r.inputs.clear(), "INVALID_ARGUMENT", "Missing but required: {image_bytes}"),
    "wrong dtype": (
        lambda r: r.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([1.0])),
        "INVALID_ARGUMENT",
        "to be string but float32 is provided",
    ),
    "wrong rank": (
        lambda r: r.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([[b"x"]])),
        "INVALID_ARGUMENT",
        "has shape [1,1], expected [?]",
    ),
    "shape that lies": (
        lambda r: r.inputs["image_bytes"].tensor_shape.dim.add(size=10**9),
        "INVALID_ARGUMENT",
        "more than 1,048,576 elements",
    ),
    "no such output": (lambda r: r.output_filter.append("x"), "INVALID_ARGUMENT", "not found in signature: x"),
    "no image": (lambda r: None, "INVALID_ARGUMENT", "Image 0: "),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_calls(rpc, case):
    change, code, message = MALFORMED[case]
    with grpc.insecure_channel(rpc) as channel, pytest.raises(grpc.RpcError) as raised:
        prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(spoil(change), timeout=20)
    assert raised.value.code().name == code, raised.value.details()
    assert message in raised.value.details()


def test_predict_with_a_url(rest, trained, tmp_path):
    image = trained / "samples/00"
    (tmp_path / "bad.png").write_text("no image")
    arguments = ["predict", "--url", f"{rest}/v1/models/photos", str(image), str(tmp_path), "--json"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 3, done.output
    result = json.loads(done.stdout)
    assert result["predictions"][0]["label"] in ("day", "night")
    assert "not an image (text)" in result["unreadable"][0]["reason"]
    done = CliRunner().invoke(main, ["predict", "--url", "http://127.0.0.1:9/v1/models/x", str(image)])
    assert done.exit_code == 9 and "cannot be reached" in done.stderr


DEAD = "http://127.0.0.1:{}/v1/models/{}"


@pytest.mark.parametrize(
    ("port", "name", "way"),
    [
        (8400, "m", DEAD),
        (8411, "m", DEAD),
        (9, "INVALID_ARGUMENT-400", DEAD),
        (8400, "model400", "grpc://127.0.0.1:{}/{}"),
    ],
)
def test_a_dead_server_is_no_unreadable_image(trained, port, name, way):
    image = next((trained.parent.parent / "photos/day").iterdir())
    done = CliRunner().invoke(main, ["predict", "--url", way.format(port, name), str(image)])
    assert done.exit_code == 9, done.output
    assert "The server cannot be reached" in done.stderr and "could not be read" not in done.stdout


@contextmanager
def answering(status, body):
    """The URL of a model on a server that answers everything alike."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield DEAD.format(server.server_port, "m")
    server.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "code", "said"),
    [
        (400, b'{"error": "Image 0: not an image"}', 3, "400 Image 0: not an image"),
        (413, b'{"error": "too large"}', 3, "413 too large"),
        (500, b'{"error": "400 INVALID_ARGUMENT"}', 9, "500 400 INVALID_ARGUMENT"),
        (503, b'{"error": "model m-400 is loading"}', 9, "503 model m-400 is loading"),
        (404, b'["400"]', 9, "404 ['400']"),
        (400, b"<html>plain HTTP sent to an HTTPS port</html>", 9, "is not JSON. Received: 400 from"),
        (200, b'{"answer": 400}', 9, "has no predictions"),
        (200, b"[400]", 9, "has no predictions"),
    ],
)
def test_only_a_refused_image_is_unreadable(trained, status, body, code, said):
    image = next((trained.parent.parent / "photos/day").iterdir())
    with answering(status, body) as url:
        done = CliRunner().invoke(main, ["predict", "--url", url, str(image)])
    assert done.exit_code == code, done.output
    assert said in " ".join(done.output.split())


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([7.25], {"label": "7.25", "value": 7.25}),
        ({"value": [0.5]}, {"label": "0.5", "value": 0.5}),
        ({"age_value": [41.0], "mass_value": [2.5]}, {"label": "41, 2.5", "value": 41.0}),
        (
            {"kind_label": "cat", "kind_probabilities": [0.9, 0.1], "age_value": [3.0]},
            {"label": "cat, 3", "probability": 0.9},
        ),
    ],
)
def test_numbers_are_predictions(trained, row, said):
    image = next((trained.parent.parent / "photos/day").iterdir())
    with answering(200, json.dumps({"predictions": [row]}).encode()) as url:
        done = CliRunner().invoke(main, ["predict", "--url", url, str(image), "--json"])
        shown = CliRunner().invoke(main, ["predict", "--url", url, str(image)])
    assert done.exit_code == shown.exit_code == 0, done.output
    assert said.items() <= json.loads(done.stdout)["predictions"][0].items() and said["label"] in shown.stdout


def test_a_folder_is_listed_as_a_run_lists_it(rest, trained, tmp_path):
    image = Image.open(next((trained.parent.parent / "photos/day").iterdir()))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    image.save(tmp_path / "scan.tif")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(tmp_path / "pipe.png")
    done = CliRunner().invoke(main, ["predict", "--url", f"{rest}/v1/models/photos", str(tmp_path), "x.png", "--json"])
    assert done.exit_code == 3, done.output
    found, local = json.loads(done.stdout), tlkeras.predict(str(trained), [tmp_path])
    codes = {os.path.basename(one["path"]): one["code"] for one in found["unreadable"]}
    assert codes.pop("x.png") == "missing" and codes.pop("text.png") == "refused"
    assert {**codes, "text.png": "not-an-image"} == {os.path.basename(one.path): one.code for one in local.unreadable}
    assert found["notes"] == list(local.notes) and "orientation 6 of a PNG is not applied" in found["notes"][0]
