"""What both interfaces answer: TensorFlow Serving's methods, and heat maps of a prediction."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from tlkeras.data.headers import ImageError, check_header
from tlkeras.exporting.signatures import CLASSIFY, Preprocessing, Signature
from tlkeras.results import Result
from tlkeras.serving.models import Model, ModelSpec, Version
from tlkeras.serving.status import Code, StatusError, invalid_argument, translate
from tlkeras.serving.tensors import FeatureLists

ResponseT = TypeVar("ResponseT")
GRID = 8
_COVER = 0.25


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
            self.model.metrics.requests.labels(model, method, code.name).inc()
            self.model.metrics.seconds.labels(model, method).observe(time.perf_counter() - started)

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


@dataclass(frozen=True)
class TaskExplanation(Result):
    """The prediction of one task, and the parts of the image that it depends on."""

    name: str
    label: str
    explained: str  # the class whose probability the heat map is of; the task of a regression
    probabilities: list[tuple[str, float]]  # labels with their probabilities, the highest first; empty for a regression
    heat: list[list[float]]  # [GRID, GRID], 0 to 1: loss of probability, or change of the value, over `most_lost`
    most_lost: float


@dataclass(frozen=True)
class ImageExplanation(Result):
    """The predictions for an image, explained."""

    version: int
    resize: str  # how the image was brought to the model's size
    size: tuple[int, int]  # that size, height and width in pixels
    tasks: list[TaskExplanation]


async def explain(handler: RequestHandler, encoded: bytes) -> ImageExplanation:
    """The newest version's predictions, and the probability that each loses where a part of the image is covered.

    StatusError if it is no image, or not `export` wrote the version. Source: Zeiler and Fergus, Visualizing and
    Understanding Convolutional Networks, ECCV 2014, section 4.2.
    """
    version = handler.model.find(ModelSpec(handler.model.name))
    if not version.report or not version.labels or "uint8" not in version.loaded.signatures:
        raise invalid_argument("Only versions that `tlkeras export` wrote can be explained")
    try:
        check_header(encoded, handler.model.options.max_pixels, served=True)
    except ImageError as error:
        raise invalid_argument(f"The content cannot be used: {error.reason}") from None
    preprocessing = Preprocessing.of(version.report["image"])
    loop = asyncio.get_running_loop()
    (image,) = await loop.run_in_executor(None, lambda: preprocessing.decode(tf.constant([encoded])).numpy())
    images, step = np.concatenate([image[None], occlude(image)]), handler.model.options.max_batch_size
    parts = [
        await handler.model.run(version, "uint8", {"images": images[start : start + step]})
        for start in range(0, len(images), step)
    ]
    outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    several = len(version.labels) > 1
    tasks = [_explain_task(name, labels, outputs, several) for name, labels in version.labels.items()]
    return ImageExplanation(version.number, preprocessing.resize, image.shape[:2], tasks)


def occlude(image: np.ndarray) -> np.ndarray:
    """Copies of the image, each with one part covered by the mean colour: uint8 [GRID * GRID, height, width, 3]."""
    down, across = (max(1, round(side * _COVER / 2)) for side in image.shape[:2])
    rows, columns = (((np.arange(GRID) + 0.5) * side / GRID).astype(int) for side in image.shape[:2])
    covered = np.repeat(image[None], GRID * GRID, axis=0)
    mean = image.mean(axis=(0, 1)).round().astype(np.uint8)
    for index, (row, column) in enumerate(itertools.product(rows, columns)):
        covered[index, max(0, row - down) : row + down, max(0, column - across) : column + across] = mean
    return covered


def _explain_task(name: str, labels: list[str], outputs: dict[str, np.ndarray], several: bool) -> TaskExplanation:
    """The explanation of a task from outputs for the image, first, and its covered copies."""
    prefix = f"{name}_" if several else ""
    if f"{prefix}value" in outputs:
        values = outputs[f"{prefix}value"][:, 0]
        label, explained, pairs = f"{values[0]:.6g}", name, []
        lost = np.abs(values[0] - values[1:])
    else:
        probabilities = outputs[f"{prefix}probabilities"]
        best = int(probabilities[0].argmax())
        label, explained = outputs[f"{prefix}label"][0].decode("utf-8", "replace"), labels[best]
        order = np.argsort(-probabilities[0], kind="stable")
        pairs = [(labels[index], float(probabilities[0, index])) for index in order]
        lost = np.maximum(probabilities[0, best] - probabilities[1:, best], 0.0)
    most = float(lost.max())
    heat = (lost / lost.max() if most > 0 else lost).round(4).reshape(GRID, GRID).tolist()
    return TaskExplanation(name, label, explained, pairs, heat, most)
