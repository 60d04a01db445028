"""A run measured on other images than its own."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import numpy as np

from tlkeras.config.recipe import Recipe, load_recipe
from tlkeras.data.headers import to_printable
from tlkeras.data.inspection import ValidatedDataset, validate_images
from tlkeras.errors import RunError
from tlkeras.evaluation.evaluate import COLUMNS, evaluate_predictions, list_rows, merge_tasks
from tlkeras.features.extraction import extract_activations
from tlkeras.heads.heads import order_outputs
from tlkeras.inference.predict import load_model
from tlkeras.runs.directory import RUNS, Run, open_run
from tlkeras.runs.predictions import Predictions, load_predictions, read_tasks, take
from tlkeras.training import builders

EXTERNAL_EVALUATION_DIR = "elsewhere"


def evaluate_on(run: str | Path | Run, source: str, *, runs: str | Path = RUNS) -> dict[str, Any]:
    """The figures of a finished run on labelled images from another source.

    Args:
        run: A name, a path, `latest`, or a `Run`.
        source: As in `data.source`.
        runs: Folder of the run directories.
    """
    opened = open_run(run, runs)
    options = load_recipe(opened.require("recipe.yaml")).evaluation
    measured = _evaluate_on(opened, source, resamples=options.bootstrap_samples, seed=options.seed)
    return {**measured, "path": str(opened.path)}


def _evaluate_on(run: Run, source: str, *, resamples: int, seed: int = 0) -> dict[str, Any]:
    """Measure a run's model on labelled images from another source; its folder `elsewhere/` keeps the figures.

    Returns:
        What `figures.evaluate` returns, and `source`, `rejected` (images that cannot be read) and `trained_on`
        (images whose files the run was trained on).

    Raises:
        DataError: The source cannot be read, or its labels are not the run's.
        RunError: The run holds no model that can be read.
    """
    recipe = load_recipe(str(run.path / "recipe.yaml"))
    inspection = validate_images(builders.read_other_dataset(recipe, source, read_tasks(run)))
    predictions, seen = predict_dataset(run, recipe, inspection)
    tasks = {one.task.name: evaluate_predictions(one, resamples=resamples, seed=seed) for one in predictions}
    trained = _read_trained(run)
    result = {
        "run": run.name,
        "source": source,
        **merge_tasks(tasks),
        "examples": {"test": len(seen)},
        "rejected": len(inspection.dataset) - len(seen) + len(inspection.rejected),
        "trained_on": sum(inspection.digests[row] in trained for row in seen.tolist()),
    }
    name = re.sub(r"[^\w.-]+", "-", source).strip("-.")[-60:] or "data"
    run.write_json(f"{EXTERNAL_EVALUATION_DIR}/{name}.json", result)
    run.write_table(f"{EXTERNAL_EVALUATION_DIR}/{name}.csv", COLUMNS, list_rows(tasks))
    return result


def list_elsewhere(run: Run) -> list[dict[str, Any]]:
    """Return what `evaluate_on` kept of a run, by source; files that cannot be read are passed over."""
    found = []
    for path in sorted((run.path / EXTERNAL_EVALUATION_DIR).glob("*.json")):
        try:
            found.append(run.read_json(f"{EXTERNAL_EVALUATION_DIR}/{path.name}"))
        except RunError:
            continue
    return found


def predict_dataset(run: Run, recipe: Recipe, inspection: ValidatedDataset) -> tuple[list[Predictions], np.ndarray]:
    """Return what a run's model says of inspected images, per task, and which of them could be read, int64 [n]."""
    dataset = inspection.dataset
    images = builders.select_images(recipe, inspection)
    model = order_outputs(load_model(run), [task.name for task in dataset.tasks])
    priors = [predictions.prior for predictions in load_predictions(run)]
    facts = [{"model": run.name} for _ in model.outputs]
    with extract_activations(model, images, facts, engine=recipe.features.engine, dtype="float32") as predicted:
        rows = predicted.kept
        outputs = [np.asarray(output) for output in predicted.outputs]
    keys = np.array([to_printable(key) for key in dataset.keys[rows]], dtype=str)
    slices = {"group": dataset.groups, "domain": dataset.domains, "stratum": dataset.strata}
    chosen = {name: values[rows].astype(str) for name, values in slices.items()}
    predictions = [
        take(
            Predictions(task, keys, dataset.targets[task.name][rows], output, dataset.weights[rows], prior, chosen),
            task.is_labelled(dataset.targets[task.name][rows]),
        )
        for task, output, prior in zip(dataset.tasks, outputs, priors, strict=True)
    ]
    return predictions, rows


def _read_trained(run: Run) -> set[str]:
    """Return the digests of the files that a run was trained on; none where it did not write them down."""
    try:
        text = run.read_bytes("splits.csv").decode("utf-8", "replace")
    except RunError:
        return set()
    rows = csv.DictReader(io.StringIO(text, newline=""))
    return {row["sha256"] for row in rows if row["split"] == "train" and "sha256" in row}
