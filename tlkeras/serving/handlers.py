"""TensorFlow Serving's methods behind both interfaces: predict, classify, metadata and status."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence
from typing import NoReturn, TypeVar

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from tlkeras.exporting.loaded_model import Signature
from tlkeras.exporting.signatures import CLASSIFY
from tlkeras.serving.models import Model, ModelSpec, Version
from tlkeras.serving.status import Code, StatusError, invalid_argument, translate
from tlkeras.serving.tensors import FeatureLists

ResponseT = TypeVar("ResponseT")


class RequestHandler:
    """Handles requests to a model, counts them and enforces the limits."""

    def __init__(self, model: Model):
        self.model = model

    async def handle(self, name: str, method: str, work: Awaitable[ResponseT]) -> ResponseT:
        """The response that `work` gives; StatusError if it fails, or too many requests are in progress."""
        started, code = time.perf_counter(), Code.OK
        model = name if name == self.model.name else "unknown"  # clients must not create labels in Prometheus
        request, running = object(), self.model.running
        running.add(request)
        self.model.metrics.running.set(len(running))
        try:
            if len(running) > self.model.options.max_requests:
                asyncio.ensure_future(work).cancel()
                raise StatusError(Code.UNAVAILABLE, "Too many concurrent requests")
            return await work
        except asyncio.CancelledError:
            code = Code.CANCELLED
            raise
        except Exception as error:
            translated = translate(error)
            code = translated.code
            raise translated from None
        finally:
            running.discard(request)
            self.model.metrics.running.set(len(running))
            self.model.metrics.observe_request(model, method, code.name, time.perf_counter() - started)

    async def predict(
        self, version: Version, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] = ()
    ) -> dict[str, np.ndarray]:
        """Outputs of a signature by name; all, or those that are named."""
        known = version.find(signature).outputs
        unknown = [name for name in outputs if name not in known]
        if unknown:
            raise invalid_argument(
                f"output tensor alias not found in signature: {unknown[0]} Outputs expected to be in the set"
                f" {{{','.join(sorted(known))}}}."
            )
        arrays = await self.model.run(version, signature, inputs)
        return {name: arrays[name] for name in outputs} if outputs else arrays

    async def classify(self, version: Version, signature: str, examples: Sequence[bytes]) -> dict[str, np.ndarray]:
        """Outputs of a signature of the method classify for serialized tf.Examples."""
        found = version.find(signature)
        if found.method != CLASSIFY:
            raise _wrong_method("classification", CLASSIFY, found)
        if not examples:
            raise invalid_argument("Input is empty.")
        (name,) = found.inputs
        return await self.model.run(version, signature, {name: np.array(list(examples), dtype=object)})

    def regress(self, version: Version, signature: str) -> NoReturn:
        """Raise a StatusError: no export has a signature of the method regress."""
        raise _wrong_method("regression", "tensorflow/serving/regress", version.find(signature))

    def metadata(self, spec: ModelSpec) -> get_model_metadata_pb2.GetModelMetadataResponse:
        version = self.model.find(spec)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = self.model.name
        response.model_spec.version.value = version.number
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for name, definition in version.loaded.definitions.items():
            signatures.signature_def[name].CopyFrom(definition)
        response.metadata["signature_def"].Pack(signatures)
        return response

    def status(self, spec: ModelSpec) -> get_model_status_pb2.GetModelStatusResponse:
        response = get_model_status_pb2.GetModelStatusResponse()
        states = get_model_status_pb2.ModelVersionStatus.State
        for number, state in self.model.list_states(spec).items():
            status = response.model_version_status.add(version=number, state=states.Value(state.name))
            status.status.error_code = state.code.number
            status.status.error_message = state.message
        return response


def _wrong_method(kind: str, method: str, found: Signature) -> StatusError:
    return invalid_argument(f"Expected {kind} signature method_name to be {method}. Was: {found.method}")


def make_example(features: FeatureLists, context: FeatureLists) -> bytes:
    """A serialized tf.Example of its own features and shared ones; StatusError if an integer does not fit 64 bits."""
    example = tf.train.Example()
    for name, values in {**context, **features}.items():
        feature = example.features.feature[name]
        if not values:
            continue
        lists = {bytes: feature.bytes_list, float: feature.float_list}
        try:
            lists.get(type(values[0]), feature.int64_list).value.extend(values)
        except ValueError:
            raise invalid_argument(f"Feature: {name} has uint64 element. Only int64 is supported.") from None
    return example.SerializeToString()
