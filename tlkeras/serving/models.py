"""Versions of a model: a new one in the watched folder is loaded, warmed up and swapped in for the older one."""

import asyncio
import json
import logging
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

from tlkeras.data.headers import MAX_PIXELS, ImageError, check_header
from tlkeras.exporting.signatures import WARMUP_FILE, LoadedSavedModel, Signature, run_warmup_requests
from tlkeras.exporting.versions import LABELS, REPORT, list_versions, served_name
from tlkeras.serving.batching import Arrays, BatchScheduler
from tlkeras.serving.status import Code, StatusError, invalid_argument, translate

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64)
DEFAULT_SIGNATURE = "serving_default"
_BYTES = "image_bytes"
_POLL_SECONDS = 0.02

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServeOptions:
    """Settings of the development server."""

    host: str = "127.0.0.1"  # address to listen on
    rest_port: int = 8501  # port of REST; 0: any free one
    grpc_port: int | None = 8500  # port of gRPC; 0: any free one, None: no gRPC
    name: str | None = None  # name of the model; None: the folder's
    labels: Mapping[str, int] = field(default_factory=dict)  # versions by label, loaded in addition to the newest
    newest: int = 1  # number of the newest versions that stay loaded
    max_batch_size: int = 32  # largest number of images that run together; 1: no batching
    batch_timeout: float = 0.002  # seconds that a request waits for others
    max_body: int = 64 * 2**20  # largest body of a request, bytes
    max_pixels: int = MAX_PIXELS  # largest image, pixels
    max_requests: int = 512  # largest number of concurrent requests
    timeout: float = 30.0  # seconds until a request fails
    threads: int = 0  # TensorFlow's threads per operation; 0: one per core


class ServerMetrics:
    """Metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        by_method, by_status = ("model_name", "method"), ("model_name", "method", "status")
        self.requests = Counter("tlkeras_requests", "Requests answered.", by_status, registry=registry)
        self.seconds = Histogram(
            "tlkeras_request_seconds", "Time of a request.", by_method, buckets=_SECONDS, registry=registry
        )
        self.batches = Histogram("tlkeras_batch_rows", "Rows per batch.", buckets=_ROWS, registry=registry)
        self.running = Gauge("tlkeras_requests_in_progress", "Requests in progress.", registry=registry)
        by_version = ("model_name", "version")
        self._versions = Gauge("tlkeras_version_loaded", "1 for each loaded version.", by_version, registry=registry)

    def set_versions(self, model: str, versions: Collection[int]) -> None:
        self._versions.clear()
        for number in versions:
            self._versions.labels(model, str(number)).set(1)

    def format(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self._registry)


@dataclass(frozen=True)
class VersionStatus:
    """State of a version, as TensorFlow Serving names it, and the error that ended it."""

    name: str = "START"
    code: Code = Code.OK
    message: str = ""


@dataclass(frozen=True)
class ModelSpec:
    """The model of a request: its newest version unless a number or a label is given."""

    name: str
    version: int | None = None
    label: str | None = None


class Version:
    """One loaded version with a batch scheduler per signature."""

    def __init__(self, number: int, path: Path, loaded: LoadedSavedModel):
        self.number, self.loaded = number, loaded
        self.schedulers: dict[str, BatchScheduler] = {}
        self.labels = _read_json(path / LABELS)
        self.report = _read_json(path / REPORT)

    def find(self, signature: str) -> Signature:
        """A signature by name; "" is the default one; StatusError if there is none."""
        name = signature or DEFAULT_SIGNATURE
        if name not in self.loaded.signatures:
            raise invalid_argument(f'Serving signature name: "{name}" not found in signature def')
        return self.loaded.signatures[name]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


class Model:
    """A served model: its folder and the loaded versions. Use it within one event loop."""

    def __init__(self, folder: Path, options: ServeOptions):
        self.name, self.options = options.name or served_name(folder), options
        self.versions: dict[int, Version] = {}  # those that are loaded
        self.states: dict[int, VersionStatus] = {}  # of all versions
        self.running: set[object] = set()  # one object per request in progress
        self.metrics = ServerMetrics()
        self._folder = folder
        self._attempted: dict[int, float] = {}  # modification time of each version that was loaded or failed to
        self._executor = ThreadPoolExecutor(4, thread_name_prefix="tlkeras-serve")
        self._unloading: set[asyncio.Task[None]] = set()

    async def watch(self, seconds: float = 1.0) -> None:
        while True:
            try:
                await self.refresh()
            except Exception:
                logger.exception("The folder %s could not be read", self._folder)
            await asyncio.sleep(seconds)

    async def refresh(self) -> None:
        """Load the versions that are new and needed, then unload those that are no longer needed."""
        present = [one for one in list_versions(self._folder) if (self._path(one) / "saved_model.pb").is_file()]
        needed = {*present[-self.options.newest :], *(set(self.options.labels.values()) & set(present))}
        for number in sorted(needed - set(self.versions)):
            await self._load(number)
        if set(self.versions) & needed or not present:  # the last version that works stays
            for number in sorted(set(self.versions) - needed):
                self._retire(number)

    def _path(self, number: int) -> Path:
        (path,) = [path for path in self._folder.iterdir() if path.name.isdecimal() and int(path.name) == number][:1]
        return path

    async def _load(self, number: int) -> None:
        path = self._path(number)
        changed = (path / "saved_model.pb").stat().st_mtime
        if self._attempted.get(number) == changed:
            return
        self._attempted[number] = changed
        self.states[number] = VersionStatus("LOADING")
        try:
            version = await asyncio.get_running_loop().run_in_executor(self._executor, self._open, number, path)
        except Exception as error:
            found = translate(error)
            self.states[number] = VersionStatus("END", found.code, found.message)
            logger.error("Version %d of %s cannot be loaded: %s", number, self.name, found.message)
            return
        for name, signature in version.loaded.signatures.items():
            shapes = [info.tensor_shape.dim for info in (*signature.inputs.values(), *signature.outputs.values())]
            batchable = all(shape and shape[0].size == -1 for shape in shapes)  # all have an open first dimension
            limits = (self.options.max_batch_size, self.options.batch_timeout) if batchable else (1, 0.0)
            observe = self.metrics.batches.observe
            version.schedulers[name] = BatchScheduler(signature.call, self._executor, observe, *limits)
        self.versions[number] = version
        self.states[number] = VersionStatus("AVAILABLE")
        self.metrics.set_versions(self.name, self.versions)
        logger.info("Version %d of %s is available", number, self.name)

    def _open(self, number: int, path: Path) -> Version:
        loaded = LoadedSavedModel(path, self.options.threads)
        if (path / WARMUP_FILE).is_file():
            run_warmup_requests(path, loaded)
        return Version(number, path, loaded)

    def _retire(self, number: int) -> None:
        version = self.versions.pop(number)
        self.states[number] = VersionStatus("UNLOADING")
        self.metrics.set_versions(self.name, self.versions)
        task = asyncio.get_running_loop().create_task(self._unload(version))
        self._unloading.add(task)
        task.add_done_callback(self._unloading.discard)

    async def _unload(self, version: Version) -> None:
        before = set(self.running)  # any of these may have found the version and not run it yet
        while before & self.running:
            await asyncio.sleep(_POLL_SECONDS)
        for scheduler in version.schedulers.values():
            await scheduler.close()
        version.loaded.close()
        self.states[version.number] = VersionStatus("END")
        self._attempted.pop(version.number, None)

    async def close(self) -> None:
        """Run the waiting requests and unload everything."""
        for number in list(self.versions):
            self._retire(number)
        if self._unloading:
            await asyncio.wait(self._unloading, timeout=self.options.timeout)
        self._executor.shutdown(wait=False)

    def find(self, spec: ModelSpec) -> Version:
        """The version of a request; StatusError if it is not loaded."""
        number = spec.version
        if spec.name == self.name and spec.label is not None:
            if spec.label not in self.options.labels:
                raise invalid_argument(f"Unrecognized servable version label: {spec.label}")
            number = self.options.labels[spec.label]
        found = self.versions.get(max(self.versions, default=0) if number is None else number)
        if spec.name != self.name or found is None:
            needed = f"Latest({spec.name})" if number is None else f"Specific({spec.name}, {number})"
            raise StatusError(Code.NOT_FOUND, f"Servable not found for request: {needed}")
        return found

    def list_states(self, spec: ModelSpec) -> dict[int, VersionStatus]:
        """States of all versions, the newest first, or of the one in the request; StatusError if it is unknown."""
        if spec.name != self.name:
            raise StatusError(Code.NOT_FOUND, f"Could not find any versions of model {spec.name}")
        number = self.find(spec).number if spec.label is not None else spec.version
        if number is None:
            return dict(sorted(self.states.items(), reverse=True))
        if number not in self.states:
            raise StatusError(Code.NOT_FOUND, f"Could not find version {number} of model {spec.name}")
        return {number: self.states[number]}

    async def run(self, version: Version, name: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name; concurrent requests run in one batch. StatusError if inputs do not fit, or time is over."""
        signature = version.find(name)
        self._check(signature, inputs)
        arrays: Arrays = [inputs[key] for key in signature.inputs]
        rows = len(arrays[0]) if arrays[0].ndim else 0
        try:
            if rows == 0:
                outputs = await asyncio.get_running_loop().run_in_executor(self._executor, signature.call, *arrays)
            else:
                scheduler = version.schedulers[name or DEFAULT_SIGNATURE]
                outputs = await asyncio.wait_for(scheduler.submit(arrays), self.options.timeout)
        except TimeoutError:
            raise StatusError(Code.DEADLINE_EXCEEDED, "Deadline exceeded while the request was waiting") from None
        except Exception as error:
            raise translate(error) from None
        return dict(zip(signature.outputs, outputs, strict=True))

    def _check(self, signature: Signature, inputs: Mapping[str, np.ndarray]) -> None:
        unknown, missing = sorted(set(inputs) - set(signature.inputs)), sorted(set(signature.inputs) - set(inputs))
        if unknown or missing:
            expected = ",".join(sorted(signature.inputs))
            raise invalid_argument(
                f"input size does not match signature: {len(inputs)}!={len(signature.inputs)} len({{{expected}}})."
                f" Sent extra: {{{','.join(unknown)}}}. Missing but required: {{{','.join(missing)}}}."
            )
        for name, info in signature.inputs.items():
            _check_tensor(name, info, inputs[name])
        if _BYTES in inputs:
            for index, encoded in enumerate(inputs[_BYTES].tolist()):
                try:
                    check_header(encoded, self.options.max_pixels, served=True)
                except ImageError as error:
                    raise invalid_argument(f"Image {index}: {error.reason}") from None


def _check_tensor(name: str, info: Any, array: np.ndarray) -> None:
    expected = tf.as_dtype(info.dtype)
    if tf.as_dtype(array.dtype if array.dtype.kind != "O" else tf.string) != expected:
        raise invalid_argument(
            f"Expects arg[{name}] to be {expected.name} but {array.dtype.name.replace('object', 'string')} is provided"
        )
    shape = [dimension.size for dimension in info.tensor_shape.dim]
    fits = info.tensor_shape.unknown_rank or (
        len(shape) == array.ndim and all(size in (-1, given) for size, given in zip(shape, array.shape, strict=True))
    )
    if not fits:
        raise invalid_argument(f"Tensor {name} has shape {_write_shape(array.shape)}, expected {_write_shape(shape)}")


def _write_shape(shape: Any) -> str:
    return "[" + ",".join("?" if size == -1 else str(size) for size in shape) + "]"
