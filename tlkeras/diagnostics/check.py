"""A training without the training: everything that can be known before the first batch, said at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tlkeras.config.recipe import Recipe, load_recipe
from tlkeras.data.headers import to_printable
from tlkeras.data.inspection import ValidatedDataset, drop_undecodable, validate_images
from tlkeras.data.quality.cleaning import clean, write_manifest
from tlkeras.data.quality.duplicates import (
    DuplicateGroup,
    LeakingGroup,
    find_duplicates,
    find_leaking_groups,
    join_groups,
)
from tlkeras.data.quality.near_duplicates import read_thumbnails
from tlkeras.data.sources.references import load_recipe_or_source
from tlkeras.data.splits import classes_missing_from_test
from tlkeras.data.tables import Dataset
from tlkeras.diagnostics import data_quality
from tlkeras.diagnostics.check_page import render_check_page
from tlkeras.errors import TlkerasError, list_some
from tlkeras.features.extraction import average_positions
from tlkeras.features.extractor import FeatureExtractor
from tlkeras.features.memory import check_memory
from tlkeras.plotting.html_page import check_page, write_page
from tlkeras.training import builders
from tlkeras.tuning.search import check_space

MOST_FEATURES = 2000  # computed without being asked for: some seconds


@dataclass(frozen=True)
class CheckOptions:
    """What `check` is asked for besides its findings.

    Attributes:
        train: Also say what training would do; otherwise only the images matter.
        deep: Look for wrong labels and outliers however many features must be computed for it.
        page: The HTML file to write.
        manifest: The cleaned manifest to write.
    """

    train: bool = True
    deep: bool = False
    page: str | None = None
    manifest: str | None = None


def check(
    recipe: str | Path | Recipe,
    overrides: Mapping[str, Any] | None = None,
    *,
    deep: bool = False,
    html: str | Path | None = None,
    fix: str | Path | None = None,
) -> dict[str, Any]:
    """All that is in the way of a training, or worth a look, in a recipe's images, labels and stages.

    Args:
        recipe: A recipe, or images alone: a folder, a manifest, "tfds:NAME" or a packaged set, which are examined as
            `linear_probe` would take them.
        overrides: Values by dotted key.
        deep: Look for wrong labels and outliers however many features must be computed for it.
        html: A page to write, with the images in question.
        fix: A cleaned manifest to write; images are never touched.

    Returns:
        `name`; `problems`, sentences, empty where training is advisable; `notes`, sentences worth reading; `facts`,
        name -> text on images, splits, backbone and cost; `rejected` and `remarks`, path, code and reason of files
        that cannot be used and that are odd; `classes`, images of each; `copies`, groups of images that are the
        same or look the same; `mislabelled` and `outliers`, most suspicious first, None where nobody looked; `page` and
        `manifest`, what was written.
    """
    resolved, train = load_recipe_or_source(recipe, overrides)
    page, manifest = (None if path is None else str(path) for path in (html, fix))
    return _check(resolved, CheckOptions(train, deep, page, manifest))


def _check(recipe: Recipe, options: CheckOptions) -> dict[str, Any]:
    report: dict[str, Any] = {"name": recipe.name, "problems": [], "notes": [], "facts": {}, "rejected": []}
    report |= {"remarks": [], "classes": [], "copies": [], "leaking_groups": [], "mislabelled": None, "outliers": None}
    if options.page:
        check_page(options.page)
    found = _collect_problem(report, lambda: _look_at_images(recipe, report))
    problems = report["problems"] if options.train else report["notes"]
    extractor = _collect_problem(
        {"problems": problems}, lambda: _look_at_backbone(recipe, report, found, options.train)
    )
    if found is not None and extractor is not None:
        _collect_problem(report, lambda: _look_for_suspects(recipe, report, extractor, found, options.deep))
    if recipe.tuning is not None:
        _collect_problem(report, lambda: check_space(recipe))
    if found is not None and options.manifest:
        _collect_problem(report, lambda: _write_manifest(recipe, report, found, options.manifest or ""))
    if options.page:
        paths = (
            {} if found is None else dict(zip(map(to_printable, found.dataset.paths), found.dataset.paths, strict=True))
        )
        report["page"] = str(write_page(options.page, f"Check of {report['name']}", render_check_page(report, paths)))
    return report


def show_schedule(recipe: str | Path | Recipe, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a recipe's fine-tuning would do.

    Returns:
        `name`; `stages`, each with `name`, `epochs` (at most), `cut`, `megabytes` (kept for it, in all views), `saved`
        (share of the work), `reason`, `parameters` that train, and `blocks`: name, learning rate and parameters of
        each that trains, from the head down; `views` that are kept of an image, and their `precision`; `reasons`:
        value and why, for stages chosen from the data.

    Raises:
        TlkerasError: The recipe does not fine-tune, or a stage does not suit the backbone or the data.
    """
    recipe = load_recipe(recipe, overrides)
    dataset = builders.read_dataset(recipe)
    splits = builders.split_dataset(recipe, dataset)
    extractor = builders.build_feature_extractor(recipe)
    schedule, plan, choices = builders.plan_recipe(recipe, extractor, dataset, splits)
    images = int((splits == "train").sum())
    stages = []
    for stage, planned in zip(schedule.stages, plan.stages, strict=True):
        rates = list(zip(extractor.blocks, stage.multipliers(len(extractor.blocks)), strict=True))
        blocks = [
            {"name": block.name, "learning_rate": stage.learning_rate * rate, "parameters": block.parameters}
            for block, rate in rates
            if rate
        ]
        stages.append(
            {
                "name": stage.name,
                "epochs": stage.length,
                "learning_rate": stage.learning_rate,
                "cut": planned.cut,
                "megabytes": planned.bytes * images * (plan.views or 0) / 1e6,
                "saved": planned.saved,
                "reason": planned.reason,
                "parameters": sum(block.parameters for block, rate in rates if rate),
                "blocks": blocks[::-1],
            }
        )
    reasons = [{"key": choice.key, "value": choice.value, "reason": choice.reason} for choice in choices]
    return {
        "name": recipe.name,
        "stages": stages,
        "views": plan.views,
        "precision": builders.CACHE_DTYPE,
        "reasons": reasons,
    }


def _collect_problem(report: dict[str, Any], stage: Callable[[], Any]) -> Any:
    try:
        return stage()
    except TlkerasError as error:
        report["problems"].append(str(error))
        return None


@dataclass(frozen=True)
class _DatasetFindings:
    """Images that can be used, and what was found in them."""

    inspection: ValidatedDataset
    splits: np.ndarray
    copies: list[DuplicateGroup]
    leaking: list[LeakingGroup]

    @property
    def dataset(self) -> Dataset:
        return self.inspection.dataset

    @property
    def groups(self) -> np.ndarray:
        """What must not be parted: the source's groups, and copies."""
        return join_groups(self.dataset.groups, self.copies)


def _look_at_images(recipe: Recipe, report: dict[str, Any]) -> _DatasetFindings:
    inspection = validate_images(builders.read_dataset(recipe))
    thumbnails, readable = read_thumbnails(inspection.dataset.paths.tolist())
    inspection = drop_undecodable(inspection, readable)
    dataset = inspection.dataset
    report["rejected"] = data_quality.describe_findings(inspection.rejected)
    report["remarks"] = data_quality.describe_findings(inspection.notes)
    report["facts"]["images"] = f"{len(dataset):,} from {dataset.source}"
    splits = _collect_problem(report, lambda: builders.split_dataset(recipe, dataset))
    if splits is None:
        splits = np.full(len(dataset), "", dtype=object)
    else:
        report["facts"]["splits"] = ", ".join(f"{split} {(splits == split).sum():,}" for split in dict.fromkeys(splits))
        report["notes"] += classes_missing_from_test(dataset, splits)
    copies = find_duplicates(dataset, inspection.digests, thumbnails, splits)
    leaking = find_leaking_groups(dataset.groups, splits)
    report["classes"] = data_quality.describe_classes(dataset, splits)
    report["facts"]["classes"] = ", ".join(f"{row['class']} {row['images']:,}" for row in report["classes"])
    report["copies"] = data_quality.duplicates_to_dicts(dataset, splits, copies)
    report["leaking_groups"] = [asdict(group) for group in leaking]
    problems, notes = data_quality.summarise(inspection, splits, copies, leaking)
    report["problems"] += list_some(problems)
    report["notes"] += notes
    if inspection.rejected:
        report["notes"].append(f"{len(inspection.rejected):,} of the files cannot be used and will be left out.")
    if licence := dataset.facts.get("licence"):
        report["facts"]["licence of the images"] = licence
    return _DatasetFindings(inspection, splits, copies, leaking)


def _look_at_backbone(
    recipe: Recipe, report: dict[str, Any], found: _DatasetFindings | None, train: bool
) -> FeatureExtractor:
    extractor = builders.build_feature_extractor(recipe)
    size = builders.image_size(recipe)
    report["facts"]["backbone"] = f"{recipe.backbone.name} at {size} px, weights {recipe.backbone.weights}"
    if recipe.features.handcrafted:
        kinds = ", ".join(one.kind for one in recipe.features.handcrafted)
        report["facts"]["handcrafted features"] = kinds
        report["notes"].append(
            f"Handcrafted features ({kinds}) cannot become a SavedModel: `predict` works, `export` refuses."
        )
    report["facts"]["features"] = (
        " x ".join(map(str, extractor.pooled.output_shape[1:])) + f" {recipe.features.precision}"
    )
    if not train or found is None or not found.splits.all():
        return extractor
    check_memory(len(found.dataset), extractor.pooled.output_shape[1:])
    if recipe.finetuning:
        builders.check_recipe_feed(recipe, found.dataset)
        _, plan, _ = builders.plan_recipe(recipe, extractor, found.dataset, found.splits)
        for stage in plan.stages:
            report["facts"][f"stage {stage.stage}"] = f"from {stage.cut}: {stage.reason}"
    lacking, needed = builders.count_lacking(recipe, extractor, found.inspection, found.splits)
    report["facts"]["to compute"] = f"{lacking:,} of {needed:,} images, each view counted; the rest is cached"
    return extractor


def _look_for_suspects(
    recipe: Recipe, report: dict[str, Any], extractor: FeatureExtractor, found: _DatasetFindings, deep: bool
) -> None:
    lacking = builders.count_features(recipe, extractor, found.inspection)
    if lacking > MOST_FEATURES and not deep:
        report["notes"].append(
            f"Wrong labels and outliers were not looked for: the features of {lacking:,} images would have to be"
            " computed. `--deep` does it, and keeps them for the training."
        )
        return
    builders.fit_recipe_codebooks(recipe, extractor, found.inspection, found.splits)
    with builders.extract_features(recipe, extractor, found.inspection) as features:
        matrix = average_positions(np.asarray(features.outputs[0], np.float32))
        suspects = data_quality.find_suspects(found.dataset, features.kept, matrix, found.groups)
    described = data_quality.describe_suspects(found.dataset, found.splits, suspects)
    report |= described
    for name, sentence in (("mislabelled", "look mislabelled"), ("outliers", "are unlike all others")):
        if described[name]:
            report["notes"].append(f"{len(described[name]):,} image(s) {sentence}.")


def _write_manifest(recipe: Recipe, report: dict[str, Any], found: _DatasetFindings, path: str) -> None:
    cleaning = clean(found.dataset, found.copies, found.leaking)
    position = {str(key): row for row, key in enumerate(found.dataset.keys)}
    suspected = [""] * len(found.dataset)
    for suspect in reversed(report["mislabelled"] or []):
        suspected[position[suspect["key"]]] = suspect["suggested"]
    remarks = {"suggested": suspected} if any(suspected) else {}
    written = write_manifest(path, builders.read_source(recipe), found.dataset, cleaning, remarks)
    report["manifest"] = {"path": str(written), "images": len(cleaning.kept), "left_out": cleaning.left_out}
