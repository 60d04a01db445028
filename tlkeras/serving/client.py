"""Client of a model served by TensorFlow Serving or `tlkeras serve`, over REST or gRPC; REST needs no TensorFlow."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from tlkeras.data.headers import SUPPORTED_FORMATS, ImageError, InvalidImage, detect_format, read_image, to_printable
from tlkeras.data.issues import describe_warnings
from tlkeras.data.transcoding import to_decodable
from tlkeras.errors import ServingError
from tlkeras.inference.results import (
    ClassProbability,
    ImagePrediction,
    PredictionResult,
    find_files,
    list_notes,
    list_unreadable,
)
from tlkeras.lazy_tensorflow import import_tensorflow_quietly
from tlkeras.results import Table
from tlkeras.serving.tensors import JsonObject

_PATH = r"/(?P<name>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?/?"
_CONNECTION = "Is it running? Start one with: tlkeras serve saved_models/NAME"
_REFUSED_IMAGE = (400, 413, "INVALID_ARGUMENT")
"""Statuses that speak of the image that was sent: it cannot be read, or is too large for the server."""


@dataclass(frozen=True)
class ServedVersion:
    """A version that a server knows."""

    version: int
    state: str  # START, LOADING, AVAILABLE, UNLOADING or END
    error_message: str  # the error that ended it; "" if there was none


class Client(AbstractContextManager["Client"]):
    """Client of one model at `http://HOST:8501/v1/models/NAME` for REST, or `grpc://HOST:8500/NAME` for gRPC.

    `/versions/N` or `/labels/L` may follow; without them the newest version is used. A request fails after `timeout`
    seconds. ServingError if the URL has another form.
    """

    def __init__(self, url: str, *, timeout: float = 30.0):
        self.url = url
        self._transport = _connect(url, timeout)

    def predict(self, images: Sequence[str | Path | bytes], signature: str = "serving_default") -> list[JsonObject]:
        """Outputs by name for each image, a file or its bytes, of a signature that takes `image_bytes`.

        Other formats are sent as PNG. ServingError if the server cannot be reached or refuses the request, OSError if a
        file cannot be read, ImageError if it cannot become a PNG.
        """
        if not images:
            return []
        encoded = [_transcode(image if isinstance(image, bytes) else Path(image).read_bytes()) for image in images]
        return self._transport.predict(encoded, signature)

    def extract(self, images: Sequence[str | Path | bytes]) -> np.ndarray:
        """Features of images, float32 [n, d]."""
        return np.array([row["features"] for row in self.predict(images, "features")], np.float32)

    def read_status(self) -> list[ServedVersion]:
        """The versions that the server knows, the newest first."""
        return self._transport.read_status()

    def close(self) -> None:
        self._transport.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def _transcode(data: bytes) -> bytes:
    known = detect_format(data) in SUPPORTED_FORMATS  # of others the server says why it refuses them
    return to_decodable(data, keep=False) if known else data


def _connect(url: str, timeout: float) -> _RestTransport | _GrpcTransport:
    parts = urlsplit(url)
    prefix = {"http": "/v1/models", "https": "/v1/models", "grpc": ""}.get(parts.scheme)
    found = None if prefix is None else re.fullmatch(prefix + _PATH, parts.path)
    if not found or not parts.netloc:
        raise ServingError(
            "This is not the URL of a served model.",
            repr(url),
            "Use http://HOST:8501/v1/models/NAME or grpc://HOST:8500/NAME; /versions/N or /labels/L may follow.",
        )
    if prefix:
        return _RestTransport(url.rstrip("/"), timeout)
    return _GrpcTransport(parts.netloc, found, timeout)


class _RestTransport:
    def __init__(self, url: str, timeout: float):
        import requests

        self._url, self._timeout = url, timeout
        self._session = requests.Session()

    def predict(self, encoded: Sequence[bytes], signature: str) -> list[JsonObject]:
        instances = [{"b64": base64.b64encode(data).decode()} for data in encoded]
        body = {"signature_name": signature, "instances": instances}
        answer = self._request("POST", f"{self._url}:predict", json=body)
        rows = answer.get("predictions") if isinstance(answer, dict) else None
        if not isinstance(rows, list):
            raise ServingError("The server's response has no predictions.", answer, "Is it a model server?")
        return [row if isinstance(row, dict) else {signature: row} for row in rows]

    def read_status(self) -> list[ServedVersion]:
        found = self._request("GET", self._url)["model_version_status"]
        return [
            ServedVersion(int(row["version"]), row["state"], row["status"].get("error_message", "")) for row in found
        ]

    def close(self) -> None:
        self._session.close()

    def _request(self, method: str, url: str, **options: Any) -> Any:
        import requests

        try:
            response = self._session.request(method, url, timeout=self._timeout, **options)
            body = response.json()
        except requests.exceptions.JSONDecodeError:
            raise ServingError("The server's response is not JSON.", f"{response.status_code} from {url}") from None
        except requests.exceptions.RequestException as error:
            reason = str(error).partition("(Caused by ")[2].rstrip(")") or str(error)
            raise ServingError("The server cannot be reached.", f"{url} ({reason})", _CONNECTION) from None
        if response.status_code != 200:
            told = body.get("error", body) if isinstance(body, dict) else body
            raise _make_refusal(response.status_code, told)
        return body


class _GrpcTransport:
    def __init__(self, address: str, path: re.Match[str], timeout: float):
        import_tensorflow_quietly()  # the package of the messages imports it
        import grpc
        from tensorflow_serving.apis import model_pb2, model_service_pb2_grpc, prediction_service_pb2_grpc

        self._spec, self._timeout = model_pb2.ModelSpec(name=path["name"], version_label=path["label"]), timeout
        if path["version"] is not None:
            self._spec.version.value = int(path["version"])
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(address, unlimited)
        self._predict = prediction_service_pb2_grpc.PredictionServiceStub(self._channel).Predict
        self._get_status = model_service_pb2_grpc.ModelServiceStub(self._channel).GetModelStatus

    def predict(self, encoded: Sequence[bytes], signature: str) -> list[JsonObject]:
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest(model_spec=self._spec)
        request.model_spec.signature_name = signature
        request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(np.array(list(encoded), dtype=object)))
        response = self._call(self._predict, request)
        outputs = {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}
        return [{name: _to_json(array[row]) for name, array in outputs.items()} for row in range(len(encoded))]

    def read_status(self) -> list[ServedVersion]:
        from tensorflow_serving.apis import get_model_status_pb2

        found = self._call(self._get_status, get_model_status_pb2.GetModelStatusRequest(model_spec=self._spec))
        states = get_model_status_pb2.ModelVersionStatus.State
        return [
            ServedVersion(row.version, states.Name(row.state), row.status.error_message)
            for row in found.model_version_status
        ]

    def close(self) -> None:
        self._channel.close()

    def _call(self, method: Callable[..., Any], request: Any) -> Any:
        import grpc

        try:
            return method(request, timeout=self._timeout)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAVAILABLE and "connect" in (error.details() or ""):
                raise ServingError("The server cannot be reached.", error.details(), _CONNECTION) from None
            raise _make_refusal(error.code().name, error.details()) from None


def _make_refusal(status: int | str, told: object) -> ServingError:
    return ServingError("The server refused the request.", f"{status} {told}", status=status)


def _to_json(value: Any) -> Any:
    """A row of an output as REST would return it."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def predict_remotely(url: str, images: Sequence[str | Path], *, timeout: float = 30.0) -> PredictionResult:
    """Predictions of a served model for image files and folders.

    Files that cannot be sent, and images that the server refuses, are listed as unreadable, with the reason. URL and
    timeout are as in `Client`. ServingError if the server cannot be reached or fails, or its outputs have no labels.
    """
    paths, rejected = find_files(images)
    found, warnings = [], []
    with Client(url, timeout=timeout) as client:
        for path in paths:
            try:
                encoded = read_image(path)
                (outputs,) = client.predict([encoded])
            except ImageError as error:
                rejected.append(InvalidImage(path, error.code, error.reason))
            except ServingError as error:
                if error.status not in _REFUSED_IMAGE:
                    raise
                rejected.append(InvalidImage(path, "refused", str(error.received)))
            else:
                found.append(_make_prediction(to_printable(path), outputs))
                warnings += list_notes(path, encoded)
    return PredictionResult(url, None, Table(found), list_unreadable(rejected), tuple(describe_warnings(warnings)))


def _make_prediction(path: str, outputs: JsonObject) -> ImagePrediction:
    """The prediction for an image; where there are several tasks, their labels and numbers one after the other."""
    names = sorted(name for name in outputs if name == "label" or name.endswith("_label"))
    alone = "serving_default" if len(outputs) == 1 else None  # REST does not name a signature's only output
    found = [outputs[name] for name in sorted(outputs) if re.fullmatch("(.*_)?value", name) or name == alone]
    values = [float(value) for one in found if np.size(one) == 1 for value in np.ravel(one)]
    numbers = [f"{value:.6g}" for value in values]
    if not names and not numbers:
        raise ServingError("The model's outputs have no label.", ", ".join(outputs), "Was it exported by tlkeras?")
    if not names:
        return ImagePrediction(path=path, label=", ".join(numbers), value=values[0])
    best = tuple(
        ClassProbability(str(outputs[name]), float(max(outputs[name.removesuffix("label") + "probabilities"])))
        for name in names
    )
    labels, probability = tuple(one.label for one in best), best[0].probability
    return ImagePrediction(
        path=path, label=", ".join([*labels, *numbers]), probability=probability, labels=labels, top=best
    )
