"""Candidate backbones measured on the same images: scores of their features, and costs on this machine."""

from __future__ import annotations

import dataclasses
import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from tlkeras.backbones.builder import build_pretrained_classifier
from tlkeras.backbones.weights import why_unavailable
from tlkeras.config.recipe import Recipe
from tlkeras.config.schema.features import BackboneConfig
from tlkeras.data.inspection import validate_images
from tlkeras.data.tables import Dataset
from tlkeras.diagnostics.features import LabelledFolds, divide_classes, draw_rows, knn_accuracy_per_block
from tlkeras.diagnostics.recommend.benchmarks import BenchmarkRequest, BenchmarkResult, measure_costs
from tlkeras.diagnostics.recommend.candidates import Candidate
from tlkeras.diagnostics.recommend.scores import Scores, score_features
from tlkeras.errors import BackboneError, TlkerasError
from tlkeras.features.extractor import POOLED, SOURCE_LOGITS
from tlkeras.finetuning.auto_stages import choose_stages
from tlkeras.progress import hide, progress_bar
from tlkeras.training import builders
from tlkeras.training.builders.data import data_seed
from tlkeras.training.builders.experiment import Experiment
from tlkeras.training.builders.variants import finetuning_batch_size, make_probe_recipe

_HEADERS_READ = 200
_SIZE_STEP = 4 / 3


@dataclass(frozen=True, eq=False)
class Measurement:
    """A candidate and what was measured of it.

    Attributes:
        candidate: The backbone at an image size.
        scores: Of its features, per fold.
        costs: On this machine.
        separations: Accuracy of nearest neighbours by block, in order.
        minutes: Estimated duration of a fine-tuning.
    """

    candidate: Candidate
    scores: Scores
    costs: BenchmarkResult
    separations: dict[str, float]
    minutes: float

    @property
    def name(self) -> str:
        """Name and size of the backbone."""
        return self.candidate.name

    @property
    def score(self) -> float:
        """Mean over folds of the score that ranks backbones."""
        return float(self.scores.ranking.mean())

    @property
    def milliseconds(self) -> float:
        """Latency of one image."""
        return self.costs.milliseconds


@dataclass(frozen=True)
class MeasurementContext:
    """The images that all candidates are measured on.

    Attributes:
        recipe: What the candidates' recipes are made from.
        dataset: The images, with the split of each.
        rows: Positions of the images that are examined, int64 (n,); none is of the test split.
        shorter_side: Median of the examined images' shorter sides, pixels.
        batch_size: Images per step of fine-tuning.
        classes: Classes of the first task in the training split.
        smallest_class: Training images of the rarest class; 0 where no image has a label.
    """

    recipe: Recipe
    dataset: Dataset
    rows: np.ndarray
    shorter_side: int
    batch_size: int
    classes: int
    smallest_class: int

    @property
    def training_images(self) -> int:
        """Size of the training split."""
        return len(self.dataset.rows("train"))


@dataclass
class Measurements:
    """Measurements of all candidates that could be measured, and the reason for each other one."""

    measured: list[Measurement] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def make_context(recipe: Recipe, images: int) -> MeasurementContext:
    """The recipe's images, of which at most `images` are examined.

    Raises:
        DataError: The images cannot be read, or there are no two classes of two images.
    """
    dataset = builders.split_dataset(recipe, validate_images(builders.read_dataset(recipe)))
    rows = draw_rows(dataset, images, data_seed(recipe))
    divide_classes(dataset.take(rows), data_seed(recipe))  # raises before anything long begins
    task, training = dataset.tasks[0], dataset.rows("train")
    targets = dataset.targets[task.name][training]
    strata = task.strata(targets)
    _, counts = np.unique(strata[task.is_labelled(targets)], return_counts=True)
    return MeasurementContext(
        recipe,
        dataset,
        rows,
        _median_shorter_side(dataset.paths[rows]),
        finetuning_batch_size(recipe),
        len(np.unique(strata)),
        int(counts.min()) if len(counts) else 0,
    )


def _median_shorter_side(paths: Sequence[str]) -> int:
    sizes = []
    for path in paths[:_HEADERS_READ]:
        with Image.open(path) as image:
            sizes.append(min(image.size))
    return int(np.median(sizes))


def measure_all(context: MeasurementContext, candidates: Sequence[Candidate]) -> Measurements:
    """The measurements of candidates, and of the best of them at a smaller and a larger size; best first.

    Raises:
        BackboneError: None could be measured.
    """
    found = Measurements()
    _add_measurements(found, context, candidates)
    if not found.measured:
        problems = [f"{name}: {reason}" for name, reason in found.failed.items()]
        raise BackboneError.from_problems("No backbone could be measured:", problems)
    best = max(found.measured, key=lambda one: one.score)
    _add_measurements(found, context, _list_other_sizes(best.candidate, context.shorter_side))
    found.measured.sort(key=lambda one: -one.score)
    return found


def _add_measurements(found: Measurements, context: MeasurementContext, candidates: Sequence[Candidate]) -> None:
    with progress_bar("Comparing backbones", len(candidates), "backbones") as advance:
        for candidate in candidates:
            try:
                with hide():
                    found.measured.append(_measure(context, candidate))
            except TlkerasError as error:
                found.failed[candidate.name] = str(error)
            gc.collect()  # one backbone at a time in memory
            advance(1)


def _list_other_sizes(best: Candidate, shorter_side: int) -> list[Candidate]:
    """The best backbone at a smaller size, and at a larger one as far as the images have the pixels."""
    sizes = {_round(best.size / _SIZE_STEP), min(_round(best.size * _SIZE_STEP), max(shorter_side, best.size))}
    least = best.entry.minimum_size
    return [dataclasses.replace(best, size=size) for size in sorted(sizes) if size >= least and size != best.size]


def _round(size: float) -> int:
    """The nearest multiple of the usual stride of a backbone, 32, or of 8 where images are small."""
    step = 32 if size >= 96 else 8
    return max(1, round(size / step)) * step


def _measure(context: MeasurementContext, candidate: Candidate) -> Measurement:
    folds, depths = _extract(context, candidate)
    source = np.exp(depths.pop(SOURCE_LOGITS)[folds.known]) if SOURCE_LOGITS in depths else None
    features = depths.pop(POOLED)[folds.known]
    scores = score_features(features, folds.codes, folds.folds, source)
    unfreeze, steps = _plan_finetuning(context, len(depths))
    costs = measure_costs(
        BenchmarkRequest(candidate.entry.name, candidate.size, max(context.classes, 2), unfreeze, context.batch_size)
    )
    seconds = steps * costs.step_seconds + len(context.dataset) / costs.images_per_second
    return Measurement(candidate, scores, costs, knn_accuracy_per_block(folds, depths), seconds / 60)


def _extract(context: MeasurementContext, candidate: Candidate) -> tuple[LabelledFolds, dict[str, np.ndarray]]:
    """The folds of the examined images, and their vectors at each depth of the candidate."""
    backbone = BackboneConfig(name=candidate.entry.name, weights=candidate.weights, size=candidate.size)
    recipe = make_probe_recipe(context.recipe, backbone)
    extractor = builders.build_feature_extractor(recipe)
    if candidate.weights != "none" and why_unavailable(candidate.entry, candidate.weights, top=True) is None:
        try:
            head = build_pretrained_classifier(candidate.entry.name, extractor.backbone, candidate.weights)
            extractor = dataclasses.replace(extractor, source_head=head)
        except BackboneError:
            pass  # a file without the classifier, or a family whose classifier follows no map
    examined = context.dataset.take(context.rows)
    depths, kept = builders.extract_depths(Experiment(recipe, examined, extractor))
    return divide_classes(examined.take(kept), data_seed(recipe)), depths


def _plan_finetuning(context: MeasurementContext, blocks: int) -> tuple[int, int]:
    """The number of blocks that `stages: auto` would train at most, and its number of steps."""
    suggestion = choose_stages(
        images=context.training_images,
        classes=context.classes,
        blocks=blocks,
        batch_size=context.batch_size,
        validated=True,
        probed=True,
    )
    unfreeze = suggestion.stages[-1].unfreeze
    epochs = sum(int(stage.epochs or 0) for stage in suggestion.stages)
    return blocks if unfreeze == "all" else int(unfreeze), epochs * math.ceil(
        context.training_images / context.batch_size
    )
