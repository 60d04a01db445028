"""One run: images, cached features, a fitted head, and all that later stages need, in one directory."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tlkeras import progress
from tlkeras.config.recipe import Recipe, fingerprint, load_recipe, recipe_to_yaml
from tlkeras.data.inspection import validate_images
from tlkeras.data.sources.folders import Dataset
from tlkeras.data.splits import check_splits
from tlkeras.errors import ResourceError, TlkerasError
from tlkeras.features.extraction import Activations
from tlkeras.features.extractor import FeatureExtractor
from tlkeras.features.memory import check_memory
from tlkeras.finetuning.checkpoints import Checkpoints
from tlkeras.finetuning.distribution import Strategy
from tlkeras.heads.deep import KerasHead
from tlkeras.heads.heads import Head, attach_heads
from tlkeras.heads.late_fusion import fit_late_fusion
from tlkeras.heads.linear import LinearHead
from tlkeras.heads.regression import RidgeRegressionHead
from tlkeras.lazy_tensorflow import take_import_seconds
from tlkeras.runs.directory import RUNS, Run, create_run, find_resumable_run, log_to_file
from tlkeras.runs.predictions import save_predictions, write_fusion, write_images, write_probes
from tlkeras.training import builders
from tlkeras.training.builders.fit_heads import SplitFeatures, find_groups, fit_heads
from tlkeras.training.finetune import CHECKPOINTS, fine_tune, predict_split


def train(
    recipe: str | Recipe,
    overrides: Mapping[str, Any] | None = None,
    *,
    quick: bool = False,
    runs: str | Path = RUNS,
) -> Run:
    """The finished run of a recipe, in a new directory; `evaluate` tells how good it is.

    What can be known before the first batch (unreadable source, unknown column, too few images, missing weights)
    is raised before the directory is made.

    Args:
        recipe: Name of a shipped recipe, path of a YAML file, or a `Recipe`.
        overrides: Values by dotted key, such as `{"data.seed": 1}`.
        quick: Shrink the run to seconds; its figures then mean nothing.
        runs: Folder of the run directories.

    Raises:
        TlkerasError: What is in the way, in the user's words.
    """
    resolved = load_recipe(recipe, overrides, quick=quick)
    return _carry_out(resolved, lambda: create_run(Path(runs), resolved.name))


def resume(run: str | Path | Run = "latest", *, runs: str | Path = RUNS) -> Run:
    """The finished run that went on, from its newest checkpoint, where an interrupted, killed or failed one stopped.

    On the same machine it ends with the same bits as a run that was never stopped.

    Raises:
        RunError: There is no such run, it has finished, or another process is writing it.
        TlkerasError: What else is in the way.
    """
    stopped = find_resumable_run(run, Path(runs))
    return _carry_out(load_recipe(stopped.require("recipe.yaml")), lambda: stopped)


def _carry_out(recipe: Recipe, place: Callable[[], Run]) -> Run:
    """Do a training in the run that `place` gives once nothing is in the way; it is marked as running."""
    start = time.perf_counter()
    distribution = builders.make_distribution(recipe)
    dataset, extractor = _prepare(recipe)
    run = place() if distribution.is_chief else create_run(_make_scratch(), recipe.name)
    run.phases |= {
        "load libraries": round(take_import_seconds(), 3),
        "build backbone": round(time.perf_counter() - start, 3),
    }
    with run.locked():
        if (run.path / "recipe.yaml").exists():
            run.resume()
        else:
            run.write_text("recipe.yaml", recipe_to_yaml(recipe))
        _record_failure(run, lambda: _run_training(recipe, run, dataset, extractor, distribution))
    return run


def _make_scratch() -> Path:
    """Return a folder for what a process beside the chief writes; nobody reads it but to compare."""
    return Path(tempfile.mkdtemp(prefix="tlkeras-worker-"))


def _record_failure(run: Run, work: Callable[[], None]) -> None:
    """Do the work of a run; write into its manifest how it ended if it was not the end."""
    with log_to_file(run):
        try:
            work()
        except BaseException as error:
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with contextlib.suppress(ResourceError):  # a full disk must not hide what went wrong first
                run.update_manifest(state=state, phases=run.phases, error=f"{type(error).__name__}: {error}")
            raise


def _prepare(recipe: Recipe) -> tuple[Dataset, FeatureExtractor]:
    """Do what can fail before work starts, and raise what is wrong with all of it at once."""
    problems: list[TlkerasError] = []
    splits = None
    with _collect_errors(problems):
        dataset = builders.read_dataset(recipe)
        splits = builders.split_dataset(recipe, dataset)
    with _collect_errors(problems):
        extractor = builders.build_feature_extractor(recipe)
        if recipe.finetuning and splits is not None:
            builders.plan_recipe(recipe, extractor, dataset, splits)
            builders.check_recipe_feed(recipe, dataset)
    if len(problems) > 1:
        raise type(problems[0]).from_problems("Several things are in the way:", [str(error) for error in problems])
    if problems:
        raise problems[0]
    return dataset, extractor


@contextlib.contextmanager
def _collect_errors(problems: list[TlkerasError]) -> Iterator[None]:
    try:
        yield
    except TlkerasError as error:
        problems.append(error)


def _run_training(
    recipe: Recipe, run: Run, dataset: Dataset, extractor: FeatureExtractor, distribution: Strategy
) -> None:
    with run.phase("check images"):
        inspection = validate_images(dataset)
        dataset = inspection.dataset
        splits = builders.split_dataset(recipe, dataset)
    check_memory(len(dataset), extractor.pooled.output_shape[1:])
    with run.phase("extract features"):
        builders.fit_recipe_codebooks(recipe, extractor, inspection, splits)
        features = builders.extract_features(
            recipe, extractor, inspection, builders.activations_needed(recipe, extractor, dataset, splits)
        )
    kept = np.isin(np.arange(len(dataset)), features.kept)
    check_splits(dataset, np.where(kept, splits, ""))
    with features, run.phase("fit head"):
        names = ("train", "validation", "test", builders.TARGET)
        parts = {name: take_split(features, splits == name) for name in names}
        make = builders.adapt_heads(recipe, partial(builders.make_recipe_head, recipe))
        heads = fit_heads(make, dataset, parts)
        rows = {name: part.rows for name, part in parts.items() if name in names[:3] or len(part.rows)}
        asked = builders.evaluated_splits(recipe, rows)
        probabilities = {split: _predict_split(heads, parts[split]) for split in asked}
        _fit_linear_probe(recipe, run, dataset, parts, heads)
        _fuse_late(recipe, run, dataset, parts, builders.fused_widths(recipe, extractor))
    history, *_ = (head.history() for head in heads.values())
    facts = _describe(recipe, features, heads)
    if recipe.finetuning:
        model, probabilities, history, facts["finetuning"] = fine_tune(
            recipe, run, inspection, extractor, heads, rows, distribution
        )
    else:
        model = builders.add_test_time_views(recipe, extractor, attach_heads(extractor.pooled, heads, recipe.name))
        if recipe.augmentation.test_time:
            with run.phase("measure"):
                probabilities = {split: predict_split(recipe, model, inspection, rows[split]) for split in asked}
    with run.phase("write run"):
        with run.replacing("model.keras") as aside:
            model.save(aside)
        write_images(run, dataset, splits, inspection.digests, [*inspection.rejected, *features.rejected])
        save_predictions(run, dataset, rows, probabilities)
        run.write_table("history.csv", list(history), zip(*history.values(), strict=True))
        run.update_manifest(
            recipe=fingerprint(recipe),
            image=builders.preprocessing_config(recipe),
            examples={name: len(of_split) for name, of_split in rows.items()},
            parameters=model.count_params(),
            rejected=len(inspection.rejected) + len(features.rejected),
            data=dict(dataset.facts),
            **facts,
        )
    if not distribution.is_chief:
        run.update_manifest(worker=distribution.worker)
    run.finish()
    Checkpoints(run.path / CHECKPOINTS).clear()


def _fit_linear_probe(
    recipe: Recipe, run: Run, dataset: Dataset, parts: Mapping[str, SplitFeatures], heads: Mapping[str, Head]
) -> None:
    """Keep what linear heads on the same frozen features say of the held-out images, if the run's are others."""
    linear = all(isinstance(head, (LinearHead, RidgeRegressionHead)) for head in heads.values())
    if recipe.finetuning or not linear:
        plain = {name: parts[name].as_vectors() for name in ("train", "test")}
        probes = heads if linear else fit_heads(LinearHead, dataset, {"train": plain["train"]})
        write_probes(run, dataset.tasks, _predict_split(probes, plain["test"]))


def _describe(recipe: Recipe, features: Activations, heads: Mapping[str, Head]) -> dict[str, Any]:
    """Return what the manifest says of features and heads; `head` is that of the main task."""
    described = {name: head.describe() for name, head in heads.items()}
    return {
        "features": {
            "engine": features.engine,
            "computed": features.computed,
            "reused": features.reused,
            "handcrafted": [one.kind for one in recipe.features.handcrafted],
        },
        "head": next(iter(described.values())),
        "heads": described,
    }


def _fuse_late(
    recipe: Recipe, run: Run, dataset: Dataset, parts: Mapping[str, SplitFeatures], widths: Sequence[int]
) -> None:
    """Keep what heads on each part of fused features say of the held-out images, joined afterwards.

    What takes epochs to train is replaced by linear heads: each part is fitted six times.
    """
    if not widths:
        return
    make: Callable[[], Any] = partial(builders.make_recipe_head, recipe)
    if isinstance(make(), KerasHead):
        make = LinearHead
    make = builders.adapt_heads(recipe, make, on_parts=True)
    target = parts[builders.TARGET].X if recipe.domain_adaptation else None
    fused: dict[str, dict[str, np.ndarray]] = {}
    with progress.progress_bar("Fusing late", len(dataset.tasks), "tasks") as advance, progress.hide():
        for task in dataset.tasks:
            if not task.has_classes:
                fused[task.name] = {}
                continue
            rows, (X, y, weights) = parts["train"].take(dataset, task)
            groups = find_groups(dataset, rows)
            learned = {"X": X, "y": y, "sample_weight": weights, "groups": groups, "target": target}
            fused[task.name] = fit_late_fusion(make, widths, learned, parts["test"].X, recipe.training.seed)
            advance(1)
    write_fusion(run, dataset.tasks, fused)


def take_split(features: Activations, wanted: np.ndarray) -> SplitFeatures:
    """Read one split's features from the store; images without features are left out."""
    places = np.flatnonzero(wanted[features.kept])
    rows = features.kept[places]
    return SplitFeatures(rows, features.outputs[0][places])


def _predict_split(heads: Mapping[str, Head], split: SplitFeatures) -> dict[str, np.ndarray]:
    """Return the probabilities of a split's images by task, float32 (n, k)."""
    return {name: head.predict_proba(split.X).astype(np.float32) for name, head in heads.items()}
