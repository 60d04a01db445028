"""Files next to an exported model: labels, the model card, and settings of TensorFlow Serving."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tlkeras.config.recipe import load_recipe, recipe_to_yaml
from tlkeras.data.tasks import Task
from tlkeras.errors import RunError
from tlkeras.evaluation.metric_names import explain_reasons
from tlkeras.exporting.parity import REFERENCE, ExportReport
from tlkeras.exporting.versions import CONFIG
from tlkeras.files import atomic_write
from tlkeras.runs.directory import Run
from tlkeras.training import builders

LABELS = "labels.json"
CARD = "MODEL_CARD.md"
REPORT = "tlkeras.json"
BATCHING = "batching_params.pbtxt"
MAX_BATCH_SIZE = 32

# Fields of tensorflow.serving.BatchingParameters, whose proto no package carries. One thread forms batches and
# TensorFlow uses all cores within one: more threads only share them (tensorflow/serving issues 1529 and 1904).
_BATCHING = f"""\
max_batch_size {{ value: {MAX_BATCH_SIZE} }}
batch_timeout_micros {{ value: 2000 }}
num_batch_threads {{ value: 2 }}
max_enqueued_batches {{ value: 100 }}
"""


def _render(template: str, **values: Any) -> str:
    """A file of the folder `templates`, filled in; nothing is escaped."""
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    return environment.get_template(template).render(values)


def write_labels(path: Path, tasks: Sequence[Task]) -> None:
    """Write the class names of each task, in the order of its probabilities."""
    labels = {task.name: list(task.class_names) for task in tasks}
    (path / LABELS).write_text(json.dumps(labels, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_batching(path: Path) -> None:
    """Write the batching parameters, for servers with --enable_per_model_batching_parameters."""
    (path / BATCHING).write_text(_BATCHING, encoding="utf-8")


def write_config(target: Path) -> None:
    """Write a server configuration that serves the newest version, unless there is one already."""
    if not (target / CONFIG).exists():
        name = served_name(target)
        config = _render(CONFIG, name=json.dumps(name), base_path=json.dumps(f"/models/{name}"))
        with atomic_write(target / CONFIG) as file:
            file.write_text(config, encoding="utf-8")


def served_name(target: Path) -> str:
    """Name under which a folder of versions is served."""
    return target.resolve().name


def docker_command(target: Path) -> str:
    """Command that serves a folder of versions with TensorFlow Serving."""
    name, folder = served_name(target), target.resolve()
    return (
        f"docker run --rm -p 8500:8500 -p 8501:8501 --mount type=bind,source={shlex.quote(str(folder))},"
        f"target=/models/{name},readonly tensorflow/serving:2.20.0 --model_config_file=/models/{name}/{CONFIG} "
        "--enable_batching --enable_per_model_batching_parameters"
    )


def write_card(path: Path, run: Run, name: str, report: ExportReport) -> None:
    """Write the model card: purpose, data, metrics with intervals, limits, licences, recipe, versions."""
    recipe, manifest = load_recipe(str(run.path / "recipe.yaml")), run.manifest
    data, environment = manifest.get("data", {}), run.read_json("environment.json")
    card = _render(
        CARD,
        name=name,
        run=run.name,
        report=report,
        reference=REFERENCE,
        origin=builders.describe_origin(recipe),
        classes=run.read_json("classes.json"),
        counts=", ".join(f"{split} {count:,}" for split, count in manifest.get("examples", {}).items()),
        rejected=manifest.get("rejected", 0),
        data=data,
        metrics=_read_metrics(run),
        interval=_format_interval,
        licences=builders.list_licences(recipe, data),
        recipe=recipe_to_yaml(recipe).strip(),
        versions={"python": environment["python"], **environment["versions"]},
    )
    (path / CARD).write_text(card, encoding="utf-8")


def _read_metrics(run: Run) -> dict[str, object] | None:
    """Cells of the metrics' table, sentences on missing ones, and how they were measured; None if they were not."""
    try:
        measured = run.read_json("metrics.json")
        rows = []
        for name, metric in measured["metrics"].items():
            baseline, interval = measured["baseline"][name]["value"], _format_interval(metric["low"], metric["high"])
            rows.append((name.replace("_", " "), _format(metric["value"]), interval, _format(baseline)))
        reasons = {name: metric.get("reason", "") for name, metric in measured["metrics"].items()}
        count = f"On {measured['examples']['test']:,} held-out images; {measured['interval']}."
        return {"rows": rows, "missing": explain_reasons(reasons), "count": count}
    except (RunError, KeyError, TypeError):
        return None


def _format(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _format_interval(low: float | None, high: float | None) -> str:
    known = low is not None and high is not None and not math.isnan(low)
    return f"{_format(low)} to {_format(high)}" if known else "-"
