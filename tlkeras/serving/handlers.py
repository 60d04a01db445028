"""What TensorFlow Serving's interfaces ask, whichever way the question comes: predict, classify, metadata, status."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from tlkeras.exporting.signatures import CLASSIFY
from tlkeras.serving.models import DEFAULT_SIGNATURE, Model, ModelSpec, Version
from tlkeras.serving.status import Code, StatusError, invalid_argument, translate

ResponseT = TypeVar("ResponseT")
FeatureLists = Mapping[str, Sequence[Any]]


class RequestHandler:
    """Takes questions about a model, counts them, and keeps to its limits."""

    def __init__(self, model: Model):
        self.model = model

    async def ask(self, name: str, method: str, work: Awaitable[ResponseT]) -> ResponseT:
        """Return the answer of some work.

        Raises:
            StatusError: Whatever went wrong, or too much is being worked on.
        """
        started, code = time.perf_counter(), Code.OK
        model = name if name == self.model.name else "unknown"  # a label of Prometheus must not be a client's choice
        mark, running = object(), self.model.running
        running.add(mark)
        self.model.metrics.set_running(len(running))
        try:
            if len(running) > self.model.limits.concurrency:
                asyncio.ensure_future(work).cancel()
                raise StatusError(Code.UNAVAILABLE, "Too many requests are being worked on")
            return await work
        except asyncio.CancelledError:
            code = Code.CANCELLED
            raise
        except Exception as error:
            found = translate(error)
            code = found.code
            raise found from None
        finally:
            running.discard(mark)
            self.model.metrics.set_running(len(running))
            self.model.metrics.observe_request(model, method, code.name, time.perf_counter() - started)

    async def predict(
        self, version: Version, signature: str, inputs: Mapping[str, np.ndarray], wanted: Sequence[str] = ()
    ) -> dict[str, np.ndarray]:
        """Ask a signature; with `wanted`, only those outputs."""
        outputs = version.find(signature).outputs
        unknown = [name for name in wanted if name not in outputs]
        if unknown:
            raise invalid_argument(
                f"output tensor alias not found in signature: {unknown[0]} Outputs expected to be in the set"
                f" {{{','.join(sorted(outputs))}}}."
            )
        answers = await self.model.run(version, signature, inputs)
        return {name: answers[name] for name in wanted} if wanted else answers

    async def classify(self, version: Version, signature: str, examples: Sequence[bytes]) -> dict[str, np.ndarray]:
        """Ask a signature of the method classify about serialized tf.Examples."""
        found = version.find(signature)
        if found.method != CLASSIFY:
            raise invalid_argument(
                f"Expected classification signature method_name to be {CLASSIFY}. Was: {found.method}"
            )
        if not examples:
            raise invalid_argument("Input is empty.")
        (name,) = found.inputs
        return await self.model.run(version, signature, {name: np.array(list(examples), dtype=object)})

    def refuse_regression(self, version: Version, signature: str) -> StatusError:
        """Return why a classifier does not regress."""
        method = version.find(signature).method
        return invalid_argument(
            f"Expected regression signature method_name to be tensorflow/serving/regress. Was: {method}"
        )

    def describe(self, spec: ModelSpec) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """Return the signatures of a version."""
        version = self.model.find(spec)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = self.model.name
        response.model_spec.version.value = version.number
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for name, definition in version.served.definitions.items():
            signatures.signature_def[name].CopyFrom(definition)
        response.metadata["signature_def"].Pack(signatures)
        return response

    def list_states(self, spec: ModelSpec) -> get_model_status_pb2.GetModelStatusResponse:
        """Return the state of each version."""
        response = get_model_status_pb2.GetModelStatusResponse()
        kinds = get_model_status_pb2.ModelVersionStatus.State
        for number, state in self.model.list_states(spec).items():
            status = response.model_version_status.add(version=number, state=kinds.Value(state.name))
            status.status.error_code = state.code.number
            status.status.error_message = state.message
        return response


def make_example(features: FeatureLists, context: FeatureLists) -> bytes:
    """Return a serialized tf.Example with what it shares with others.

    Raises:
        StatusError: An integer does not fit 64 bits.
    """
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


def name_signature(signature: str) -> str:
    """Return the signature that is meant."""
    return signature or DEFAULT_SIGNATURE
