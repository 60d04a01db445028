"""The verbs of what leaves the run: exported models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tlkeras.api.running import RUNS
from tlkeras.lazy_tensorflow import import_tensorflow_quietly
from tlkeras.runs.directory import open_run


def export(
    run: str = "latest",
    to: str | Path | None = None,
    *,
    formats: Sequence[str] = (),
    min_accuracy: float | None = None,
    max_drop: float | None = None,
    calibrate: Literal["temperature", "vector"] | None = None,
    runs: str | Path = RUNS,
) -> dict[str, Any]:
    """Write a run as the next SavedModel version below `to` (default: saved_models/RECIPE).

    Args:
        run: A finished run: a name, a path or `latest`.
        to: Folder of the versions.
        formats: Other forms to write into the version: litert-float32, litert-float16, litert-int8, openvino, onnx.
        min_accuracy: Publish nothing whose accuracy on held-out images is lower.
        max_drop: Publish nothing that loses more accuracy than this against the run's own model.
        calibrate: Build temperature or vector scaling into the model.
        runs: Folder of the run directories.

    Returns:
        What `tlkeras.exporting.saved_model.export` returns.
    """
    opened = open_run(run, Path(runs))
    import_tensorflow_quietly()
    from tlkeras.exporting import saved_model
    from tlkeras.exporting.parity import AcceptanceCriteria

    target = Path(to) if to else Path("saved_models") / opened.name.rpartition("-")[0]
    gate = AcceptanceCriteria(min_accuracy=min_accuracy, max_drop=max_drop)
    return saved_model.export(opened, target, forms=formats, gate=gate, calibrate=calibrate)
