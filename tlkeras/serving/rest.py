"""TensorFlow Serving's REST interface, metrics for Prometheus, and a page to try a model on."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from importlib import resources
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from google.protobuf.message import Message
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from tensorflow_serving.apis import get_model_metadata_pb2

from tlkeras.serving import tensors
from tlkeras.serving.handlers import RequestHandler, explain, make_example
from tlkeras.serving.models import ModelSpec
from tlkeras.serving.status import Code, StatusError, invalid_argument

METRICS_PATH = "/monitoring/prometheus/metrics"
RETRY_SECONDS = 1

_LARGE_BODY = 2**18

# http_rest_api_handler.cc; the order of method and path decides the error of a wrong request.
_PREDICTION_PATH = re.compile(
    r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
    r":(?P<method>classify|regress|predict)",
    re.IGNORECASE,
)
_STATUS_PATH = re.compile(
    r"/v1/models(?:/(?P<name>[^/:]+))?(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?(?P<metadata>/metadata)?",
    re.IGNORECASE,
)
_LARGEST_VERSION = 2**63 - 1


def make_app(handler: RequestHandler, lifespan: Any = None) -> Starlette:

    async def respond(request: Request) -> Response:
        return _json_response(await _route(handler, request))

    async def show_metrics(request: Request) -> Response:
        return Response(handler.model.metrics.format(), media_type=CONTENT_TYPE_LATEST)

    async def show_page(request: Request) -> Response:
        text = (resources.files("tlkeras.serving") / "page.html").read_text(encoding="utf-8")
        return HTMLResponse(text.replace("{{model}}", json.dumps(handler.model.name).replace("<", "\\u003c")))

    async def explain_image(request: Request) -> Response:
        work = explain(handler, await _read_body(handler, request))
        return _json_response((await handler.handle(handler.model.name, "explain", work)).to_dict())

    routes = [
        Route("/", show_page, methods=["GET"]),
        Route("/explain", explain_image, methods=["POST"]),
        Route(METRICS_PATH, show_metrics, methods=["GET"]),
        Route("/{path:path}", respond, methods=["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"]),
    ]
    errors = {StatusError: _respond_with_error, ClientDisconnect: _respond_with_error}
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers=errors)


def _json_response(body: tensors.JsonObject, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(json.dumps(body), status, headers=headers, media_type="application/json")


async def _respond_with_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, StatusError):
        error = StatusError(Code.CANCELLED, "The client went away")
    headers = {"Retry-After": str(RETRY_SECONDS)} if error.code.http in (429, 503) else None
    return _json_response({"error": error.message}, error.code.http, headers)


async def _route(handler: RequestHandler, request: Request) -> tensors.JsonObject:
    path = request.url.path
    prediction, status = _PREDICTION_PATH.fullmatch(path), _STATUS_PATH.fullmatch(path)
    if request.method == "POST" and prediction:
        spec, method = _read_spec(prediction), prediction["method"].lower()
        body = await _read_body(handler, request)
        return await handler.handle(spec.name, method, _METHODS[method](handler, spec, body))
    if request.method == "GET" and status:
        if status["name"] is None:
            raise invalid_argument("Missing model name in request.")
        spec = _read_spec(status)
        method = "metadata" if status["metadata"] else "status"
        return await handler.handle(spec.name, method, _METHODS[method](handler, spec, b""))
    raise invalid_argument(f"Malformed request: {request.method} {path}")


def _read_spec(found: re.Match[str]) -> ModelSpec:
    number = found["version"]
    if number is not None and (len(number) > 19 or int(number) > _LARGEST_VERSION):
        raise invalid_argument(f"Failed to convert version: {number[:40]} to numeric.")
    return ModelSpec(found["name"], None if number is None else int(number), found["label"])


async def _read_body(handler: RequestHandler, request: Request) -> bytes:
    options = handler.model.options
    too_large = StatusError(Code.TOO_LARGE, f"The body is larger than {options.max_body:,} bytes")
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > options.max_body:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(options.timeout):
            async for part in request.stream():
                size += len(part)
                if size > options.max_body:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise StatusError(Code.DEADLINE_EXCEEDED, "Deadline exceeded while the body was read") from None
    return b"".join(parts)


async def _parse(body: bytes) -> tensors.JsonObject:
    """The JSON object of a body; a large one is parsed in a thread, so that other requests are not delayed."""
    if len(body) < _LARGE_BODY:
        return tensors.parse_object(body)
    return await asyncio.get_running_loop().run_in_executor(None, tensors.parse_object, body)


async def _predict(handler: RequestHandler, spec: ModelSpec, body: bytes) -> tensors.JsonObject:
    parsed = await _parse(body)
    name = tensors.read_signature_name(parsed)
    version = handler.model.find(spec)
    dtypes = {key: np.dtype(tf.as_dtype(info.dtype).as_numpy_dtype) for key, info in version.find(name).inputs.items()}
    inputs, by_rows = tensors.read_inputs(parsed, dtypes)
    return tensors.predict_response(await handler.predict(version, name, inputs), by_rows)


async def _classify(handler: RequestHandler, spec: ModelSpec, body: bytes) -> tensors.JsonObject:
    parsed = await _parse(body)
    name = tensors.read_signature_name(parsed)
    examples, context = tensors.read_examples(parsed)
    serialized = [make_example(example, context) for example in examples]
    outputs = await handler.classify(handler.model.find(spec), name, serialized)
    return tensors.classification_response(outputs["classes"], outputs["scores"])


async def _regress(handler: RequestHandler, spec: ModelSpec, body: bytes) -> tensors.JsonObject:
    parsed = await _parse(body)
    handler.regress(handler.model.find(spec), tensors.read_signature_name(parsed))


async def _status(handler: RequestHandler, spec: ModelSpec, body: bytes) -> tensors.JsonObject:
    return _to_json(handler.status(spec))


async def _metadata(handler: RequestHandler, spec: ModelSpec, body: bytes) -> tensors.JsonObject:
    response = handler.metadata(spec)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    described = {"name": handler.model.name, "signature_name": "", "version": str(response.model_spec.version.value)}
    return {"model_spec": described, "metadata": {"signature_def": _to_json(signatures)}}


def _to_json(message: Message) -> tensors.JsonObject:
    """A message as TensorFlow Serving writes it: all fields, enums by their names."""
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


_METHODS: dict[str, Callable[[RequestHandler, ModelSpec, bytes], Awaitable[tensors.JsonObject]]] = {
    "predict": _predict,
    "classify": _classify,
    "regress": _regress,
    "status": _status,
    "metadata": _metadata,
}
