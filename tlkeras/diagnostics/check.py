"""Everything that can be known about a training before it starts: images, labels, splits, backbone, stages, cost."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from tlkeras.config.frames import Frame
from tlkeras.config.image_size import format_size
from tlkeras.config.recipe import Recipe
from tlkeras.data.decoding import decode_file
from tlkeras.data.headers import ImageError, Rendering, to_printable
from tlkeras.data.inspection import drop_undecodable, validate_images
from tlkeras.data.quality import duplicates as copies
from tlkeras.data.quality.duplicates import clean, write_manifest
from tlkeras.data.sources.folders import load_recipe_or_source
from tlkeras.data.splits import classes_missing_from_test
from tlkeras.data.tables import Dataset
from tlkeras.diagnostics import data_quality
from tlkeras.diagnostics.check_cache import load_issues, load_thumbnails
from tlkeras.diagnostics.data_quality import (
    CheckedImage,
    CheckResult,
    ClassCount,
    Cleaning,
    DataIssues,
    ManifestResult,
    count_of,
)
from tlkeras.errors import TlkerasError, fold_alike
from tlkeras.features.extraction import FeatureExtractor, average_positions
from tlkeras.features.store import check_memory
from tlkeras.plotting.html_page import HtmlFigure, HtmlSection, check_page, write_page
from tlkeras.training import builders
from tlkeras.training.builders.experiment import Experiment, plan_finetuning
from tlkeras.training.builders.features import feature_precision
from tlkeras.training.builders.variants import has_search_space
from tlkeras.tuning.space import check_space

MOST_FEATURES = 2000  # computed without `deep`: some seconds

_T = TypeVar("_T")
_PIXELS = 132
_PLAIN = Rendering()
_MOST_GROUPS, _MOST_IN_GROUP, _MOST_IMAGES = 60, 8, 96


def check(
    recipe: str | Path | Recipe | Frame,
    overrides: Mapping[str, Any] | None = None,
    *,
    deep: bool = False,
    html: str | Path | None = None,
    fix: str | Path | None = None,
) -> CheckResult:
    """All problems that would stop a training or spoil its result, in a recipe's images, labels and stages.

    RecipeError if the recipe cannot be found, read or validated; ResourceError if the page cannot be written.

    Args:
        recipe: A recipe, or images alone: a folder, a manifest, "tfds:NAME" or a packaged set, which are checked as
            `linear_probe` would take them.
        deep: Look for wrong labels and outliers however many features must be computed for it.
        html: A page to write, with the images in question.
        fix: A cleaned manifest to write; images are never touched.
    """
    resolved, train = load_recipe_or_source(recipe, overrides)
    if html:
        check_page(html)
    found = _Findings()
    images = _check_images(resolved, found)
    extractor = _check_training(resolved, images, train, found)
    issues = _check_labels(resolved, images, extractor, deep, found)
    found.attempt(lambda: check_space(resolved) if has_search_space(resolved) else None)
    manifest = found.attempt(lambda: _write_manifest(resolved, images, issues, fix))
    cleaning = None
    if images is not None:
        cleaning = Cleaning(resolved, images.dataset.root, partial(_write_manifest, resolved, images, issues))
    result = CheckResult(
        name=resolved.name,
        problems=tuple(found.problems),
        notes=tuple(found.notes),
        facts=found.facts,
        **({} if images is None else images.list_findings()),
        **({} if issues is None else vars(issues)),
        manifest=manifest,
        cleaning=cleaning,
    )
    if not html:
        return result
    shown, rendering = ((), Rendering()) if images is None else (images.dataset.paths, images.dataset.rendering)
    sections = render_check_page(result, {to_printable(path): path for path in shown}, rendering)
    return replace(result, page=str(write_page(html, f"Check of {result.name}", sections)))


@dataclass(frozen=True)
class _Findings:
    """What the parts of the check found, one after the other."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)

    def attempt(self, step: Callable[[], _T], needed: bool = True) -> _T | None:
        """The result of a step, or None if it met a problem, which is no more than a note if the step is not needed."""
        try:
            return step()
        except TlkerasError as error:
            (self.problems if needed else self.notes).append(str(error))
            return None


@dataclass(frozen=True)
class _CheckedImages:
    """The images that can be used, with the split of each unless they cannot be split, and their duplicates."""

    dataset: Dataset
    duplicates: list[copies.DuplicateGroup]
    leaking: list[copies.LeakingGroup]
    classes: tuple[ClassCount, ...]

    def list_findings(self) -> dict[str, Any]:
        """Fields of `CheckResult`."""
        issues = {"rejected": self.dataset.rejected, "remarks": self.dataset.warnings}
        printable = {name: tuple(map(data_quality.to_printable_issue, of)) for name, of in issues.items()}
        duplicates = data_quality.list_duplicates(self.dataset, self.duplicates)
        return {**printable, "classes": self.classes, "copies": duplicates, "leaking_groups": tuple(self.leaking)}


def _check_images(recipe: Recipe, found: _Findings) -> _CheckedImages | None:
    """The images, or None where there are none; what is wrong with files, splits and labels is added to `found`."""
    read = found.attempt(lambda: _read_images(recipe))
    if read is None:
        return None
    dataset, thumbnails = read
    found.facts["images"] = f"{len(dataset):,} from {dataset.source}"
    found.notes.extend(dataset.notes)
    divided = found.attempt(lambda: builders.split_dataset(recipe, dataset))
    if divided is not None:
        dataset, split = divided, divided.split
        found.facts["splits"] = ", ".join(f"{name} {(split == name).sum():,}" for name in dict.fromkeys(split))
        found.notes.extend(classes_missing_from_test(dataset))
    duplicates = copies.find_duplicates(dataset, thumbnails)
    leaking = copies.find_leaking_groups(dataset.groups, dataset.split)
    classes = data_quality.count_classes(dataset)
    found.facts["classes"] = ", ".join(f"{row.class_name} {row.images:,}" for row in classes)
    found.problems.extend(fold_alike(data_quality.list_problems(dataset, duplicates, leaking)))
    found.problems.extend(data_quality.list_lost_images(dataset, thumbnails))
    found.notes.extend(data_quality.list_notes(dataset, duplicates))
    if dataset.rejected:
        files = count_of(len(dataset.rejected), "file cannot be used and is", "files cannot be used and are")
        found.notes.append(f"{files} left out.")
    if licence := dataset.facts.get("licence"):
        found.facts["licence of the images"] = licence
    return _CheckedImages(dataset, duplicates, leaking, classes)


def _read_images(recipe: Recipe) -> tuple[Dataset, np.ndarray]:
    """The images that can be decoded, and a thumbnail of each."""
    dataset = builders.find_depth_range(recipe, validate_images(builders.read_dataset(recipe)))
    thumbnails, readable = load_thumbnails(dataset, builders.open_cache(recipe))
    return drop_undecodable(dataset, readable), thumbnails


def _check_training(
    recipe: Recipe, images: _CheckedImages | None, train: bool, found: _Findings
) -> FeatureExtractor | None:
    """The frozen network, if the training is possible; what it would compute is added to `found`."""
    extractor = found.attempt(lambda: builders.build_feature_extractor(recipe), needed=train)
    if extractor is None:
        return None
    facts, origin, shape = found.facts, builders.describe_origin(recipe), extractor.pooled.output_shape[1:]
    facts["backbone"] = (
        f"{origin['backbone']} at {format_size(builders.image_size(recipe))} px, weights {origin['weights']}"
    )
    if handcrafted := ", ".join(builders.list_handcrafted_kinds(recipe)):
        facts["handcrafted features"] = handcrafted
        found.notes.append(f"Handcrafted features ({handcrafted}) cannot be exported as a SavedModel; `predict` works.")
    facts["features"] = f"{' x '.join(map(str, shape))} {feature_precision(recipe)}"
    if not train or images is None or not images.dataset.split.all():
        return extractor
    planned = found.attempt(lambda: _plan(recipe, images.dataset, extractor))
    if planned is None:
        return None
    if planned.plan is not None:
        facts |= {f"stage {one.stage}": f"from {one.cut}: {one.reason}" for one in planned.plan.caching.stages}
    counts = found.attempt(lambda: builders.count_cache_misses(planned))
    if counts is None:
        return None
    facts["to compute"] = "{:,} of {:,} images, each view counted; the rest is cached".format(*counts)
    return extractor


def _plan(recipe: Recipe, dataset: Dataset, extractor: FeatureExtractor) -> Experiment:
    check_memory(len(dataset), extractor.pooled.output_shape[1:])
    experiment = Experiment(recipe, dataset, extractor, plan_finetuning(recipe, extractor, dataset))
    if experiment.plan is not None:
        builders.check_recipe_data_service(recipe, dataset)
    return experiment


def _check_labels(
    recipe: Recipe, images: _CheckedImages | None, extractor: FeatureExtractor | None, deep: bool, found: _Findings
) -> DataIssues | None:
    """Wrong labels and outliers, or None where they were not looked for; sentences on them are added to `found`."""
    if images is None or extractor is None:
        return None
    experiment = Experiment(recipe, images.dataset, extractor)
    missing = found.attempt(lambda: builders.count_missing_features(experiment))
    if missing is None:
        return None
    if missing > MOST_FEATURES and not deep:
        reason = f"features of {missing:,} images would have to be computed"
        note = f"Wrong labels and outliers were not looked for: {reason}. `--deep` does it, and caches them."
        found.notes.append(note)
        return None
    groups = copies.join_groups(images.dataset.groups, images.duplicates)
    issues = found.attempt(lambda: _find_issues(experiment, groups))
    if wrong := len(issues.mislabelled) if issues else 0:
        found.notes.append(f"{count_of(wrong, 'image looks', 'images look')} mislabelled.")
    if odd := len(issues.outliers) if issues else 0:
        found.notes.append(f"{count_of(odd, 'image is', 'images are')} unlike all others.")
    return issues


def _find_issues(experiment: Experiment, groups: np.ndarray) -> DataIssues:
    builders.fit_recipe_codebooks(experiment)
    with builders.extract_features(experiment) as features:
        matrix = average_positions(np.asarray(features.outputs[0], np.float32))
        dataset, cache = experiment.dataset, builders.open_cache(experiment.recipe)
        find = partial(data_quality.find_data_issues, dataset, features.kept, matrix, groups)
        return load_issues(dataset, matrix, groups, None if cache is None else cache.root, find)


def _write_manifest(
    recipe: Recipe, images: _CheckedImages | None, issues: DataIssues | None, path: str | Path | None
) -> ManifestResult | None:
    if images is None or path is None:
        return None
    dataset, duplicates = images.dataset, images.duplicates
    merged: dict[str, str] = {}
    for task in dataset.tasks:
        merged |= task.find_spellings(dataset.targets[task.name])
    if merged:
        recipe = builders.merge_labels(recipe, merged)
        dataset, duplicates = copies.merge_labels(dataset, duplicates, merged)
    cleaning = clean(dataset, duplicates, images.leaking)
    position = {str(key): row for row, key in enumerate(dataset.keys)}
    suggested = [""] * len(dataset)
    for image in reversed(() if issues is None else issues.mislabelled):
        label, other = (merged.get(name, name) for name in (image.label, image.suggested))
        suggested[position[image.key]] = other if other != label else ""
    columns = {"suggested": suggested} if any(suggested) else {}
    written = write_manifest(path, builders.read_source(recipe), dataset, cleaning, columns)
    return ManifestResult(str(written), len(cleaning.kept), cleaning.left_out, merged)


def render_check_page(
    result: CheckResult, paths: Mapping[str, str], rendering: Rendering = _PLAIN
) -> list[HtmlSection]:
    """The sections of the page; `paths` leads from printable paths to those that can be opened."""
    verdict = [f"!{problem}" for problem in result.problems] or ["No problems found: ready to train."]
    draw = partial(_draw, paths=paths, rendering=replace(rendering, resize="pad"))
    sections = [HtmlSection("Overview", [*verdict, *result.notes], ("", ""), list(result.facts.items()))]
    if rows := result.classes:
        several = len({row.task for row in rows}) > 1
        names = [f"{row.task}: {row.class_name}" if several else row.class_name for row in rows]
        table = [(name, row.images, row.share, *row.splits.values()) for name, row in zip(names, rows, strict=True)]
        sections.append(HtmlSection("Classes", (), ("class", "images", "share", *rows[0].splits), table))
    for title, groups in (
        ("Copies with different labels", [group for group in result.copies if group.conflicting]),
        ("Copies in different splits", [group for group in result.copies if group.leaking and not group.conflicting]),
        ("Other copies", [group for group in result.copies if not group.leaking and not group.conflicting]),
    ):
        strips = []
        for group in groups[:_MOST_GROUPS]:
            alike = f"they look the same, correlation {group.similarity:.3f}"
            told = [(image, [image.label, image.split]) for image in group.images[:_MOST_IN_GROUP]]
            strips.append(("the same bytes" if group.kind == "exact" else alike, draw(told)))
        sections += _show(title, len(groups), _MOST_GROUPS, strips)
    wrong = [
        (image, [f"label {image.label}", f"the model says {image.suggested} (+{image.score:.2f})"])
        for image in result.mislabelled or ()
    ]
    odd = [(image, [image.label]) for image in result.outliers or ()]
    for title, images in (("Labels that look wrong", wrong), ("Images unlike all others", odd)):
        sections += _show(title, len(images), _MOST_IMAGES, [("", draw(images[:_MOST_IMAGES]))])
    for title, issues in (("Files that cannot be used", result.rejected), ("Odd files", result.remarks)):
        files = [(issue.path, issue.reason) for issue in issues]
        sections += [HtmlSection(title, (), ("file", "reason"), files)] if files else []
    return sections


def _show(title: str, count: int, most: int, strips: Sequence[tuple[str, Sequence[HtmlFigure]]]) -> list[HtmlSection]:
    """A section of strips, unless there is nothing to show."""
    rest = [f"The first {most} are shown; `--json` lists all."] if count > most else []
    return [HtmlSection(f"{title} ({count:,})", rest, strips=strips)] if count else []


def _draw(
    images: Sequence[tuple[CheckedImage, list[str]]], paths: Mapping[str, str], rendering: Rendering
) -> list[HtmlFigure]:
    """Images with the lines of text that go with them; none that were deleted since they were checked."""
    figures = []
    for image, lines in images:
        with suppress(ImageError):
            pixels = decode_file(paths[image.path], _PIXELS, rendering)
            figures.append(HtmlFigure(pixels, [*filter(None, lines), image.key]))
    return figures
