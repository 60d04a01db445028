"""The state of a training on disk: whole or absent, so that a run resumes after `kill -9` at any moment.

    FOLDER/step-00000123/arrays.npy      the arrays one after another, each in NumPy's .npy format
                         state.json      the step, the names of the arrays in their order, the state
                         manifest.json   version of this layout, SHA-256 of the two files above

A checkpoint is written to a hidden folder, flushed to the disk and renamed; it is removed by way of a rename, too. So
what has the name of a checkpoint is whole, unless the disk or a person damaged it later, which the checksums show.
"""

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tlkeras.errors import ResourceError
from tlkeras.files import atomic_folder, sha256, sync_folder

FORMAT = 1
ARRAYS, STATE, MANIFEST = "arrays.npy", "state.json", "manifest.json"
_NAME = re.compile(r"step-(\d{8,})(?:\.(\d+))?")  # the number after the dot distinguishes repeated saves of a step

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A saved state."""

    step: int  # the step it was saved at
    arrays: dict[str, np.ndarray]  # by name, in the order of saving; dtype, shape and every bit as they were
    state: dict[str, Any]  # as JSON has it: tuples came back as lists, and all keys as text

    @property
    def groups(self) -> dict[str, list[np.ndarray]]:
        """The arrays as they were given to `pack_groups`; groups without arrays are missing."""
        groups: dict[str, list[np.ndarray]] = {}
        for name, values in self.arrays.items():
            groups.setdefault(name.partition("/")[0], []).append(values)
        return groups


def pack_groups(groups: Mapping[str, Sequence[Any]]) -> dict[str, np.ndarray]:
    """Arrays for `Checkpoints.save` from sequences of arrays or variables, by GROUP/INDEX."""
    return {f"{kind}/{i}": np.array(value) for kind, values in groups.items() for i, value in enumerate(values)}


class Checkpoints:
    """The checkpoints of one training, of which the newest `keep` are kept. One process at a time may save.

    While a checkpoint is written, the disk must have room for one more.
    """

    def __init__(self, folder: Path, keep: int = 2):
        if keep < 1:
            raise ValueError(f"At least one checkpoint must be kept. Received: {keep}.")
        self.folder, self.keep = folder, keep

    def save(self, step: int, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint, then remove the older ones beyond `keep`, and all of later steps.

        Later steps were abandoned when the training was resumed from an earlier checkpoint; a step may be saved again.
        Arrays are of any dtype but object, those of `ml_dtypes` included; the state is JSON, with NaN and infinity.
        ResourceError if the disk is full or the folder cannot be written. What was saved before is untouched.
        """
        if step < 0:
            raise ValueError(f"A step must not be negative. Received: {step}.")
        with self._reporting():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            target = self._name(step)
            with atomic_folder(target) as folder:
                _write(folder, step, arrays, state)
        self._prune(step, target)
        return target

    def load_latest(self) -> Checkpoint | None:
        """The newest whole checkpoint, None if there is none; each damaged one is logged as a warning."""
        found, chosen, problems = None, "none, there is no other", list[str]()
        for step, _, path in reversed(self._list()):
            try:
                found, chosen = _read(path, step), path.name
                break
            except (OSError, ValueError) as problem:
                problems.append(f"{path} ({problem})")
        for skipped in problems:
            logger.warning("A checkpoint is damaged and was skipped: %s. Loaded instead: %s.", skipped, chosen)
        return found

    def clear(self) -> None:
        """Remove all checkpoints; other files in the folder stay; ResourceError if the folder cannot be written."""
        with self._reporting():
            for *_, path in self._list():
                _remove(path)
        self._sweep()

    def _list(self) -> list[tuple[int, int, Path]]:
        """Step, number of earlier saves of that step, and path of each checkpoint, oldest first."""
        if not self.folder.is_dir():
            return []
        matches = [(_NAME.fullmatch(path.name), path) for path in self.folder.iterdir()]
        return sorted((int(match[1]), int(match[2] or 0), path) for match, path in matches if match)

    def _name(self, step: int) -> Path:
        """A path that is free, as no folder can take another's place in a single move."""
        repeats = [repeat for at, repeat, _ in self._list() if at == step]
        return self.folder / (f"step-{step:08d}.{repeats[-1] + 1}" if repeats else f"step-{step:08d}")

    def _prune(self, step: int, newest: Path) -> None:
        """Remove what `newest` replaces; where that fails it is tried again at the next save."""
        listed = self._list()
        older = [path for at, _, path in listed if at < step]
        replaced = [path for at, _, path in listed if at >= step and path != newest]
        for path in [*replaced, *older[: max(0, len(older) - self.keep + 1)]]:
            with contextlib.suppress(OSError):
                _remove(path)

    def _sweep(self) -> None:
        """Remove what killed writers left."""
        for path in self.folder.glob(".*-step-*"):
            _erase(path)

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            raise ResourceError(
                f"Cannot write a checkpoint to {self.folder}.",
                problem.strerror or problem,
                "What was saved before is untouched: free some space, then resume the run.",
            ) from problem


def _write(folder: Path, step: int, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
    foreign = {}
    with _flushing(folder / ARRAYS) as file:
        for name, array in arrays.items():
            # of a dtype that is not NumPy's own, which the .npy format does not know, the name
            foreign[name] = array.dtype.name if array.dtype.isbuiltin == 2 else None
            np.save(file, array.view(f"u{array.itemsize}") if foreign[name] else array, allow_pickle=False)
    content = {"step": step, "arrays": foreign, "state": dict(state)}
    with _flushing(folder / STATE) as file:
        file.write(json.dumps(content).encode())
    checksums = {name: sha256(folder / name) for name in (ARRAYS, STATE)}
    with _flushing(folder / MANIFEST) as file:
        file.write(json.dumps({"format": FORMAT, "sha256": checksums}).encode())
    sync_folder(folder)


def _read(folder: Path, step: int) -> Checkpoint:
    """The checkpoint in a folder; OSError or ValueError where it is no whole one of this step."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{MANIFEST} is not of format {FORMAT}")
    if manifest.get("sha256") != {name: sha256(folder / name) for name in (ARRAYS, STATE)}:
        raise ValueError("a checksum is wrong")
    content = json.loads((folder / STATE).read_bytes())
    if content["step"] != step:
        raise ValueError(f"it was saved at step {content['step']}")
    with open(folder / ARRAYS, "rb") as file:
        arrays = {name: _read_array(file, foreign) for name, foreign in content["arrays"].items()}
    return Checkpoint(step, arrays, content["state"])


def _read_array(file: BinaryIO, foreign: str | None) -> np.ndarray:
    array = np.load(file, allow_pickle=False)
    if foreign is None:
        return array
    import ml_dtypes  # comes with Keras

    return array.view(getattr(ml_dtypes, foreign))


@contextlib.contextmanager
def _flushing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file, and have all of it on the disk at the end."""
    with open(path, "xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    """Take away a checkpoint's name at once, then its content."""
    gone = path.with_name(f".old-{path.name}")
    os.rename(path, gone)
    _erase(gone)


def _erase(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
