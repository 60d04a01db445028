"""TensorFlow Serving's REST interface, metrics for Prometheus, and a page to try a model on."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from tensorflow_serving.apis import get_model_metadata_pb2

from tlkeras.serving import explain, tensors
from tlkeras.serving.handlers import RequestHandler, make_example
from tlkeras.serving.metrics import CONTENT_TYPE
from tlkeras.serving.models import ModelSpec
from tlkeras.serving.status import Code, StatusError, invalid_argument

METRICS_PATH = "/monitoring/prometheus/metrics"
RETRY_SECONDS = 1

_LARGE_BODY = 2**18

# http_rest_api_handler.cc; the order of method and path decides what a wrong request is told.
_ASK = re.compile(
    r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
    r":(?P<method>classify|regress|predict)",
    re.IGNORECASE,
)
_LOOK = re.compile(
    r"/v1/models(?:/(?P<name>[^/:]+))?(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?(?P<metadata>/metadata)?",
    re.IGNORECASE,
)
_LARGEST_VERSION = 2**63 - 1


def make_app(desk: RequestHandler, lifespan: Any = None) -> Starlette:
    """Return the ASGI application."""

    async def answer(request: Request) -> Response:
        try:
            return _reply(await _route(desk, request))
        except StatusError as error:
            return _fail(error)
        except ClientDisconnect:
            return _fail(StatusError(Code.CANCELLED, "The client went away"))

    async def show_metrics(request: Request) -> Response:
        return Response(desk.model.metrics.write(), media_type=CONTENT_TYPE)

    async def show_page(request: Request) -> Response:
        text = (resources.files("tlkeras.serving") / "page.html").read_text(encoding="utf-8")
        return HTMLResponse(text.replace("{{model}}", json.dumps(desk.model.name).replace("<", "\\u003c")))

    async def explain_image(request: Request) -> Response:
        try:
            work = explain.explain(desk, await _read_body(desk, request))
            return _reply(await desk.ask(desk.model.name, "explain", work))
        except StatusError as error:
            return _fail(error)

    routes = [
        Route("/", show_page, methods=["GET"]),
        Route("/explain", explain_image, methods=["POST"]),
        Route(METRICS_PATH, show_metrics, methods=["GET"]),
        Route("/{path:path}", answer, methods=["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


def _reply(answer: Any) -> Response:
    return Response(json.dumps(answer), media_type="application/json")


def _fail(error: StatusError) -> Response:
    headers = {"Retry-After": str(RETRY_SECONDS)} if error.code.http in (429, 503) else None
    return Response(
        json.dumps({"error": error.message}), error.code.http, headers=headers, media_type="application/json"
    )


async def _route(desk: RequestHandler, request: Request) -> Any:
    path = request.url.path
    asked, looked = _ASK.fullmatch(path), _LOOK.fullmatch(path)
    if request.method == "POST" and asked:
        spec, method = _read_spec(asked), asked["method"].lower()
        body = await _read_body(desk, request)
        return await desk.ask(spec.name, method, _METHODS[method](desk, spec, body))
    if request.method == "GET" and looked:
        if looked["name"] is None:
            raise invalid_argument("Missing model name in request.")
        spec = _read_spec(looked)
        method = "metadata" if looked["metadata"] else "status"
        return await desk.ask(spec.name, method, _METHODS[method](desk, spec, b""))
    raise invalid_argument(f"Malformed request: {request.method} {path}")


def _read_spec(found: re.Match[str]) -> ModelSpec:
    number = found["version"]
    if number is not None and (len(number) > 19 or int(number) > _LARGEST_VERSION):
        raise invalid_argument(f"Failed to convert version: {number[:40]} to numeric.")
    return ModelSpec(found["name"], None if number is None else int(number), found["label"])


async def _read_body(desk: RequestHandler, request: Request) -> bytes:
    limits = desk.model.limits
    too_large = StatusError(Code.TOO_LARGE, f"The body is larger than {limits.body:,} bytes")
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > limits.body:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.seconds):
            async for part in request.stream():
                size += len(part)
                if size > limits.body:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise StatusError(Code.DEADLINE_EXCEEDED, "Deadline exceeded while the body was read") from None
    return b"".join(parts)


async def _parse(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body; a large one is read aside, so that others go on being answered."""
    if len(body) < _LARGE_BODY:
        return tensors.parse_object(body)
    return await asyncio.get_running_loop().run_in_executor(None, tensors.parse_object, body)


async def _predict(desk: RequestHandler, spec: ModelSpec, body: bytes) -> dict[str, Any]:
    question = await _parse(body)
    name = tensors.read_signature_name(question)
    version = desk.model.find(spec)
    dtypes = {key: np.dtype(tf.as_dtype(info.dtype).as_numpy_dtype) for key, info in version.find(name).inputs.items()}
    inputs, by_rows = tensors.read_inputs(question, dtypes)
    return tensors.write_outputs(await desk.predict(version, name, inputs), by_rows)


async def _classify(desk: RequestHandler, spec: ModelSpec, body: bytes) -> dict[str, Any]:
    question = await _parse(body)
    name = tensors.read_signature_name(question)
    examples, context = tensors.read_examples(question)
    serialized = [make_example(example, context) for example in examples]
    answers = await desk.classify(desk.model.find(spec), name, serialized)
    return tensors.classification_response(answers["classes"], answers["scores"])


async def _regress(desk: RequestHandler, spec: ModelSpec, body: bytes) -> dict[str, Any]:
    question = await _parse(body)
    raise desk.refuse_regression(desk.model.find(spec), tensors.read_signature_name(question))


async def _show_status(desk: RequestHandler, spec: ModelSpec, body: bytes) -> dict[str, Any]:
    # error_code is an enum of TensorFlow's, written by its name
    return json_format.MessageToDict(
        desk.list_states(spec), preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


async def _show_metadata(desk: RequestHandler, spec: ModelSpec, body: bytes) -> dict[str, Any]:
    response = desk.describe(spec)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    written = json_format.MessageToDict(
        signatures, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    spec_written = {"name": desk.model.name, "signature_name": "", "version": str(response.model_spec.version.value)}
    return {"model_spec": spec_written, "metadata": {"signature_def": written}}


_METHODS: dict[str, Callable[[RequestHandler, ModelSpec, bytes], Awaitable[dict[str, Any]]]] = {
    "predict": _predict,
    "classify": _classify,
    "regress": _regress,
    "status": _show_status,
    "metadata": _show_metadata,
}
