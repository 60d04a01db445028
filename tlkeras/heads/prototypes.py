"""Heads that represent a class by its mean: for few examples, with no strength to search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from sklearn.utils.validation import check_is_fitted

from tlkeras.config.schema.heads import AutoShrinkage
from tlkeras.heads.base import HeadResult, LinearClassifierHead, VectorHead, finish_layers
from tlkeras.heads.class_means import (
    ClassClouds,
    average_classes,
    count_all_rows,
    count_rows,
    deflate,
    measure_clouds,
    measure_freedom,
    measure_likeness,
    measure_spread,
)
from tlkeras.heads.folds import Fold, LabelledFeatures
from tlkeras.heads.held_out import Hyperparameters
from tlkeras.heads.link_functions import LinearMap
from tlkeras.heads.scaling import AffineTransform, fit_standardizer, moderate_deviation

if TYPE_CHECKING:
    import keras


class ClassMeanHead(LinearClassifierHead):
    """A head whose score of a class is that of a normal cloud around its mean; subclasses give `_transform`.

    Columns are scaled by their deviation within classes; below three rows a class, where that is hardly known, by that
    of all rows. How sure scores are goes by the number of rows of each mean: see `ClassClouds`. Shares of the classes
    come from the calibration, as those of a fold are low for what it holds out.
    """

    supports_multilabel = False

    def _list_candidates(self, rows: LabelledFeatures) -> list[Hyperparameters]:
        # for all folds alike, so that scores are of one size
        self._within = len(rows.X) >= 3 * len(self.classes_)
        self._likeness = measure_likeness(rows)
        self._signal = 0.0
        if self._within:
            frame = self._fit_frame(rows)
            rows = rows._replace(X=frame.apply(rows.X))
            self._signal = self._measure_clouds(rows).estimate_signal()
        return super()._list_candidates(rows)

    def _measure_freedom(self, rows: LabelledFeatures) -> float:
        """The expected mean squared deviation from class means, as a share of the variance; 0 if it is not used."""
        return measure_freedom(rows, count_rows(rows, len(self.classes_), self._likeness)) if self._within else 0.0

    def _fit_frame(self, rows: LabelledFeatures) -> AffineTransform:
        freedom = self._measure_freedom(rows)
        if not freedom or not self.standardize:
            return super()._fit_frame(rows)
        means = average_classes(rows, len(self.classes_))
        variance = np.average((rows.X - means[rows.codes]) ** 2, axis=0, weights=rows.weights) / freedom
        known = freedom * len(rows.X)
        scale = moderate_deviation(rows.X.mean(axis=0), variance, known, added=len(self.classes_))
        return fit_standardizer(rows.X, rows.weights, scale=scale.astype(rows.X.dtype))

    def _measure_clouds(self, rows: LabelledFeatures) -> ClassClouds:
        means = average_classes(rows, len(self.classes_)).astype(np.float64)
        kernel, spread = self._transform(rows, means, self._measure_freedom(rows))
        return ClassClouds(means, kernel, count_rows(rows, len(self.classes_), self._likeness), spread)

    def _solve_path(self, rows: LabelledFeatures, strengths: Sequence[float]) -> Iterator[LinearMap]:
        yield self._measure_clouds(rows).predict(self._signal)

    def _transform(self, rows: LabelledFeatures, means: np.ndarray, freedom: float) -> tuple[np.ndarray, float]:
        """Means (k, d) times the inverse covariance, (d, k), and the variance of rows there, all columns added."""
        raise NotImplementedError


class CentroidHead(ClassMeanHead):
    """The nearest class mean on standardised columns (Mensink et al., PAMI 2013), calibrated on held-out rows."""

    kind = "centroid"

    def _transform(self, rows: LabelledFeatures, means: np.ndarray, freedom: float) -> tuple[np.ndarray, float]:
        return means.T, measure_spread(rows, means) / freedom if freedom else 0.0


@dataclass(eq=False, repr=False)
class LdaHead(ClassMeanHead):
    """Linear discriminant analysis: class means in the metric of the shrunken common covariance.

    Below three rows a class it is the nearest class mean.

    Args:
        shrinkage: Share of the covariance that is replaced by the variances alone; "auto" is the share of Ledoit and
            Wolf (J. Multivariate Analysis 88, 2004) of columns divided by their deviation within classes.

    Attributes:
        shrinkage_: The share that was used.
    """

    shrinkage: AutoShrinkage = "auto"

    kind = "lda"

    def _transform(self, rows: LabelledFeatures, means: np.ndarray, freedom: float) -> tuple[np.ndarray, float]:
        self.shrinkage_ = 1.0
        if not freedom:
            return means.T, 0.0
        total = rows.weights.sum()
        within = (rows.X - means[rows.codes]) * np.sqrt(rows.weights * len(rows.X) / total)[:, None]
        covariance = within.T @ within / len(within)
        width = self.n_features_in_  # of the features themselves, not of the fewer directions in which rows lie
        share = estimate_shrinkage(within, covariance, width) if self.shrinkage == "auto" else self.shrinkage
        self.shrinkage_ = share
        covariance /= freedom
        level = np.trace(covariance) / width or 1.0
        shrunken = (1 - share) * covariance
        shrunken[np.diag_indices_from(shrunken)] += (share + 1e-9) * level
        factor = cho_factor(shrunken)
        whitened = cho_solve(factor, covariance)
        spread, known = float(np.trace(whitened)), freedom * count_all_rows(rows, self._likeness**2)
        return deflate((1 - share) * spread, known) * cho_solve(factor, means.T), spread

    def summarize(self) -> HeadResult:
        return HeadResult(self.kind, {"shrinkage": self.shrinkage_})


class CosineHead(VectorHead):
    """Cosine to the mean direction of each class from the mean of class means: for one to twenty examples.

    That is SimpleShot (Wang et al., arXiv 1911.04623, 2019). Its scale is calibrated on held-out rows, else 10.

    Attributes:
        mean_: Mean of the class means, (d,).
        kernel_, bias_: The map from unit vectors to logits, shapes (d, k) and (k,).
    """

    kind = "cosine"
    supports_multilabel = False

    def _list_candidates(self, rows: LabelledFeatures) -> list[Hyperparameters]:
        self._within = len(rows.X) >= 3 * len(self.classes_)
        self._likeness = measure_likeness(rows)
        self._signal = self._measure_clouds(self._center(rows)[1]).estimate_signal()
        return super()._list_candidates(rows)

    def _score_fold(self, part: Fold, candidates: list[Hyperparameters]) -> list[np.ndarray]:
        rows = part.fit_rows()
        mean, directions = self._find_directions(rows)
        return [normalize_rows(part.held_rows().X - mean) @ directions]

    def _fit_candidate(self, rows: LabelledFeatures, candidate: Hyperparameters) -> None:
        self.mean_, self.kernel_ = self._find_directions(rows)
        self.bias_ = np.zeros(len(self.classes_))

    def _calibrate_without_folds(self, rows: LabelledFeatures) -> tuple[np.ndarray, np.ndarray]:
        return np.full(len(self.classes_), 10.0), np.zeros(len(self.classes_))

    def _keep_losses(self, chosen: Hyperparameters, losses: Mapping[Hyperparameters, float]) -> None:
        """Nothing was to choose."""

    def _scale(self, scale: np.ndarray, shift: np.ndarray) -> None:
        self.kernel_, self.bias_ = self.kernel_ * scale, shift

    def _find_directions(self, rows: LabelledFeatures) -> tuple[np.ndarray, np.ndarray]:
        """The mean (d,) of class means, and directions (d, k) as long as they are sure: see `ClassClouds`."""
        mean, unit = self._center(rows)
        clouds = self._measure_clouds(unit)
        return mean, normalize_rows(clouds.means).T * np.sqrt(clouds.measure_certainty(self._signal))

    def _center(self, rows: LabelledFeatures) -> tuple[np.ndarray, LabelledFeatures]:
        # that of all rows would leave the most frequent class without a direction
        mean = average_classes(rows, len(self.classes_)).mean(axis=0)
        return mean, rows._replace(X=normalize_rows(rows.X - mean))

    def _measure_clouds(self, unit: LabelledFeatures) -> ClassClouds:
        return measure_clouds(unit, len(self.classes_), self._likeness if self._within else None)

    def _logits(self, X: np.ndarray) -> np.ndarray:
        return normalize_rows(X - self.mean_) @ self.kernel_ + self.bias_

    def to_layers(self) -> list[keras.layers.Layer]:
        import keras

        check_is_fitted(self)
        ones = [1.0] * len(self.mean_)
        centre = keras.layers.Normalization(mean=self.mean_.tolist(), variance=ones, name="head_input")
        unit = keras.layers.UnitNormalization(name="head_unit")
        return [centre, unit, *finish_layers(self.kernel_, self.bias_, self.link_)]


def estimate_shrinkage(X: np.ndarray, covariance: np.ndarray, width: int) -> float:
    """Share of Ledoit and Wolf for centred rows (n, r) that have been turned from `width` columns to r directions.

    All that the estimate needs of the rows but the width is the same in both: lengths, trace, and sum of squares. The
    covariance is X.T @ X / n.
    """
    squares = float(np.sum(covariance**2))
    noise = (float(np.sum(np.sum(X**2, axis=1) ** 2)) / len(X) - squares) / len(X)
    spread = squares - float(np.trace(covariance)) ** 2 / width
    return float(np.clip(noise / spread, 0, 1)) if spread > 0 else 1.0


def normalize_rows(X: np.ndarray) -> np.ndarray:
    """Rows divided by their length; rows of zeros stay."""
    lengths = np.linalg.norm(X, axis=1, keepdims=True)
    return X / np.where(lengths > 1e-12, lengths, 1)
