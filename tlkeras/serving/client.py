"""Asking a model that is served, by TensorFlow Serving or by `tlkeras serve`, over REST or gRPC; without TensorFlow."""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np

from tlkeras.errors import ServingError

Image = str | Path | bytes
"""A file, or the bytes of one."""

_CONNECTION = "Is it running? Start one with: tlkeras serve saved_models/NAME"


class Client:
    """Asks one model.

    Args:
        url: `http://HOST:8501/v1/models/NAME` for REST, `grpc://HOST:8500/NAME` for gRPC. `/versions/N` or `/labels/L`
            may follow; without them the newest version answers.
        timeout: Seconds until an answer is given up.

    Raises:
        ServingError: The URL is not of this form.
    """

    def __init__(self, url: str, *, timeout: float = 30.0):
        self.url = url
        self._wire = _connect(url, timeout)

    def predict(self, images: Sequence[Image], signature: str = "serving_default") -> list[dict[str, Any]]:
        """Return what a signature that takes `image_bytes` answers about each image, by name of output.

        Raises:
            ServingError: The server cannot be reached, or refuses; its own words are told.
            OSError: A file cannot be read.
        """
        if not images:
            return []
        encoded = [image if isinstance(image, bytes) else Path(image).read_bytes() for image in images]
        return self._wire.predict(encoded, signature)

    def extract(self, images: Sequence[Image]) -> np.ndarray:
        """Return the features of images, float32 [n, d]."""
        rows = self.predict(images, "features")
        return np.array([row["features"] for row in rows], np.float32)

    def read_status(self) -> list[dict[str, Any]]:
        """Return `version`, `state` and `error_message` of each version that the server knows, the newest first."""
        return self._wire.read_status()

    def close(self) -> None:
        """Let go of the connection."""
        self._wire.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Transport(Protocol):
    def predict(self, encoded: Sequence[bytes], signature: str) -> list[dict[str, Any]]: ...

    def read_status(self) -> list[dict[str, Any]]: ...

    def close(self) -> None: ...


_PATHS = {
    "http": r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?/?",
    "grpc": r"/(?P<name>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?/?",
}


def _connect(url: str, timeout: float) -> _Transport:
    parts = urlsplit(url)
    kind = {"http": "http", "https": "http", "grpc": "grpc"}.get(parts.scheme, "")
    found = re.fullmatch(_PATHS.get(kind, "(?!)"), parts.path)
    if not found or not parts.netloc:
        raise ServingError(
            "The URL of a model is http://HOST:8501/v1/models/NAME or grpc://HOST:8500/NAME.",
            repr(url),
            "/versions/N or /labels/L may follow.",
        )
    if kind == "http":
        return _Rest(url.rstrip("/"), timeout)
    version = None if found["version"] is None else int(found["version"])
    return _Rpc(parts.netloc, (found["name"], version, found["label"]), timeout)


class _Rest:
    def __init__(self, url: str, timeout: float):
        import requests

        self._url, self._timeout = url, timeout
        self._session = requests.Session()

    def predict(self, encoded: Sequence[bytes], signature: str) -> list[dict[str, Any]]:
        instances = [{"b64": base64.b64encode(data).decode()} for data in encoded]
        body = {"signature_name": signature, "instances": instances}
        rows = self._ask("POST", f"{self._url}:predict", json=body)["predictions"]
        return [row if isinstance(row, dict) else {signature: row} for row in rows]

    def read_status(self) -> list[dict[str, Any]]:
        found = self._ask("GET", self._url)["model_version_status"]
        return [_tell(int(row["version"]), row["state"], row["status"].get("error_message", "")) for row in found]

    def close(self) -> None:
        self._session.close()

    def _ask(self, method: str, url: str, **options: Any) -> Any:
        import requests

        try:
            response = self._session.request(method, url, timeout=self._timeout, **options)
            answer = response.json()
        except requests.exceptions.JSONDecodeError:
            raise ServingError("A server must answer with JSON.", f"{response.status_code} from {url}") from None
        except requests.exceptions.RequestException as error:
            raise ServingError("The server must be reachable.", f"{url} ({_shorten(error)})", _CONNECTION) from None
        if response.status_code != 200:
            raise ServingError("The server refused.", f"{response.status_code} {answer.get('error', answer)}")
        return answer


class _Rpc:
    def __init__(self, address: str, spec: tuple[str, int | None, str | None], timeout: float):
        import grpc

        from tlkeras.serving.protos import load_messages

        self._spec, self._timeout, self._messages = spec, timeout, load_messages()
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(address, unlimited)

    def predict(self, encoded: Sequence[bytes], signature: str) -> list[dict[str, Any]]:
        from tlkeras.serving.protos import read_tensor, write_tensor

        request = self._messages.PredictRequest()
        self._fill(request.model_spec)
        request.model_spec.signature_name = signature
        entry = request.inputs.add(key="image_bytes")
        write_tensor(np.array([*encoded, None], dtype=object)[:-1], entry.value)
        response = self._ask("PredictionService/Predict", request, self._messages.PredictResponse)
        outputs = {entry.key: read_tensor(entry.value) for entry in response.outputs}
        return [{name: _simplify(array[row]) for name, array in outputs.items()} for row in range(len(encoded))]

    def read_status(self) -> list[dict[str, Any]]:
        request = self._messages.GetModelStatusRequest()
        self._fill(request.model_spec)
        found = self._ask("ModelService/GetModelStatus", request, self._messages.GetModelStatusResponse)
        names = {0: "UNKNOWN", 10: "START", 20: "LOADING", 30: "AVAILABLE", 40: "UNLOADING", 50: "END"}
        return [
            _tell(row.version, names.get(row.state, "UNKNOWN"), row.status.error_message)
            for row in found.model_version_status
        ]

    def close(self) -> None:
        self._channel.close()

    def _fill(self, spec: Any) -> None:
        name, version, label = self._spec
        spec.name = name
        if version is not None:
            spec.version.value = version
        if label is not None:
            spec.version_label = label

    def _ask(self, method: str, request: Any, answer: Any) -> Any:
        import grpc

        call = self._channel.unary_unary(
            f"/tensorflow.serving.{method}", type(request).SerializeToString, answer.FromString
        )
        try:
            return call(request, timeout=self._timeout)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAVAILABLE and "connect" in (error.details() or ""):
                raise ServingError("The server must be reachable.", error.details(), _CONNECTION) from None
            raise ServingError("The server refused.", f"{error.code().name} {error.details()}") from None


def _tell(version: int, state: str, message: str) -> dict[str, Any]:
    return {"version": version, "state": state, "error_message": message}


def _simplify(value: Any) -> Any:
    """Return a row of an answer as JSON would give it."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def _shorten(error: Exception) -> str:
    return str(error).partition("(Caused by ")[2].rstrip(")") or str(error)


def predict_remotely(url: str, images: Sequence[str | Path], *, timeout: float = 30.0) -> dict[str, Any]:
    """What a served model says of image files and folders, in the form of `tlkeras.inference.predict.predict`.

    Images that the server refuses are listed as unreadable, with its reason.

    Raises:
        ServingError: The server cannot be reached, or does not answer with labels.
    """
    found, unreadable = [], []
    with Client(url, timeout=timeout) as client:
        for path in _expand([str(image) for image in images]):
            try:
                (answer,) = client.predict([path])
            except OSError as error:
                unreadable.append({"path": path, "reason": error.strerror or str(error)})
            except ServingError as error:
                if "400" not in str(error.received) and "INVALID_ARGUMENT" not in str(error.received):
                    raise
                unreadable.append({"path": path, "reason": str(error.received)})
            else:
                found.append(_describe(path, answer))
    return {"run": url, "threshold": None, "predictions": found, "unreadable": unreadable}


def _expand(images: Sequence[str]) -> list[str]:
    paths: list[str] = []
    for image in images:
        if os.path.isdir(image):
            paths += sorted(str(path) for path in Path(image).rglob("*") if path.is_file() and path.name[0] != ".")
        else:
            paths.append(image)
    return paths


def _describe(path: str, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return one row of a prediction; where there are several tasks, their labels and numbers one after the other."""
    labels = [name for name in answer if name == "label" or name.endswith("_label")]
    if not labels:
        raise ServingError("A model must answer with a label.", ", ".join(answer), "Was it exported by tlkeras?")
    best = [
        {"label": str(answer[name]), "probability": float(max(answer[name.removesuffix("label") + "probabilities"]))}
        for name in sorted(labels)
    ]
    numbers = [f"{float(np.ravel(answer[name])[0]):.6g}" for name in sorted(answer) if name.endswith("_value")]
    return {
        "path": path,
        "label": ", ".join([*(str(row["label"]) for row in best), *numbers]),
        "probability": best[0]["probability"],
        "labels": [str(row["label"]) for row in best],
        "top": best,
    }
