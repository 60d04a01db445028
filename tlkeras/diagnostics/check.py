"""Everything that can be known about a training before it starts: images, labels, splits, backbone, stages, cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tlkeras.config.recipe import Recipe
from tlkeras.data.decoding import decode_file
from tlkeras.data.headers import ImageError, to_printable
from tlkeras.data.inspection import drop_undecodable, validate_images
from tlkeras.data.quality import duplicates as copies
from tlkeras.data.quality.cleaning import clean, write_manifest
from tlkeras.data.quality.near_duplicates import read_thumbnails
from tlkeras.data.sources.references import load_recipe_or_source
from tlkeras.data.splits import classes_missing_from_test
from tlkeras.data.tables import Dataset
from tlkeras.diagnostics import data_quality
from tlkeras.diagnostics.data_quality import (
    CheckedImage,
    CheckResult,
    ClassCount,
    DataIssues,
    DuplicateImages,
    ManifestResult,
    MislabelledImage,
    count_of,
)
from tlkeras.errors import TlkerasError, list_some
from tlkeras.features.extraction import average_positions
from tlkeras.features.extractor import FeatureExtractor
from tlkeras.features.memory import check_memory
from tlkeras.plotting.html_page import HtmlFigure, HtmlSection, check_page, write_page
from tlkeras.training import builders
from tlkeras.training.builders.experiment import Experiment
from tlkeras.training.builders.features import feature_precision
from tlkeras.training.builders.schedule import plan_finetuning
from tlkeras.training.builders.variants import has_search_space
from tlkeras.tuning.space import check_space

MOST_FEATURES = 2000  # computed without `deep`: some seconds

_T = TypeVar("_T")
_PIXELS = 132
_MOST_GROUPS, _MOST_IN_GROUP, _MOST_IMAGES = 60, 8, 96

_Image = TypeVar("_Image", bound=CheckedImage)


def check(
    recipe: str | Path | Recipe,
    overrides: Mapping[str, Any] | None = None,
    *,
    deep: bool = False,
    html: str | Path | None = None,
    fix: str | Path | None = None,
) -> CheckResult:
    """All problems that would stop a training or spoil its result, in a recipe's images, labels and stages.

    Args:
        recipe: A recipe, or images alone: a folder, a manifest, "tfds:NAME" or a packaged set, which are checked as
            `linear_probe` would take them.
        deep: Look for wrong labels and outliers however many features must be computed for it.
        html: A page to write, with the images in question.
        fix: A cleaned manifest to write; images are never touched.

    Raises:
        RecipeError: The recipe cannot be found, read or validated.
        ResourceError: The page cannot be written.
    """
    resolved, train = load_recipe_or_source(recipe, overrides)
    if html:
        check_page(html)
    images, of_images = _check_images(resolved)
    extractor, of_training = _check_training(resolved, images, train)
    issues, of_labels = _check_labels(resolved, images, extractor, deep)
    _, of_space = _attempt(lambda: check_space(resolved) if has_search_space(resolved) else None)
    manifest, of_manifest = _attempt(lambda: _write_manifest(resolved, images, issues, fix))
    findings = (of_images, of_training, of_labels, _Findings([*of_space, *of_manifest]))
    dataset = None if images is None else images.dataset
    result = CheckResult(
        name=resolved.name,
        problems=tuple(problem for found in findings for problem in found.problems),
        notes=tuple(note for found in findings for note in found.notes),
        facts={name: fact for found in findings for name, fact in found.facts.items()},
        rejected=() if dataset is None else data_quality.to_printable_issues(dataset.rejected),
        remarks=() if dataset is None else data_quality.to_printable_issues(dataset.warnings),
        classes=() if images is None else images.classes,
        copies=() if images is None else data_quality.list_duplicates(images.dataset, images.duplicates),
        leaking_groups=() if images is None else tuple(images.leaking),
        mislabelled=None if issues is None else issues.mislabelled,
        outliers=None if issues is None else issues.outliers,
        manifest=manifest,
    )
    return _write_page(result, dataset, html) if html else result


@dataclass(frozen=True)
class _Findings:
    """What one part of the check found."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _CheckedImages:
    """The images that can be used, with the split of each unless they cannot be split, and their duplicates."""

    dataset: Dataset
    duplicates: list[copies.DuplicateGroup]
    leaking: list[copies.LeakingGroup]
    classes: tuple[ClassCount, ...]


def _attempt(step: Callable[[], _T]) -> tuple[_T | None, list[str]]:
    """The result of a step, or None and the problem that it met."""
    try:
        return step(), []
    except TlkerasError as error:
        return None, [str(error)]


def _check_images(recipe: Recipe) -> tuple[_CheckedImages | None, _Findings]:
    """The images, or None where there are none, and what is wrong with files, splits and labels."""
    read, problems = _attempt(lambda: _read_images(recipe))
    if read is None:
        return None, _Findings(problems)
    dataset, thumbnails = read
    facts = {"images": f"{len(dataset):,} from {dataset.source}"}
    notes = []
    divided, problems = _attempt(lambda: builders.split_dataset(recipe, dataset))
    if divided is not None:
        dataset, split = divided, divided.split
        facts["splits"] = ", ".join(f"{name} {(split == name).sum():,}" for name in dict.fromkeys(split))
        notes += classes_missing_from_test(dataset)
    duplicates = copies.find_duplicates(dataset, thumbnails)
    leaking = copies.find_leaking_groups(dataset.groups, dataset.split)
    classes = data_quality.count_classes(dataset)
    facts["classes"] = ", ".join(f"{row.class_name} {row.images:,}" for row in classes)
    problems += list_some(data_quality.list_problems(dataset, duplicates, leaking))
    notes += data_quality.list_notes(dataset, duplicates)
    if dataset.rejected:
        files = count_of(len(dataset.rejected), "file cannot be used and is", "files cannot be used and are")
        notes.append(f"{files} left out.")
    if licence := dataset.facts.get("licence"):
        facts["licence of the images"] = licence
    return _CheckedImages(dataset, duplicates, leaking, classes), _Findings(problems, notes, facts)


def _read_images(recipe: Recipe) -> tuple[Dataset, np.ndarray]:
    """The images that can be decoded, and a thumbnail of each."""
    dataset = validate_images(builders.read_dataset(recipe))
    thumbnails, readable = read_thumbnails(dataset.paths.tolist())
    return drop_undecodable(dataset, readable), thumbnails


def _check_training(
    recipe: Recipe, images: _CheckedImages | None, train: bool
) -> tuple[FeatureExtractor | None, _Findings]:
    """The frozen network, if the training is possible, and what it would compute; problems are notes if not `train`."""
    extractor, problems = _attempt(lambda: builders.build_feature_extractor(recipe))
    if extractor is None:
        return None, _Findings(problems) if train else _Findings(notes=problems)
    origin, shape = builders.describe_origin(recipe), extractor.pooled.output_shape[1:]
    facts = {"backbone": f"{origin['backbone']} at {builders.image_size(recipe)} px, weights {origin['weights']}"}
    notes = []
    if handcrafted := ", ".join(builders.list_handcrafted_kinds(recipe)):
        facts["handcrafted features"] = handcrafted
        notes.append(f"Handcrafted features ({handcrafted}) cannot be exported as a SavedModel; `predict` works.")
    facts["features"] = f"{' x '.join(map(str, shape))} {feature_precision(recipe)}"
    if not train or images is None or not images.dataset.split.all():
        return extractor, _Findings([], notes, facts)
    planned, problems = _attempt(lambda: _plan(recipe, images.dataset, extractor))
    if planned is not None:
        if planned.plan is not None:
            facts |= {f"stage {one.stage}": f"from {one.cut}: {one.reason}" for one in planned.plan.caching.stages}
        counts, problems = _attempt(lambda: builders.count_cache_misses(planned))
        if counts is not None:
            facts["to compute"] = "{:,} of {:,} images, each view counted; the rest is cached".format(*counts)
    return None if problems else extractor, _Findings(problems, notes, facts)


def _plan(recipe: Recipe, dataset: Dataset, extractor: FeatureExtractor) -> Experiment:
    check_memory(len(dataset), extractor.pooled.output_shape[1:])
    experiment = Experiment(recipe, dataset, extractor, plan_finetuning(recipe, extractor, dataset))
    if experiment.plan is not None:
        builders.check_recipe_data_service(recipe, dataset)
    return experiment


def _check_labels(
    recipe: Recipe, images: _CheckedImages | None, extractor: FeatureExtractor | None, deep: bool
) -> tuple[DataIssues | None, _Findings]:
    """Wrong labels and outliers, or None where they were not looked for, and sentences on them."""
    if images is None or extractor is None:
        return None, _Findings()
    experiment = Experiment(recipe, images.dataset, extractor)
    missing, problems = _attempt(lambda: builders.count_missing_features(experiment))
    if missing is None:
        return None, _Findings(problems)
    if missing > MOST_FEATURES and not deep:
        reason = f"features of {missing:,} images would have to be computed"
        note = f"Wrong labels and outliers were not looked for: {reason}. `--deep` does it, and caches them."
        return None, _Findings(notes=[note])
    groups = copies.join_groups(images.dataset.groups, images.duplicates)
    issues, problems = _attempt(lambda: _find_issues(experiment, groups))
    if issues is None:
        return None, _Findings(problems)
    notes = []
    if wrong := len(issues.mislabelled):
        notes.append(f"{count_of(wrong, 'image looks', 'images look')} mislabelled.")
    if odd := len(issues.outliers):
        notes.append(f"{count_of(odd, 'image is', 'images are')} unlike all others.")
    return issues, _Findings(notes=notes)


def _find_issues(experiment: Experiment, groups: np.ndarray) -> DataIssues:
    builders.fit_recipe_codebooks(experiment)
    with builders.extract_features(experiment) as features:
        matrix = average_positions(np.asarray(features.outputs[0], np.float32))
        return data_quality.find_data_issues(experiment.dataset, features.kept, matrix, groups)


def _write_manifest(
    recipe: Recipe, images: _CheckedImages | None, issues: DataIssues | None, path: str | Path | None
) -> ManifestResult | None:
    if images is None or path is None:
        return None
    dataset = images.dataset
    cleaning = clean(dataset, images.duplicates, images.leaking)
    position = {str(key): row for row, key in enumerate(dataset.keys)}
    suggested = [""] * len(dataset)
    for image in reversed(() if issues is None else issues.mislabelled):
        suggested[position[image.key]] = image.suggested
    columns = {"suggested": suggested} if any(suggested) else {}
    written = write_manifest(path, builders.read_source(recipe), dataset, cleaning, columns)
    return ManifestResult(str(written), len(cleaning.kept), cleaning.left_out)


def _write_page(result: CheckResult, dataset: Dataset | None, path: str | Path) -> CheckResult:
    paths = () if dataset is None else dataset.paths
    sections = render_check_page(result, {to_printable(one): one for one in paths})
    return replace(result, page=str(write_page(path, f"Check of {result.name}", sections)))


def render_check_page(result: CheckResult, paths: Mapping[str, str]) -> list[HtmlSection]:
    """The sections of the page; `paths` leads from printable paths to those that can be opened."""
    verdict = [f"!{problem}" for problem in result.problems] or ["No problems found: ready to train."]
    facts = list(result.facts.items())
    sections = [HtmlSection("Overview", [*verdict, *result.notes], ("", ""), facts), *_list_classes(result.classes)]
    for title, groups in (
        ("Copies with different labels", [group for group in result.copies if group.conflicting]),
        ("Copies in different splits", [group for group in result.copies if group.leaking and not group.conflicting]),
        ("Other copies", [group for group in result.copies if not group.leaking and not group.conflicting]),
    ):
        sections += _draw_copies(title, groups, paths)

    def explain(image: MislabelledImage) -> list[str]:
        return [f"label {image.label}", f"the model says {image.suggested} (+{image.score:.2f})"]

    sections += _draw_images("Labels that look wrong", result.mislabelled or (), paths, explain)
    sections += _draw_images("Images unlike all others", result.outliers or (), paths, lambda image: [image.label])
    for title, issues in (("Files that cannot be used", result.rejected), ("Odd files", result.remarks)):
        rows = [(issue.path, issue.reason) for issue in issues]
        sections += [HtmlSection(title, (), ("file", "reason"), rows)] if rows else []
    return sections


def _list_classes(rows: Sequence[ClassCount]) -> Iterator[HtmlSection]:
    if not rows:
        return
    several = len({row.task for row in rows}) > 1
    names = [f"{row.task}: {row.class_name}" if several else row.class_name for row in rows]
    table = [(name, row.images, row.share, *row.splits.values()) for name, row in zip(names, rows, strict=True)]
    yield HtmlSection("Classes", (), ("class", "images", "share", *rows[0].splits), table)


def _draw_copies(title: str, groups: Sequence[DuplicateImages], paths: Mapping[str, str]) -> Iterator[HtmlSection]:
    if not groups:
        return
    strips = []
    for group in groups[:_MOST_GROUPS]:
        kind = "the same bytes" if group.kind == "exact" else f"they look the same, correlation {group.similarity:.3f}"
        figures = [_draw(image, paths, [image.label, image.split]) for image in group.images]
        strips.append((kind, [figure for figure in figures[:_MOST_IN_GROUP] if figure]))
    yield HtmlSection(f"{title} ({len(groups):,})", _mention_rest(len(groups), _MOST_GROUPS), strips=strips)


def _draw_images(
    title: str, images: Sequence[_Image], paths: Mapping[str, str], explain: Callable[[_Image], list[str]]
) -> Iterator[HtmlSection]:
    if not images:
        return
    figures = [_draw(image, paths, explain(image)) for image in images[:_MOST_IMAGES]]
    strip = ("", [figure for figure in figures if figure])
    yield HtmlSection(f"{title} ({len(images):,})", _mention_rest(len(images), _MOST_IMAGES), strips=[strip])


def _mention_rest(count: int, most: int) -> list[str]:
    return [f"The first {most} are shown; `--json` lists all."] if count > most else []


def _draw(image: CheckedImage, paths: Mapping[str, str], lines: Sequence[str]) -> HtmlFigure | None:
    try:
        pixels = decode_file(paths[image.path], _PIXELS, "pad")
    except ImageError:  # deleted since it was checked
        return None
    return HtmlFigure(pixels, [*filter(None, lines), image.key])
