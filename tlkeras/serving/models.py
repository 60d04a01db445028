"""A folder of versions, watched: the newest is loaded, warmed up and swapped in, the older one let go when idle."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tlkeras.data.headers import MAX_PIXELS, ImageError, check_header
from tlkeras.exporting.loaded_model import LoadedSavedModel, Signature
from tlkeras.exporting.model_card import FACTS, LABELS
from tlkeras.exporting.versions import list_versions
from tlkeras.exporting.warmup import FILE, run_warmup_requests
from tlkeras.serving.batching import Arrays, Batching, BatchScheduler
from tlkeras.serving.metrics import Metrics
from tlkeras.serving.status import Code, StatusError, invalid_argument, translate

DEFAULT_SIGNATURE = "serving_default"
_BYTES = "image_bytes"
_LOOK_SECONDS = 0.02

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RequestLimits:
    """What a request may ask for.

    Attributes:
        body: Bytes.
        pixels: Of one image.
        concurrency: Requests that are worked on at once.
        seconds: Until an answer is given up.
    """

    body: int = 64 * 2**20
    pixels: int = MAX_PIXELS
    concurrency: int = 512
    seconds: float = 30.0


@dataclass
class VersionStatus:
    """What is known of a version; the words of TensorFlow Serving."""

    name: str = "START"
    code: Code = Code.OK
    message: str = ""


@dataclass(frozen=True)
class ModelSpec:
    """Which model is asked: the newest version unless a number or a label says another."""

    name: str
    version: int | None = None
    label: str | None = None


class Version:
    """One loaded version with a batcher per signature."""

    def __init__(self, number: int, path: Path, served: LoadedSavedModel):
        self.number, self.path, self.served = number, path, served
        self.batchers: dict[str, BatchScheduler] = {}
        self.labels = _read_json(path / LABELS)
        self.facts = _read_json(path / FACTS)

    def find(self, signature: str) -> Signature:
        """Return a signature by name.

        Raises:
            StatusError: There is none.
        """
        found = self.served.signatures.get(signature or DEFAULT_SIGNATURE)
        if found is None:
            name = signature or DEFAULT_SIGNATURE
            raise invalid_argument(f'Serving signature name: "{name}" not found in signature def')
        return found


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


@dataclass
class Model:
    """One model: its folder, and what of it is loaded. Use it within one event loop.

    Args:
        base: The folder of versions.
        name: Under which it is asked.
        pinned: Versions by label, loaded beside the newest.
        newest: How many of the newest versions are kept loaded.
        batching: How requests are put together.
        limits: What a request may ask for.
        metrics: Where requests and batches are counted.
        threads: TensorFlow's threads within one operation; 0: one per core.
    """

    base: Path
    name: str
    pinned: Mapping[str, int] = field(default_factory=dict)
    newest: int = 1
    batching: Batching = field(default_factory=Batching)
    limits: RequestLimits = field(default_factory=RequestLimits)
    metrics: Metrics = field(default_factory=Metrics)
    threads: int = 0

    def __post_init__(self) -> None:
        self.versions: dict[int, Version] = {}
        self.running: set[object] = set()  # a mark for each request that is being worked on
        self.states: dict[int, VersionStatus] = {}
        self._tried: dict[int, float] = {}
        self._executor = ThreadPoolExecutor(4, thread_name_prefix="tlkeras-serve")
        self._leaving: set[asyncio.Task[None]] = set()

    async def watch(self, seconds: float = 1.0) -> None:
        """Look at the folder again and again."""
        while True:
            try:
                await self.refresh()
            except Exception:
                logger.exception("The folder %s could not be looked at", self.base)
            await asyncio.sleep(seconds)

    async def refresh(self) -> None:
        """Load what is new and wanted, then let go of what is not wanted any more."""
        present = [number for number in list_versions(self.base) if (self._path(number) / "saved_model.pb").is_file()]
        wanted = {*present[-self.newest :], *(number for number in self.pinned.values() if number in present)}
        for number in sorted(wanted - set(self.versions)):
            await self._load(number)
        if set(self.versions) & wanted or not present:  # never let go of the last one that works
            for number in sorted(set(self.versions) - wanted):
                self._let_go(number)

    def _path(self, number: int) -> Path:
        (path,) = [path for path in self.base.iterdir() if path.name.isdecimal() and int(path.name) == number][:1]
        return path

    async def _load(self, number: int) -> None:
        path = self._path(number)
        changed = (path / "saved_model.pb").stat().st_mtime
        if self._tried.get(number) == changed:
            return
        self._tried[number] = changed
        self.states[number] = VersionStatus("LOADING")
        try:
            version = await asyncio.get_running_loop().run_in_executor(self._executor, self._open, number, path)
        except Exception as error:
            found = translate(error)
            self.states[number] = VersionStatus("END", found.code, found.message)
            logger.error("Version %d of %s cannot be loaded: %s", number, self.name, found.message)
            return
        for name, signature in version.served.signatures.items():
            options = self.batching if _is_batchable(signature) else Batching(1, 0.0, self.batching.max_waiting)
            version.batchers[name] = BatchScheduler(signature.call, self._executor, options, self.metrics.observe_batch)
        self.versions[number] = version
        self.states[number] = VersionStatus("AVAILABLE")
        self.metrics.set_versions(self.name, self.versions)
        logger.info("Version %d of %s is available", number, self.name)

    def _open(self, number: int, path: Path) -> Version:
        served = LoadedSavedModel(path, self.threads)
        if (path / FILE).is_file():
            run_warmup_requests(path, served)
        return Version(number, path, served)

    def _let_go(self, number: int) -> None:
        version = self.versions.pop(number)
        self.states[number] = VersionStatus("UNLOADING")
        self.metrics.set_versions(self.name, self.versions)
        task = asyncio.get_running_loop().create_task(self._unload(version))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _unload(self, version: Version) -> None:
        before = set(self.running)  # any of these may have found the version and not asked it yet
        while before & self.running:
            await asyncio.sleep(_LOOK_SECONDS)
        for batcher in version.batchers.values():
            await batcher.close()
        version.served.close()
        self.states[version.number] = VersionStatus("END")
        self._tried.pop(version.number, None)

    async def close(self) -> None:
        """Answer what waits and free everything."""
        for number in list(self.versions):
            self._let_go(number)
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=self.limits.seconds)
        self._executor.shutdown(wait=False)

    def find(self, spec: ModelSpec) -> Version:
        """Return the version that a request asks.

        Raises:
            StatusError: It is not there.
        """
        if spec.name != self.name:
            wanted = f"Latest({spec.name})" if spec.version is None else f"Specific({spec.name}, {spec.version})"
            raise StatusError(Code.NOT_FOUND, f"Servable not found for request: {wanted}")
        number = spec.version
        if spec.label is not None:
            if spec.label not in self.pinned:
                raise invalid_argument(f"Unrecognized servable version label: {spec.label}")
            number = self.pinned[spec.label]
        if number is None:
            if not self.versions:
                raise StatusError(Code.NOT_FOUND, f"Servable not found for request: Latest({self.name})")
            return self.versions[max(self.versions)]
        if number not in self.versions:
            raise StatusError(Code.NOT_FOUND, f"Servable not found for request: Specific({self.name}, {number})")
        return self.versions[number]

    def list_states(self, spec: ModelSpec) -> dict[int, VersionStatus]:
        """Return the states of all versions, or of the one that is asked for, the newest first.

        Raises:
            StatusError: Nothing is known of it.
        """
        if spec.name != self.name:
            raise StatusError(Code.NOT_FOUND, f"Could not find any versions of model {spec.name}")
        number = self.find(spec).number if spec.label is not None else spec.version
        if number is None:
            return dict(sorted(self.states.items(), reverse=True))
        if number not in self.states:
            raise StatusError(Code.NOT_FOUND, f"Could not find version {number} of model {spec.name}")
        return {number: self.states[number]}

    async def run(self, version: Version, name: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Ask a signature of a version; requests of others run in the same batch.

        Raises:
            StatusError: The inputs are not what it takes, too many wait, or it took too long.
        """
        signature = version.find(name)
        self._check(signature, inputs)
        arrays: Arrays = [inputs[key] for key in signature.inputs]
        rows = len(arrays[0]) if arrays[0].ndim else 0
        try:
            if rows == 0:
                outputs = await asyncio.get_running_loop().run_in_executor(self._executor, signature.call, *arrays)
            else:
                batcher = version.batchers[name or DEFAULT_SIGNATURE]
                outputs = await asyncio.wait_for(batcher.submit(arrays), self.limits.seconds)
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
            for place, encoded in enumerate(inputs[_BYTES].tolist()):
                try:
                    check_header(encoded, self.limits.pixels)
                except ImageError as error:
                    raise invalid_argument(f"Image {place}: {error.reason}") from None


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


def _is_batchable(signature: Signature) -> bool:
    """Whether all inputs and outputs have the same open first dimension."""
    infos = [*signature.inputs.values(), *signature.outputs.values()]
    return all(info.tensor_shape.dim and info.tensor_shape.dim[0].size == -1 for info in infos)
