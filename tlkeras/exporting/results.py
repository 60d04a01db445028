"""Results of an export."""

from __future__ import annotations

from dataclasses import dataclass

from tlkeras.exporting.parity import ParityResult
from tlkeras.exporting.signatures import Preprocessing
from tlkeras.results import Result


@dataclass(frozen=True)
class ExportReport(Result):
    """Description of an export and of its comparison with the run, as tlkeras.json stores it."""

    run: str
    image: Preprocessing  # size and resizing of the images
    signatures: list[str]  # names of the SavedModel's signatures
    images: int  # number of held-out images that were compared
    difference: float  # largest difference in a probability from the run's own predictions
    parity: list[ParityResult]
    fast: bool  # whether batch norm is folded and variables are constants
    notes: list[str]  # remarks for the user, as sentences


@dataclass(frozen=True)
class ExportResult(ExportReport):
    """A published version."""

    path: str
    version: int
    warmup: int  # number of warm-up requests, all of which were run
    docker: str  # command that serves the folder of versions with TensorFlow Serving
