"""Evaluation of a run on other images than its own."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tlkeras.config.recipe import Recipe, bootstrap_options, load_recipe
from tlkeras.data.headers import to_printable
from tlkeras.data.inspection import validate_images
from tlkeras.data.tables import Dataset
from tlkeras.errors import RunError
from tlkeras.evaluation.evaluate import COLUMNS, Evaluation, evaluate_predictions, list_rows
from tlkeras.evaluation.intervals import Estimate
from tlkeras.evaluation.run_data import read_csv
from tlkeras.features.extraction import extract_activations
from tlkeras.heads.heads import order_outputs
from tlkeras.inference.predict import load_model
from tlkeras.results import Result
from tlkeras.runs.directory import RUNS, Run, open_run
from tlkeras.runs.predictions import Predictions, load_predictions, read_tasks, take
from tlkeras.training import builders

EXTERNAL_EVALUATION_DIR = "other_data"


@dataclass(frozen=True)
class ExternalEvaluationResult(Evaluation):
    """Metrics of a run on images from another source."""

    source: str  # as in `data.source`
    rejected: int  # images that cannot be read
    trained_on: int  # images whose files the run was trained on
    path: str  # of the run


@dataclass(frozen=True)
class StoredEvaluation(Result):
    """A JSON file that `evaluate_on` wrote into a run, and its metrics by task."""

    content: Mapping[str, Any]
    metrics: dict[str, dict[str, Estimate]]

    def to_dict(self) -> dict[str, Any]:
        return dict(self.content)


def evaluate_on(run: str | Path | Run, source: str, *, runs: str | Path = RUNS) -> ExternalEvaluationResult:
    """Metrics of a finished run on labelled images from another source; its folder `other_data/` keeps them.

    The run is a name, a path, `latest`, or a `Run`, the source as in `data.source`. DataError if the source cannot be
    read, or its labels are not the run's; RunError if there is no such run, or no model of it that can be read.
    """
    opened = open_run(run, runs)
    recipe = load_recipe(opened.require("recipe.yaml"))
    options = bootstrap_options(recipe)
    dataset = validate_images(builders.read_other_dataset(recipe, source, read_tasks(opened)))
    predictions, rows = _predict_dataset(opened, recipe, dataset)
    resamples, seed = options.bootstrap_samples, options.seed
    tasks = {one.task.name: evaluate_predictions(one, resamples=resamples, seed=seed) for one in predictions}
    trained = _read_training_digests(opened)
    result = ExternalEvaluationResult(
        opened.name,
        tasks,
        {"test": len(rows)},
        source,
        rejected=len(dataset) - len(rows) + len(dataset.rejected),
        trained_on=sum(digest in trained for digest in dataset.digests[rows].tolist()),
        path=str(opened.path),
    )
    name = re.sub(r"[^\w.-]+", "-", source).strip("-.")[-60:] or "data"
    content = {key: value for key, value in result.to_dict().items() if key != "path"}
    opened.write_json(f"{EXTERNAL_EVALUATION_DIR}/{name}.json", content)
    opened.write_table(f"{EXTERNAL_EVALUATION_DIR}/{name}.csv", COLUMNS, list_rows(tasks))
    return result


def read_external_evaluations(run: Run) -> list[StoredEvaluation]:
    """What `evaluate_on` has written into a run, by source; files that cannot be read are skipped."""
    found = []
    for path in sorted((run.path / EXTERNAL_EVALUATION_DIR).glob("*.json")):
        try:
            content = run.read_json(f"{EXTERNAL_EVALUATION_DIR}/{path.name}")
        except RunError:
            continue
        metrics = {}
        for task, of_task in (content.get("tasks") or {content["task"]: content}).items():
            metrics[task] = {name: Estimate.from_dict(values) for name, values in of_task["metrics"].items()}
        found.append(StoredEvaluation(content, metrics))
    return found


def _predict_dataset(run: Run, recipe: Recipe, dataset: Dataset) -> tuple[list[Predictions], np.ndarray]:
    """Predictions of a run's model per task, and the rows of the images that could be read, int64 [n]."""
    model = order_outputs(load_model(run), [task.name for task in dataset.tasks])
    priors = [predictions.prior for predictions in load_predictions(run)]
    facts = [{"model": run.name} for _ in model.outputs]
    engine = builders.feature_engine(recipe)
    with extract_activations(model, dataset, facts, engine=engine, dtype="float32") as predicted:
        rows, outputs = predicted.kept, [np.asarray(output) for output in predicted.outputs]
    keys = np.array([to_printable(key) for key in dataset.keys[rows]], dtype=str)
    columns = {"group": dataset.groups, "domain": dataset.domains, "stratum": dataset.strata}
    slices = {name: values[rows].astype(str) for name, values in columns.items()}
    predictions = []
    for task, output, prior in zip(dataset.tasks, outputs, priors, strict=True):
        targets = dataset.targets[task.name][rows]
        every = Predictions(task, keys, targets, output, dataset.weights[rows], prior, slices)
        predictions.append(take(every, task.is_labelled(targets)))
    return predictions, rows


def _read_training_digests(run: Run) -> set[str]:
    """SHA-256 of the files that a run was trained on; none where it did not write them down."""
    try:
        rows = read_csv(run, "splits.csv")
    except RunError:
        return set()
    return {row["sha256"] for row in rows if row["split"] == "train" and "sha256" in row}
