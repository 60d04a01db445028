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
from tlkeras.heads.folds import Fold, LabelledFeatures
from tlkeras.heads.held_out import Hyperparameters

if TYPE_CHECKING:
    import keras


class CentroidHead(LinearClassifierHead):
    """The nearest class mean on standardised columns (Mensink et al., PAMI 2013), calibrated on held-out rows."""

    kind = "centroid"
    supports_multilabel = False

    def _solve_path(
        self, rows: LabelledFeatures, strengths: Sequence[float]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        means = average_classes(rows, len(self.classes_))
        yield means.T, -0.5 * np.sum(means**2, axis=1)


@dataclass(eq=False, repr=False)
class LdaHead(LinearClassifierHead):
    """Linear discriminant analysis: class means in the metric of the shrunken common covariance.

    Args:
        shrinkage: Share of the covariance that is replaced by a multiple of the identity; "auto" is the share of Ledoit
            and Wolf (J. Multivariate Analysis 88, 2004).

    Attributes:
        shrinkage_: The share that was used.
    """

    shrinkage: AutoShrinkage = "auto"

    kind = "lda"
    supports_multilabel = False

    def _solve_path(
        self, rows: LabelledFeatures, strengths: Sequence[float]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        means = average_classes(rows, len(self.classes_)).astype(np.float64)
        total = rows.weights.sum()
        within = (rows.X - means[rows.codes]) * np.sqrt(rows.weights * len(rows.X) / total)[:, None]
        covariance = within.T @ within / len(within)
        # of the features themselves, not of the fewer directions in which rows lie
        width = self.n_features_in_
        share = estimate_shrinkage(within, covariance, width) if self.shrinkage == "auto" else self.shrinkage
        self.shrinkage_ = share
        level = np.trace(covariance) / width or 1.0  # of standardised columns, where each class has one row
        covariance = (1 - share) * covariance
        covariance[np.diag_indices_from(covariance)] += share * level + 1e-9 * level
        kernel = cho_solve(cho_factor(covariance), means.T)
        # calibration gives the log shares of classes: those of a fold are low for what it holds out
        yield kernel, -0.5 * np.sum(means.T * kernel, axis=0)

    def summarize(self) -> HeadResult:
        """The shrinkage that was used."""
        return HeadResult(self.kind, {"shrinkage": self.shrinkage_})


class CosineHead(VectorHead):
    """Cosine to the mean direction of each class, after the overall mean is subtracted: for one to twenty examples.

    That is SimpleShot (Wang et al., arXiv 1911.04623, 2019). Its scale is calibrated on held-out rows, else 10.

    Attributes:
        mean_: Mean of all rows, (d,).
        kernel_, bias_: The map from unit vectors to logits, shapes (d, k) and (k,).
    """

    kind = "cosine"
    supports_multilabel = False

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
        """Mean of the rows, (d,), and direction of each class from there, (d, k)."""
        mean = np.average(rows.X, axis=0, weights=rows.weights)
        centred = rows._replace(X=normalize_rows(rows.X - mean))
        return mean, normalize_rows(average_classes(centred, len(self.classes_))).T

    def _logits(self, X: np.ndarray) -> np.ndarray:
        return normalize_rows(X - self.mean_) @ self.kernel_ + self.bias_

    def to_layers(self) -> list[keras.layers.Layer]:
        """Centring, normalisation to unit length, and the maps to logits and probabilities."""
        import keras

        check_is_fitted(self)
        ones = [1.0] * len(self.mean_)
        centre = keras.layers.Normalization(mean=self.mean_.tolist(), variance=ones, name="head_input")
        return [
            centre,
            keras.layers.UnitNormalization(name="head_unit"),
            *finish_layers(self.kernel_, self.bias_, self.link_),
        ]


def estimate_shrinkage(X: np.ndarray, covariance: np.ndarray, width: int) -> float:
    """Share of Ledoit and Wolf for centred rows (n, r) that have been turned from `width` columns to r directions.

    All that the estimate needs of the rows but the width is the same in both: lengths, trace, and sum of squares.

    Args:
        X: Rows, (n, r).
        covariance: X.T @ X / n, (r, r).
        width: Number of columns that the rows had.
    """
    squares = float(np.sum(covariance**2))
    noise = (float(np.sum(np.sum(X**2, axis=1) ** 2)) / len(X) - squares) / len(X)
    spread = squares - float(np.trace(covariance)) ** 2 / width
    return float(np.clip(noise / spread, 0, 1)) if spread > 0 else 1.0


def average_classes(rows: LabelledFeatures, classes: int) -> np.ndarray:
    """Weighted mean of each class, (k, d); a class of weight zero has the mean of all."""
    members = np.zeros((classes, len(rows.codes)), rows.X.dtype)
    members[rows.codes, np.arange(len(rows.codes))] = rows.weights
    totals = members.sum(axis=1, keepdims=True)
    means = members @ rows.X / np.where(totals > 0, totals, 1)
    return np.where(totals > 0, means, np.average(rows.X, axis=0, weights=rows.weights))


def normalize_rows(X: np.ndarray) -> np.ndarray:
    """Rows divided by their length; rows of zeros stay."""
    lengths = np.linalg.norm(X, axis=1, keepdims=True)
    return X / np.where(lengths > 1e-12, lengths, 1)
