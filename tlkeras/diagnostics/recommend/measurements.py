"""Candidate backbones measured on the same images: how well features separate the classes, and costs here."""

import dataclasses
import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy import stats
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from tlkeras.backbones.builder import build_pretrained_classifier
from tlkeras.backbones.weights import why_unavailable
from tlkeras.config.image_size import height_and_width, simplify_size
from tlkeras.config.recipe import Recipe
from tlkeras.config.schema.features import BackboneConfig
from tlkeras.data.inspection import validate_images
from tlkeras.data.tables import Dataset
from tlkeras.diagnostics.features import FoldIndices, LabelledFolds, divide_classes, draw_rows, knn_accuracy_per_block
from tlkeras.diagnostics.recommend.benchmarks import BenchmarkRequest, BenchmarkResult, measure_costs
from tlkeras.diagnostics.recommend.candidates import Candidate
from tlkeras.errors import BackboneError, TlkerasError
from tlkeras.features.extraction import POOLED, SOURCE_LOGITS
from tlkeras.finetuning.auto_stages import choose_stages
from tlkeras.heads.heads import make_head
from tlkeras.heads.transferability import measure_h_score, measure_leep, measure_logme, measure_nce
from tlkeras.progress import hide, progress_bar
from tlkeras.results import Result
from tlkeras.training import builders
from tlkeras.training.builders.data import data_seed
from tlkeras.training.builders.variants import finetuning_batch_size, make_probe_recipe

_NEIGHBOURS = 5
_HEADERS_READ = 200
_SIZE_STEP = 4 / 3


@dataclass(frozen=True, eq=False)
class FoldScore(Result):
    """A score per fold, float (k,); its mean, and its spread, the standard deviation."""

    folds: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.folds.mean())

    @property
    def spread(self) -> float:
        return float(self.folds.std(ddof=1)) if len(self.folds) > 1 else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "spread": self.spread}


@dataclass(frozen=True, eq=False)
class Scores(Result):
    """Scores of one backbone's features."""

    neighbours: FoldScore  # balanced accuracy of five nearest neighbours by cosine
    probe: FoldScore  # balanced accuracy of the linear head
    logme: float  # of the standardised features, as the H-score
    h_score: float
    leep: float | None  # from the predictions of the pretrained classifier, as NCE; None where there is none
    nce: float | None

    @property
    def ranking(self) -> FoldScore:
        """The score that ranks backbones: the mean of both classifiers."""
        return FoldScore((self.neighbours.folds + self.probe.folds) / 2)


def score_features(
    X: np.ndarray,
    codes: np.ndarray,
    folds: FoldIndices,
    source: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> Scores:
    """The scores of features, float32 (n, d), of classes, int (n,) from 0, on folds that all backbones share.

    `source` has the probabilities of the pretrained classifier's classes, (n, z); `groups`, (n,), are kept apart where
    the linear head chooses its strength.
    """
    unit = X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-12)
    neighbours, probe = [], []
    for fit, held in folds:
        nearest = KNeighborsClassifier(min(_NEIGHBOURS, len(fit))).fit(unit[fit], codes[fit])
        neighbours.append(balanced_accuracy_score(codes[held], nearest.predict(unit[held])))
        head = make_head("linear", class_weight="balanced")
        head.fit(X[fit], codes[fit], groups=None if groups is None else groups[fit])
        probe.append(balanced_accuracy_score(codes[held], head.predict_proba(X[held]).argmax(axis=1)))
    standard = StandardScaler().fit_transform(np.asarray(X, np.float64))
    logme, h_score = measure_logme(standard, codes), measure_h_score(standard, codes)
    leep, nce = (None, None) if source is None else (measure_leep(source, codes), measure_nce(source, codes))
    return Scores(FoldScore(np.array(neighbours)), FoldScore(np.array(probe)), logme, h_score, leep, nce)


class Difference(NamedTuple):
    """A difference of means in standard errors, and its two-sided p-value."""

    errors: float
    probability: float


def compare_folds(first: np.ndarray, second: np.ndarray) -> Difference:
    """The difference of two backbones by the corrected paired t test over folds.

    Nadeau and Bengio, Machine Learning 52, 2003: the training sets of folds overlap, so the variance of their mean is
    1/k + 1/(k - 1) times theirs. Both have a score per fold, (k,), of the same folds.
    """
    differences = first - second
    count, mean = len(differences), float(differences.mean())
    if count < 2 or mean == 0:
        return Difference(0.0, 1.0)
    error = float(np.sqrt((1 / count + 1 / (count - 1)) * differences.var(ddof=1)))
    if error == 0:
        return Difference(np.copysign(np.inf, mean), 0.0)
    return Difference(mean / error, float(2 * stats.t.sf(abs(mean) / error, count - 1)))


@dataclass(frozen=True, eq=False)
class CandidateResult(Result):
    """A backbone at an image size, with all that was measured of it."""

    candidate: Candidate  # the backbone, its weights and the size
    scores: Scores
    costs: BenchmarkResult
    separations: dict[str, float]  # accuracy of nearest neighbours by block, in order
    minutes: float  # estimated duration of fine-tuning
    noise: bool = False  # whether the best candidate is better by no more than noise
    front: bool = False  # whether no other candidate is both quicker and better

    @property
    def name(self) -> str:
        return self.candidate.name

    def to_dict(self) -> dict[str, Any]:
        """All facts and measurements side by side; of scores over folds, mean and spread."""
        candidate, entry, costs = self.candidate, self.candidate.entry, self.costs
        facts: dict[str, Any] = {
            "name": self.name,
            "backbone": entry.name,
            "weights": candidate.weights,
            "size": candidate.size,
        }
        facts |= {"licence": entry.licence, "top1": entry.top1, "parameters": entry.parameters}
        scores = {"score": self.scores.ranking.to_dict(), **self.scores.to_dict(), "separations": self.separations}
        speed = {"milliseconds": costs.milliseconds, "images_per_second": costs.images_per_second}
        cost = {"memory": costs.megabytes, "minutes": self.minutes, "finetuning_memory": costs.step_megabytes}
        verdict = {"noise": self.noise, "front": self.front}
        return {**facts, "megabytes": candidate.megabytes, **scores, **speed, **cost, **verdict}


Measured = tuple[list[CandidateResult], dict[str, str]]  # and the reason why others could not be measured


@dataclass(frozen=True)
class MeasurementContext:
    """The images that all candidates are measured on."""

    recipe: Recipe  # what the candidates' recipes are made from
    dataset: Dataset  # the images, with the split of each
    rows: np.ndarray  # positions of the images that are examined, int64 (n,); none is of the test split
    shorter_side: int  # median of the examined images' shorter sides, pixels
    classes: int  # number of classes of the first task in the training split
    smallest_class: int  # training images of the rarest class; 0 where no image has a label

    @property
    def training_images(self) -> int:
        return len(self.dataset.rows("train"))


def make_context(recipe: Recipe, images: int) -> MeasurementContext:
    """The recipe's images, of which at most `images` are examined; DataError if they have no two classes of two."""
    dataset = builders.split_dataset(recipe, validate_images(builders.read_dataset(recipe)))
    rows = draw_rows(dataset, images, data_seed(recipe))
    divide_classes(dataset.take(rows), data_seed(recipe))  # raises before anything long begins
    task = dataset.tasks[0]
    targets = dataset.targets[task.name][dataset.rows("train")]
    strata = task.strata(targets)
    _, counts = np.unique(strata[task.is_labelled(targets)], return_counts=True)
    sides = []
    for path in dataset.paths[rows][:_HEADERS_READ]:
        with Image.open(path) as image:
            sides.append(min(image.size))
    smallest = int(counts.min()) if len(counts) else 0
    return MeasurementContext(recipe, dataset, rows, int(np.median(sides)), len(np.unique(strata)), smallest)


def measure_all(context: MeasurementContext, candidates: Sequence[Candidate]) -> Measured:
    """The candidates, and the best of them at other sizes, best first, and why others failed; BackboneError if all."""
    measured, failed = _measure_each(context, candidates)
    if not measured:
        problems = [f"{name}: {reason}" for name, reason in failed.items()]
        raise BackboneError.from_problems("No backbone could be measured:", problems)
    best = max(measured, key=lambda one: one.scores.ranking.mean).candidate
    others, also_failed = _measure_each(context, _list_other_sizes(best, context.shorter_side))
    ranked = sorted([*measured, *others], key=lambda one: -one.scores.ranking.mean)
    return ranked, {**failed, **also_failed}


def _measure_each(context: MeasurementContext, candidates: Sequence[Candidate]) -> Measured:
    measured, failed = [], {}
    with progress_bar("Comparing backbones", len(candidates), "backbones") as advance:
        for candidate in candidates:
            try:
                with hide():
                    measured.append(_measure(context, candidate))
            except TlkerasError as error:
                failed[candidate.name] = str(error)
            gc.collect()  # one backbone at a time in memory
            advance(1)
    return measured, failed


def _list_other_sizes(best: Candidate, shorter_side: int) -> list[Candidate]:
    """The best backbone at a smaller size, and at a larger one as far as the images have the pixels."""
    sides = height_and_width(best.size)
    shorter, least = min(sides), best.entry.minimum_size
    sizes = {_round(shorter / _SIZE_STEP), min(_round(shorter * _SIZE_STEP), max(shorter_side, shorter))}
    wanted = [size for size in sorted(sizes) if size >= least and size != shorter]
    scaled = [
        simplify_size([size if side == shorter else _round(side * size / shorter) for side in sides]) for size in wanted
    ]
    return [dataclasses.replace(best, size=size) for size in scaled]


def _round(size: float) -> int:
    """The nearest multiple of the usual stride of a backbone, 32, or of 8 where images are small."""
    step = 32 if size >= 96 else 8
    return max(1, round(size / step)) * step


def _measure(context: MeasurementContext, candidate: Candidate) -> CandidateResult:
    folds, depths = _extract(context, candidate)
    source = np.exp(depths.pop(SOURCE_LOGITS)[folds.known]) if SOURCE_LOGITS in depths else None
    scores = score_features(depths.pop(POOLED)[folds.known], folds.codes, folds.folds, source, folds.groups)
    batch_size, classes = finetuning_batch_size(context.recipe), max(context.classes, 2)
    unfreeze, steps = _plan_finetuning(context, len(depths), batch_size)
    costs = measure_costs(BenchmarkRequest(candidate.entry.name, candidate.size, classes, unfreeze, batch_size))
    seconds = steps * costs.step_seconds + len(context.dataset) / costs.images_per_second
    return CandidateResult(candidate, scores, costs, knn_accuracy_per_block(folds, depths), seconds / 60)


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
    depths, kept = builders.extract_depths(builders.Experiment(recipe, examined, extractor))
    return divide_classes(examined.take(kept), data_seed(recipe)), depths


def _plan_finetuning(context: MeasurementContext, blocks: int, batch_size: int) -> tuple[int, int]:
    """The number of blocks that `stages: auto` would train at most, and its number of steps."""
    images = context.training_images
    known = {"images": images, "classes": context.classes, "blocks": blocks, "batch_size": batch_size}
    stages = choose_stages(**known, validated=True, probed=True).stages
    unfreeze, epochs = stages[-1].unfreeze, sum(int(stage.epochs or 0) for stage in stages)
    return blocks if unfreeze == "all" else int(unfreeze), epochs * math.ceil(images / batch_size)
