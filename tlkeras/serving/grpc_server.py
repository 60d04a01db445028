"""TensorFlow Serving's gRPC interface, with its own protos."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf.message import Message
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc
from tensorflow_serving.apis.classification_pb2 import ClassificationResponse, ClassificationResult
from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataResponse
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusResponse
from tensorflow_serving.apis.inference_pb2 import MultiInferenceResponse
from tensorflow_serving.apis.model_pb2 import ModelSpec as ModelSpecMessage
from tensorflow_serving.apis.predict_pb2 import PredictResponse

from tlkeras.exporting.signatures import CLASSIFY
from tlkeras.serving.handlers import RequestHandler
from tlkeras.serving.models import DEFAULT_SIGNATURE, ModelSpec, Version
from tlkeras.serving.status import Code, StatusError, invalid_argument

_STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}


def make_grpc_server(handler: RequestHandler, address: str) -> tuple[grpc.aio.Server, int]:
    """A server on HOST:PORT, not yet started, and its port; RuntimeError if the port is taken."""
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", handler.model.options.max_body),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ],
        maximum_concurrent_rpcs=handler.model.options.max_requests,
    )
    service = _Service(handler)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(service, server)
    return server, server.add_insecure_port(address)


def _method(name: str, work: Callable[[_Service, Any], Awaitable[Message]]) -> Any:

    async def respond(service: _Service, request: Any, context: grpc.aio.ServicerContext) -> Any:
        model = request.model_spec.name if hasattr(request, "model_spec") else ""
        try:
            return await service.handler.handle(model, name, work(service, request))
        except StatusError as error:
            await context.abort(_STATUS_CODES[error.code.number], error.message)

    return respond


class _Service(prediction_service_pb2_grpc.PredictionServiceServicer, model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, handler: RequestHandler):
        self.handler = handler

    async def _predict(self, request: Any) -> PredictResponse:
        version, signature = self._find(request.model_spec)
        limit = self.handler.model.options.max_body
        inputs = {name: _read_tensor(name, tensor, limit) for name, tensor in request.inputs.items()}
        outputs = await self.handler.predict(version, signature, inputs, list(request.output_filter))
        response = PredictResponse(model_spec=self._describe_model(version, signature))
        for name, array in outputs.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(array))
        return response

    async def _classify(self, request: Any) -> ClassificationResponse:
        version, signature = self._find(request.model_spec)
        result = await self._rank_classes(version, signature, request.input)
        spec = self._describe_model(version, signature)
        return ClassificationResponse(model_spec=spec, result=result)

    async def _rank_classes(self, version: Version, signature: str, examples: Any) -> ClassificationResult:
        outputs = await self.handler.classify(version, signature, _read_examples(examples))
        result = ClassificationResult()
        for classes, scores in zip(outputs["classes"].tolist(), outputs["scores"].tolist(), strict=True):
            row = result.classifications.add()
            for label, score in zip(classes, scores, strict=True):
                row.classes.add(label=label.decode("utf-8", "replace"), score=score)
        return result

    async def _regress(self, request: Any) -> NoReturn:
        self.handler.regress(*self._find(request.model_spec))

    async def _infer(self, request: Any) -> MultiInferenceResponse:
        if not request.tasks:
            raise invalid_argument("Inference request must have at least one task.")
        response = MultiInferenceResponse()
        for task in request.tasks:
            version, signature = self._find(task.model_spec)
            if task.method_name != CLASSIFY:
                raise StatusError(Code.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}")
            result = await self._rank_classes(version, signature, request.input)
            response.results.add(model_spec=self._describe_model(version, signature), classification_result=result)
        return response

    async def _metadata(self, request: Any) -> GetModelMetadataResponse:
        unknown = [field for field in request.metadata_field if field != "signature_def"]
        if unknown:
            raise invalid_argument(f"Metadata field {unknown[0]} is not supported")
        if not request.metadata_field:
            raise invalid_argument("Metadata_field is empty.")
        return self.handler.metadata(_read_spec(request.model_spec))

    async def _status(self, request: Any) -> GetModelStatusResponse:
        return self.handler.status(_read_spec(request.model_spec))

    async def _reload(self, request: Any) -> NoReturn:
        raise StatusError(Code.UNIMPLEMENTED, "This server serves one model; start another one for another.")

    def _find(self, spec: ModelSpecMessage) -> tuple[Version, str]:
        return self.handler.model.find(_read_spec(spec)), spec.signature_name

    def _describe_model(self, version: Version, signature: str) -> ModelSpecMessage:
        name = self.handler.model.name
        spec = ModelSpecMessage(name=name, signature_name=signature or DEFAULT_SIGNATURE)
        spec.version.value = version.number
        return spec

    Predict, Classify = _method("predict", _predict), _method("classify", _classify)
    Regress, MultiInference = _method("regress", _regress), _method("multi_inference", _infer)
    GetModelMetadata, GetModelStatus = _method("metadata", _metadata), _method("status", _status)
    HandleReloadConfigRequest = _method("reload", _reload)


def _read_spec(spec: ModelSpecMessage) -> ModelSpec:
    if not spec.name:
        raise invalid_argument("ModelSpec has no name specified.")
    version = spec.version.value if spec.HasField("version") else None
    return ModelSpec(spec.name, version, spec.version_label or None)


def _read_tensor(name: str, tensor: Any, limit: int) -> np.ndarray:
    """A tensor as an array; one value that stands for more than `limit` elements is refused."""
    if math.prod(max(dim.size, 0) for dim in tensor.tensor_shape.dim) > limit:
        raise invalid_argument(f"Tensor {name} has more than {limit:,} elements")
    try:
        return tf.make_ndarray(tensor)
    except (TypeError, ValueError) as error:
        raise invalid_argument(f"Tensor {name} cannot be read: {error}") from None


def _read_examples(examples: Any) -> list[bytes]:
    if examples.HasField("example_list"):
        return [example.SerializeToString() for example in examples.example_list.examples]
    if not examples.HasField("example_list_with_context"):
        raise invalid_argument("Input is empty.")
    shared = examples.example_list_with_context.context
    merged = []
    for example in examples.example_list_with_context.examples:
        whole = tf.train.Example()
        whole.MergeFrom(shared)
        for name, feature in example.features.feature.items():
            whole.features.feature[name].CopyFrom(feature)
        merged.append(whole.SerializeToString())
    return merged
