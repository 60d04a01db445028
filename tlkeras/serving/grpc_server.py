"""TensorFlow Serving's gRPC interface, with its own protos."""

from __future__ import annotations

import math
from collections.abc import Awaitable
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    inference_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tlkeras.serving.handlers import RequestHandler, name_signature
from tlkeras.serving.models import ModelSpec
from tlkeras.serving.status import Code, StatusError, invalid_argument

_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}


def make_server(desk: RequestHandler, address: str) -> tuple[grpc.aio.Server, int]:
    """Return a server that listens on HOST:PORT once it is started, and the port.

    Raises:
        RuntimeError: The port is taken.
    """
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", desk.model.limits.body),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ],
        maximum_concurrent_rpcs=desk.model.limits.concurrency,
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Prediction(desk), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Status(desk), server)
    return server, server.add_insecure_port(address)


def _read_spec(spec: model_pb2.ModelSpec) -> ModelSpec:
    if not spec.name:
        raise invalid_argument("ModelSpec has no name specified.")
    version = spec.version.value if spec.HasField("version") else None
    return ModelSpec(spec.name, version, spec.version_label or None)


def _read_tensor(name: str, tensor: Any, most: int) -> np.ndarray:
    """Return a tensor as an array; one value that stands for more than a body could hold is refused."""
    if math.prod(max(dim.size, 0) for dim in tensor.tensor_shape.dim) > most:
        raise invalid_argument(f"Tensor {name} has more than {most:,} elements")
    try:
        return tf.make_ndarray(tensor)
    except (TypeError, ValueError) as error:
        raise invalid_argument(f"Tensor {name} cannot be read: {error}") from None


async def _answer(
    desk: RequestHandler, context: grpc.aio.ServicerContext, name: str, method: str, work: Awaitable[Any]
) -> Any:
    try:
        return await desk.ask(name, method, work)
    except StatusError as error:
        await context.abort(_BY_NUMBER[error.code.number], error.message)


class _Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, desk: RequestHandler):
        self._desk = desk

    async def Predict(self, request: Any, context: grpc.aio.ServicerContext) -> Any:  # noqa: N802
        return await _answer(self._desk, context, request.model_spec.name, "predict", self._predict(request))

    async def Classify(self, request: Any, context: grpc.aio.ServicerContext) -> Any:  # noqa: N802
        return await _answer(self._desk, context, request.model_spec.name, "classify", self._classify(request))

    async def Regress(self, request: Any, context: grpc.aio.ServicerContext) -> Any:  # noqa: N802
        return await _answer(self._desk, context, request.model_spec.name, "regress", self._regress(request))

    async def MultiInference(self, request: Any, context: grpc.aio.ServicerContext) -> Any:  # noqa: N802
        return await _answer(self._desk, context, "", "multi_inference", self._infer(request))

    async def GetModelMetadata(self, request: Any, context: grpc.aio.ServicerContext) -> Any:  # noqa: N802
        return await _answer(self._desk, context, request.model_spec.name, "metadata", self._describe(request))

    async def _predict(self, request: Any) -> Any:
        version = self._desk.model.find(_read_spec(request.model_spec))
        signature = request.model_spec.signature_name
        most = self._desk.model.limits.body
        inputs = {name: _read_tensor(name, tensor, most) for name, tensor in request.inputs.items()}
        outputs = await self._desk.predict(version, signature, inputs, list(request.output_filter))
        response = predict_pb2.PredictResponse()
        self._sign(response.model_spec, version.number, signature)
        for name, array in outputs.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(array))
        return response

    async def _classify(self, request: Any) -> Any:
        version = self._desk.model.find(_read_spec(request.model_spec))
        response = classification_pb2.ClassificationResponse()
        signature = request.model_spec.signature_name
        self._sign(response.model_spec, version.number, signature)
        response.result.CopyFrom(await self._rank(version, signature, request.input))
        return response

    async def _rank(self, version: Any, signature: str, given: Any) -> Any:
        answers = await self._desk.classify(version, signature, _read_examples(given))
        result = classification_pb2.ClassificationResult()
        for classes, scores in zip(answers["classes"].tolist(), answers["scores"].tolist(), strict=True):
            row = result.classifications.add()
            for label, score in zip(classes, scores, strict=True):
                row.classes.add(label=label.decode("utf-8", "replace"), score=score)
        return result

    async def _regress(self, request: Any) -> Any:
        version = self._desk.model.find(_read_spec(request.model_spec))
        raise self._desk.refuse_regression(version, request.model_spec.signature_name)

    async def _infer(self, request: Any) -> Any:
        if not request.tasks:
            raise invalid_argument("Inference request must have at least one task.")
        response = inference_pb2.MultiInferenceResponse()
        for task in request.tasks:
            version = self._desk.model.find(_read_spec(task.model_spec))
            signature = task.model_spec.signature_name
            if task.method_name != "tensorflow/serving/classify":
                raise StatusError(Code.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}")
            result = response.results.add()
            self._sign(result.model_spec, version.number, signature)
            result.classification_result.CopyFrom(await self._rank(version, signature, request.input))
        return response

    async def _describe(self, request: Any) -> get_model_metadata_pb2.GetModelMetadataResponse:
        unknown = [field for field in request.metadata_field if field != "signature_def"]
        if unknown or not request.metadata_field:
            raise invalid_argument(
                f"Metadata field {unknown[0]} is not supported" if unknown else "Metadata_field is empty."
            )
        return self._desk.describe(_read_spec(request.model_spec))

    def _sign(self, spec: model_pb2.ModelSpec, number: int, signature: str) -> None:
        spec.name, spec.signature_name = self._desk.model.name, name_signature(signature)
        spec.version.value = number


def _read_examples(given: Any) -> list[bytes]:
    """Return the serialized examples of an input, each with what all share."""
    if given.HasField("example_list"):
        return [example.SerializeToString() for example in given.example_list.examples]
    if not given.HasField("example_list_with_context"):
        raise invalid_argument("Input is empty.")
    shared = given.example_list_with_context.context
    merged = []
    for example in given.example_list_with_context.examples:
        whole = tf.train.Example()
        whole.MergeFrom(shared)
        for name, feature in example.features.feature.items():
            whole.features.feature[name].CopyFrom(feature)
        merged.append(whole.SerializeToString())
    return merged


class _Status(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, desk: RequestHandler):
        self._desk = desk

    async def GetModelStatus(self, request: Any, context: grpc.aio.ServicerContext) -> Any:  # noqa: N802
        async def work() -> Any:
            return self._desk.list_states(_read_spec(request.model_spec))

        return await _answer(self._desk, context, request.model_spec.name, "status", work())

    async def HandleReloadConfigRequest(self, request: Any, context: grpc.aio.ServicerContext) -> Any:  # noqa: N802
        async def work() -> Any:
            raise StatusError(Code.UNIMPLEMENTED, "This server serves one model; start another one for another.")

        return await _answer(self._desk, context, "", "reload", work())
