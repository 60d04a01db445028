"""Every head in every setting that its choice and calibration meet, against scikit-learn, on data whose truth is known.

    python benchmarks/heads.py --matrix [--draws 5] [--heads linear ridge] [--cells 64]

A cell is a head with folds or validation rows, with classes weighed or not, with weights of rows that go with their
class or none, with rows alone or in groups, with columns selected or not, of 2 or 15 classes, with 6 or 60 images of a
class on average. Classes are normal clouds of equal spread, every second one three times as frequent as the others.
Rows of a group, 30 in all and up to 20 to each, are of one class and share a part of their noise.

The reference is scikit-learn's logistic regression on standardised columns, with C chosen by the pooled log loss of
stratified (group) folds or of the validation rows, and weights of classes and rows in every fit. It is near the best
that these clouds allow, for each head. Both are asked about the same fresh rows, weighed as the fit was. Of all draws
of a cell together stand: the slope (the factor of log probabilities that fits the fresh rows best, 1 for a calibrated
head), the expected calibration error of the most probable class (15 bins), and balanced accuracy, each with its
standard error over draws (jackknife) and the reference's value.

Named are the bounds that are left by more than two standard errors: a slope outside 0.9 to 1.1 where the reference's is
inside; a calibration error more than 0.02 above the reference's; a balanced accuracy more than 0.02 below it; one of
chance where the reference's is better.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.feature_selection import SelectKBest, f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from tlkeras.config.schema.heads import FitConfig
from tlkeras.heads.deep import KerasHead
from tlkeras.heads.feature_selection import FeatureSelectingHead
from tlkeras.heads.heads import HEADS, make_head

VECTOR_HEADS = [kind for kind, head in HEADS.items() if head.input_kind == "vector"]
FRESH = 1000
INFORMATIVE, NOISE = 16, 48
TRIPLED = 3  # weight of every third class's rows, where weights go with classes


@dataclass(frozen=True)
class Cell:
    """A setting; its fields are the axes of the matrix."""

    kind: str
    validation: bool
    balanced: bool
    weighed: bool
    grouped: bool
    selected: bool
    classes: int
    images: int

    def __str__(self) -> str:
        words = {"validation": "folds", "balanced": "-", "weighed": "-", "grouped": "-", "selected": "-"}
        marks = [name if getattr(self, name) else other for name, other in words.items()]
        return " | ".join([self.kind, *marks, str(self.classes), str(self.images)])


@dataclass(frozen=True, eq=False)
class Rows:
    """Drawn rows: features (n, d), classes, weights and groups (n,)."""

    X: np.ndarray
    y: np.ndarray
    weights: np.ndarray
    groups: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """Figures of the head and of the reference, each (3,): slope, calibration error, balanced accuracy.

    Attributes:
        ours, theirs: Of all draws together.
        errors: Standard errors of `ours`, and of the differences.
    """

    ours: np.ndarray
    theirs: np.ndarray
    errors: tuple[np.ndarray, np.ndarray]

    def list_faults(self, classes: int) -> list[str]:
        """The bounds that the head does not keep, by name."""
        (slope, _, accuracy), (wanted_slope, _, wanted_accuracy) = self.ours, self.theirs
        own, paired = (2 * error for error in self.errors)
        behind = self.theirs - self.ours
        faults = {
            "slope": 0.9 <= wanted_slope <= 1.1 and not 0.9 - own[0] <= slope <= 1.1 + own[0],
            "ECE": -behind[1] > 0.02 + paired[1],
            "accuracy": behind[2] > 0.02 + paired[2],
            "chance": accuracy <= 1 / classes < wanted_accuracy - 0.02 - paired[2],
        }
        return [name for name, found in faults.items() if found]


def list_cells(kinds: Sequence[str]) -> list[Cell]:
    """All cells of some heads."""
    flags = (False, True)
    return [Cell(*values) for values in itertools.product(kinds, *[flags] * 5, (2, 15), (6, 60))]


def choose_cells(kinds: Sequence[str], count: int | None) -> list[Cell]:
    """As many cells of each head, the same for all, drawn once and for ever; all for None."""
    settings = list_cells([""])
    taken = sorted(np.random.default_rng(0).permutation(len(settings))[:count])
    return [replace(settings[number], kind=kind) for kind in kinds for number in taken]


def measure(cell: Cell, draws: int) -> Comparison:
    """The head and the reference on as many draws."""
    parts = []
    for seed in range(draws):
        fit, held, fresh = draw(cell, seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answers = (_ask_head(cell, seed, fit, held, fresh), _ask_reference(replace(cell, kind=""), seed))
        weights = fresh.weights * (_balance(fit)[fresh.y] if cell.balanced else 1)
        parts.append((*answers, fresh.y, weights))
    whole = _compute_pair(parts)
    without = np.array([_compute_pair(parts[:out] + parts[out + 1 :]) for out in range(draws)])
    errors = [np.sqrt((draws - 1) * values.var(axis=0)) for values in (without[:, 0], without[:, 0] - without[:, 1])]
    return Comparison(*whole, (errors[0], errors[1]))


def _compute_pair(parts: list[tuple[np.ndarray, ...]]) -> np.ndarray:
    """Figures of head and reference, (2, 3), of some draws together."""
    ours, theirs, y, weights = (np.concatenate(values) for values in zip(*parts, strict=True))
    return np.stack([compute_figures(answer, y, weights) for answer in (ours, theirs)])


def draw(cell: Cell, seed: int) -> tuple[Rows, Rows | None, Rows]:
    """Rows to fit on, validation rows or none, and fresh ones, from one truth."""
    random = np.random.default_rng([seed, cell.classes])
    centres = np.zeros((cell.classes, INFORMATIVE + NOISE))
    centres[:, :INFORMATIVE] = random.normal(size=(cell.classes, INFORMATIVE)) * (0.45 if cell.classes == 2 else 0.9)
    sizes = np.where(np.arange(cell.classes) % 2, 3, 1) * cell.images // 2
    fit = _draw_rows(cell, centres, np.repeat(np.arange(cell.classes), sizes), random)
    held = _draw_rows(cell, centres, fit.y, random) if cell.validation else None
    y = random.choice(cell.classes, FRESH, p=sizes / sizes.sum())
    fresh = _draw_rows(cell, centres, y, random, alone=True)
    return fit, held, fresh


def _draw_rows(
    cell: Cell, centres: np.ndarray, y: np.ndarray, random: np.random.Generator, alone: bool = False
) -> Rows:
    """Rows of the classes `y`; those of a group share half of the variance that is noise."""
    groups = np.arange(len(y))
    noise = random.normal(size=(len(y), centres.shape[1]))
    if cell.grouped:
        size = 1 if alone else int(np.clip(len(y) // 30, 2, 20))
        rank = np.concatenate([np.arange(count) for count in np.bincount(y)]) if not alone else groups
        groups = (
            np.unique(np.stack([y, rank // size], axis=1), axis=0, return_inverse=True)[1].ravel()
            if not alone
            else groups
        )
        shared = random.normal(size=(groups.max() + 1, centres.shape[1]))
        noise = np.sqrt(0.5) * (noise + shared[groups])
    weights = np.where(y % 3 == 1, TRIPLED, 1) if cell.weighed else np.ones(len(y), int)
    return Rows((centres[y] + noise).astype(np.float64), y, weights, groups)


def _balance(rows: Rows) -> np.ndarray:
    """The factor of each class that gives all the same weight."""
    totals = np.bincount(rows.y, rows.weights)
    return totals.sum() / (len(totals) * totals)


def _ask_head(cell: Cell, seed: int, fit: Rows, held: Rows | None, fresh: Rows) -> np.ndarray:
    """Probabilities of fresh rows by the head of the package."""
    seeded = {"fitting": FitConfig(seed=seed)} if issubclass(HEADS[cell.kind], KerasHead) else {"seed": seed}
    head = make_head(cell.kind, class_weight="balanced" if cell.balanced else None, **seeded)
    if cell.selected:
        head = FeatureSelectingHead(head, "f_classif", keep=0.25, seed=seed)
    validation = None if held is None else (held.X, held.y, held.weights.astype(float), held.groups)
    if held is not None and not cell.grouped:
        validation = validation[:3]
    groups = fit.groups if cell.grouped else None
    head.fit(fit.X, fit.y, fit.weights.astype(float), validation=validation, groups=groups)
    return head.predict_proba(fresh.X).astype(np.float64)


@cache
def _ask_reference(cell: Cell, seed: int) -> np.ndarray:
    """Probabilities of fresh rows by scikit-learn's logistic regression, its C by pooled held-out log loss."""
    fit, held, fresh = draw(cell, seed)
    factors = _balance(fit) if cell.balanced else np.ones(cell.classes)
    rows = [fit] if held is None else [fit, held]
    X, y = np.concatenate([part.X for part in rows]), np.concatenate([part.y for part in rows])
    weights = np.concatenate([part.weights for part in rows]) * factors[y]
    own = np.arange(len(fit.y))
    if held is None:
        dealt = StratifiedGroupKFold(min(5, np.bincount(y).max()), shuffle=True, random_state=seed)
        folds = [(a, b) for a, b in dealt.split(X, y, fit.groups) if len(np.unique(y[a])) == cell.classes]
    else:
        folds = [(own, np.arange(len(own), len(y)))]
    losses = {
        C: sum(_measure_loss(_fit(cell, C, X[a], y[a], weights[a]), X[b], y[b], weights[b]) for a, b in folds)
        for C in np.logspace(-4, 2, 7)
    }
    best = min(losses, key=losses.__getitem__)
    return _fit(cell, best, fit.X, fit.y, weights[own]).predict_proba(fresh.X)


def _fit(cell: Cell, C: float, X: np.ndarray, y: np.ndarray, weights: np.ndarray) -> Pipeline:
    """Standardised columns, the best quarter of them where columns are selected, and logistic regression."""
    best = [("best", SelectKBest(f_classif, k=X.shape[1] // 4))] if cell.selected else []
    model = LogisticRegression(C=C, max_iter=1000)
    return Pipeline([("scale", StandardScaler()), *best, ("model", model)]).fit(X, y, model__sample_weight=weights)


def _measure_loss(model: Pipeline, X: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    return float(-weights @ model.predict_log_proba(X)[np.arange(len(y)), y])


def compute_figures(probabilities: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Slope, expected calibration error and balanced accuracy of probabilities (n, k)."""
    logs, shares = np.log(np.clip(probabilities, 1e-12, None)), weights / weights.sum()

    def measure_loss(slope: float) -> float:
        return float(-shares @ log_softmax(np.exp(slope) * logs, axis=1)[np.arange(len(y)), y])

    slope = np.exp(minimize_scalar(measure_loss, bounds=(-4, 4), method="bounded", options={"xatol": 1e-3}).x)
    right, sure = probabilities.argmax(axis=1) == y, probabilities.max(axis=1)
    bins = np.minimum((sure * 15).astype(int), 14)
    error = np.abs(np.bincount(bins, shares * (right - sure), minlength=15)).sum()
    return np.array([slope, error, balanced_accuracy_score(y, probabilities.argmax(axis=1))])


def print_matrix(kinds: Sequence[str], draws: int, cells: int | None) -> None:
    """One line per cell, and how many cells of each head are outside of the bounds.

    Args:
        kinds: Heads.
        draws: Of each cell.
        cells: Number of cells of each head, drawn from its 128, the same for all; None for all.
    """
    chosen = choose_cells(kinds, cells)
    print("| head | by | classes | weights | groups | columns | k | images | slope | ECE | balanced accuracy | |")
    print("|---" * 12 + "|", flush=True)
    counts = {kind: [0, 0] for kind in kinds}
    for cell in chosen:
        found = measure(cell, draws)
        faults = found.list_faults(cell.classes)
        counts[cell.kind][0] += bool(faults)
        counts[cell.kind][1] += 1
        figures = [
            f"{one:.3f} ± {error:.3f} ({other:.3f})"
            for one, error, other in zip(found.ours, found.errors[0], found.theirs, strict=True)
        ]
        print(f"| {cell} | {' | '.join(figures)} | {', '.join(faults)} |", flush=True)
    print("\n" + "; ".join(f"{kind}: {count} of {total} outside" for kind, (count, total) in counts.items()))
