"""Files next to an exported model: labels, the model card, and settings of TensorFlow Serving."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from tlkeras.config.recipe import load_recipe, recipe_to_yaml
from tlkeras.data.tasks import Task
from tlkeras.errors import RunError
from tlkeras.evaluation.metric_names import explain_reasons
from tlkeras.exporting.parity import REFERENCE, ExportReport, ParityResult
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


def write_labels(path: Path, tasks: Sequence[Task]) -> None:
    """Write the class names of each task, in the order of its probabilities."""
    labels = {task.name: list(task.class_names) for task in tasks}
    (path / LABELS).write_text(json.dumps(labels, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_batching(path: Path) -> None:
    """Write the batching parameters, for servers with --enable_per_model_batching_parameters."""
    (path / BATCHING).write_text(_BATCHING, encoding="utf-8")


def write_config(target: Path) -> None:
    """Write a server configuration that serves the newest version, unless there is one already."""
    if (target / CONFIG).exists():
        return
    name = served_name(target)
    config = f"""\
model_config_list {{
  config {{
    name: {json.dumps(name)}
    base_path: {json.dumps(f"/models/{name}")}
    model_platform: "tensorflow"
    model_version_policy {{ latest {{ num_versions: 1 }} }}
  }}
}}
"""
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
    recipe = load_recipe(str(run.path / "recipe.yaml"))
    origin = builders.describe_origin(recipe)
    licences = builders.list_licences(recipe, run.manifest.get("data", {}))
    environment = run.read_json("environment.json")
    versions = {"python": environment["python"], **environment["versions"]}
    sections = [
        f"# {name}",
        _introduce(run, origin, report),
        "## Data\n\n" + _describe_data(run, origin["source"]),
        "## Metrics\n\n" + _tabulate_metrics(run),
        "## This export against the run\n\n" + _tabulate_parity(report.parity),
        f"On {report.images:,} held-out images, each compared with the {REFERENCE}.",
        *report.notes,
        "## Limits\n\n" + _LIMITS,
        "## Licences\n\n" + "\n".join(f"- {what}: {licence}" for what, licence in licences.items()),
        "## Recipe\n\n```yaml\n" + recipe_to_yaml(recipe).strip() + "\n```",
        "## Versions\n\n" + "\n".join(f"- {what} {version}" for what, version in versions.items() if version),
    ]
    (path / CARD).write_text("\n\n".join(sections) + "\n", encoding="utf-8")


_LIMITS = """\
- It always predicts one of its labels, also for images that show none of them: a low probability is a hint, not a
  test.
- The metrics hold for images like the held-out ones. Other cameras, light or populations need metrics of their own.
- Probabilities are those of the network unless a note above says that they were calibrated; `tlkeras report` shows
  their calibration error.
- Nobody has checked it for decisions about people."""


def _introduce(run: Run, origin: Mapping[str, str], report: ExportReport) -> str:
    labels = "\n".join(f"- {name}: {', '.join(of_task)}" for name, of_task in run.read_json("classes.json").items())
    return (
        f"An image classifier made by transfer learning from `{origin['backbone']}` (weights: "
        f"{origin['weights']}), run `{run.name}`. It takes {report.image.size} px images; files are "
        f"decoded and resized ({report.image.resize}) inside the model.\n\n{labels}"
    )


def _describe_data(run: Run, source: str) -> str:
    manifest = run.manifest
    counts = ", ".join(f"{split} {count:,}" for split, count in manifest.get("examples", {}).items())
    first = f"Source `{source}`; images: {counts}; {manifest.get('rejected', 0):,} could not be read."
    return "\n".join([first, *(f"- {key}: {value}" for key, value in manifest.get("data", {}).items())])


def _tabulate_metrics(run: Run) -> str:
    try:
        measured = run.read_json("metrics.json")
        lines = ["| | value | 95 % interval | majority baseline |", "|---|---|---|---|"]
        for name, metric in measured["metrics"].items():
            baseline = measured["baseline"][name]["value"]
            interval = _format_interval(metric["low"], metric["high"])
            cells = (name.replace("_", " "), _format(metric["value"]), interval, _format(baseline))
            lines.append(f"| {' | '.join(cells)} |")
        reasons = {name: metric.get("reason", "") for name, metric in measured["metrics"].items()}
        missing = [line for sentence in explain_reasons(reasons) for line in ("", sentence)]
        count = f"On {measured['examples']['test']:,} held-out images; {measured['interval']}."
        return "\n".join([*lines, *missing, "", count])
    except (RunError, KeyError, TypeError):
        return "The run has not been evaluated. `tlkeras evaluate RUN` does it."


def _format(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _format_interval(low: float | None, high: float | None) -> str:
    known = low is not None and high is not None and not math.isnan(low)
    return f"{_format(low)} to {_format(high)}" if known else "-"


def _tabulate_parity(rows: Sequence[ParityResult]) -> str:
    lines = [
        "| format | task | largest difference | same prediction | accuracy | 95 % interval | MB | ms per image |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        accuracy = row.accuracy
        lines.append(
            f"| {row.form} | {row.task} | {row.difference:.1e} | {row.agreement:.2%} | {accuracy.value:.4f} | "
            f"{_format_interval(accuracy.low, accuracy.high)} | {row.megabytes:.2f} | {row.milliseconds:.1f} |"
        )
    return "\n".join(lines)
