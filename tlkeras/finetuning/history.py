"""The history of a fit on disk, the best weights so far and random states, so that a crash does not lose them."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tlkeras.errors import TlkerasError
from tlkeras.files import atomic_write

_FILE = "history.json"


class HistoryFolder:
    """A folder with the monitored value of every epoch, the weights of the best, and random states after the last two.

    Keras saves no states of random layers. It may be one epoch ahead of the weights that a fit resumes from, whichever
    callback the crash came between: reading drops what lies behind, and what belongs to the epoch before stays until
    the next one.
    """

    def __init__(self, path: str | Path, monitor: str):
        self.path, self.monitor = Path(path), monitor

    def read(self, epochs: int) -> list[float]:
        """The values of the first epochs; TlkerasError if they are fewer, or of another monitored value."""
        if not epochs:
            return []
        stored = self._load()
        if stored.get("monitor", self.monitor) != self.monitor:
            rule = f"{self._file} is the history of another value."
            raise TlkerasError(rule, f"{stored['monitor']!r} for {self.monitor!r}", "Give another folder.")
        if len(stored["history"]) < epochs:
            raise TlkerasError(
                "The history does not hold the monitored value of every epoch before this one.",
                f"{len(stored['history'])} values in {self._file} at epoch {epochs}",
                "Resume with the folder of the fit that made the weights.",
            )
        return [float(value) for value in stored["history"][:epochs]]

    def read_random(self, epochs: int) -> list[list[int]]:
        """The states of random layers after so many epochs; none if they are not known."""
        return self._load()["random"].get(str(epochs), [])

    def read_weights(self, epoch: int) -> list[np.ndarray] | None:
        """The weights of an epoch, as `model.set_weights` takes them; None if they are not there."""
        if not self._weights(epoch).exists():
            return None
        with np.load(self._weights(epoch)) as stored:
            return [stored[str(index)] for index in range(len(stored.files))]

    def write(self, history: Sequence[float], random: Sequence[Sequence[int]]) -> None:
        """Replace the history, and add the states of random layers after it."""
        done = len(history)
        states = {str(done - 1): self.read_random(done - 1), str(done): list(map(list, random))}
        self.path.mkdir(parents=True, exist_ok=True)
        with atomic_write(self._file) as temporary:
            temporary.write_text(json.dumps({"monitor": self.monitor, "history": list(history), "random": states}))

    def write_weights(self, epoch: int, weights: Sequence[np.ndarray]) -> None:
        """Add the weights of an epoch."""
        self.path.mkdir(parents=True, exist_ok=True)
        arrays: Any = {
            str(i): one if one.dtype.kind in "biuf" else one.astype("float32") for i, one in enumerate(weights)
        }
        with atomic_write(self._weights(epoch)) as temporary:
            np.savez(temporary, **arrays)

    def keep(self, epochs: Iterable[int | None]) -> None:
        """Remove the weights of all other epochs."""
        kept = {self._weights(epoch) for epoch in epochs if epoch is not None}
        for path in set(self.path.glob("best-*.npz")) - kept:
            path.unlink()

    def _load(self) -> dict[str, Any]:
        return json.loads(self._file.read_text()) if self._file.exists() else {"history": [], "random": {}}

    @property
    def _file(self) -> Path:
        return self.path / _FILE

    def _weights(self, epoch: int) -> Path:
        return self.path / f"best-{epoch}.npz"
