"""A folder of numbered versions, as TensorFlow Serving watches it: BASE/<integer>/, and the files that go with them."""

import json
import math
import os
import shlex
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tensorflow as tf
from filelock import FileLock
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tlkeras.config.recipe import load_recipe, recipe_to_yaml
from tlkeras.data.tasks import Task
from tlkeras.errors import ExportError, ResourceError, RunError
from tlkeras.evaluation.metric_names import explain_reasons
from tlkeras.exporting.parity import REFERENCE, ExportReport
from tlkeras.files import atomic_write, sync_folder
from tlkeras.runs.directory import Run
from tlkeras.training import builders

VERSIONS_FILE, CONFIG = "versions.json", "models.config"  # in the folder
LABELS, CARD, REPORT, BATCHING = "labels.json", "MODEL_CARD.md", "tlkeras.json", "batching_params.pbtxt"  # in a version
MAX_BATCH_SIZE = 32
_STAGING_PREFIX = ".tmp-"
_STALE_SECONDS = 86_400

# Fields of tensorflow.serving.BatchingParameters, whose proto no package carries. One thread forms batches and
# TensorFlow uses all cores within one: more threads only share them (tensorflow/serving issues 1529 and 1904).
_BATCHING = f"""\
max_batch_size {{ value: {MAX_BATCH_SIZE} }}
batch_timeout_micros {{ value: 2000 }}
num_batch_threads {{ value: 2 }}
max_enqueued_batches {{ value: 100 }}
"""


def check_target(target: Path) -> None:
    """Raise an ExportError if a folder holds anything but exported versions, and a ResourceError if it is a file."""
    if target.exists() and not target.is_dir():
        raise ResourceError(f"Cannot write to {target}: it is a file.", way_out="Choose a folder with --to.")
    if not target.is_dir() or (target / VERSIONS_FILE).is_file():
        return
    others = [
        path.name
        for path in sorted(target.iterdir())
        if not path.name.startswith(".")
        and path.name not in (VERSIONS_FILE, CONFIG)
        and not (path.name.isdecimal() and (path / "saved_model.pb").is_file())
    ]
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise ExportError(
            f"{target} already contains other files ({', '.join(others[:3])}{more}).",
            way_out="Nothing there was changed. Choose a new folder, or one of exported versions, with --to.",
        )


def list_versions(target: Path) -> list[int]:
    """Numbers of the versions in a folder, in ascending order."""
    if not target.is_dir():
        return []
    return sorted(int(path.name) for path in target.iterdir() if path.name.isdecimal() and path.is_dir())


@contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """A path inside `target` for a version, hidden from servers; ResourceError if nothing can be written there."""
    staging = target / f"{_STAGING_PREFIX}{uuid.uuid4().hex}"
    try:
        target.mkdir(parents=True, exist_ok=True)
        for left in target.glob(f"{_STAGING_PREFIX}*"):  # by exports that were killed a day ago or longer
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        yield staging
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "message", None) or error
        raise ResourceError(f"Cannot write to {target}: {reason}.", way_out="Nothing there was changed.") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def publish(staging: Path, target: Path, facts: Mapping[str, Any]) -> int:
    """The next unused integer, which becomes a finished folder's name; ExportError if versions.json is damaged."""
    sync(staging)
    with FileLock(target / ".lock"):
        last, recorded = _read_ledger(target)
        version = max([last, *list_versions(target)]) + 1
        ledger = {"last": version, "versions": {**recorded, str(version): dict(facts)}}
        with atomic_write(target / VERSIONS_FILE) as file:  # a number is recorded before it is used
            file.write_text(json.dumps(ledger, indent=2) + "\n", encoding="utf-8")
        os.rename(staging, target / str(version))
        sync_folder(target)
    return version


def _read_ledger(target: Path) -> tuple[int, dict[str, object]]:
    path = target / VERSIONS_FILE
    if not path.exists():
        return 0, {}
    try:
        ledger = json.loads(path.read_text(encoding="utf-8"))
        return int(ledger["last"]), dict(ledger["versions"])
    except (ValueError, KeyError, TypeError) as error:
        raise ExportError(
            f"{path} is damaged: the last version's number cannot be read.",
            error,
            'Correct it, as in {"last": 7, "versions": {}}: a number that was served is never used again.',
        ) from None


def sync(folder: Path) -> None:
    """Force every file and folder to the disk, so that a crash cannot leave a half-written version."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            sync_folder(path)
        else:
            with open(path, "rb") as file:
                os.fsync(file.fileno())


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
