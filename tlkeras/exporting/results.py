"""Results of an export."""

from __future__ import annotations

from dataclasses import dataclass

from tlkeras.exporting.parity import ParityResult
from tlkeras.exporting.signatures import Preprocessing
from tlkeras.results import Result


@dataclass(frozen=True)
class ExportReport(Result):
    """Description of an export and of its comparison with the run, as tlkeras.json stores it.

    Attributes:
        run: Name of the run.
        image: Size and resizing of the images.
        signatures: Names of the SavedModel's signatures.
        images: Number of held-out images that were compared.
        difference: Largest difference in a probability from the run's own predictions.
        parity: A row per format and task.
        fast: Whether batch norm is folded and variables are constants.
        notes: Remarks for the user, as sentences.
    """

    run: str
    image: Preprocessing
    signatures: list[str]
    images: int
    difference: float
    parity: list[ParityResult]
    fast: bool
    notes: list[str]


@dataclass(frozen=True)
class ExportResult(ExportReport):
    """A published version.

    Attributes:
        path: Folder of the version.
        version: Its number.
        warmup: Number of warm-up requests, all of which were run.
        docker: Command that serves the folder of versions with TensorFlow Serving.
    """

    path: str
    version: int
    warmup: int
    docker: str
