"""Heads that represent a class by its mean: for few examples, with no strength to search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.utils.validation import check_is_fitted

from tlkeras.config.schema.heads import AutoShrinkage
from tlkeras.heads.base import (
    CalibratedLinearHead,
    HeadResult,
    LabelledFeatures,
    VectorHead,
    finish_layers,
    list_folds,
)
from tlkeras.heads.calibration import calibrate

if TYPE_CHECKING:
    import keras


class CentroidHead(CalibratedLinearHead):
    """The nearest class mean on standardised columns (Mensink et al., PAMI 2013), calibrated on held-out rows."""

    kind = "centroid"
    supports_multilabel = False

    def _solve(self, rows: LabelledFeatures, strength: float, start: tuple | None) -> tuple[np.ndarray, np.ndarray]:
        means = average_classes(rows, len(self.classes_))
        return means.T, -0.5 * np.sum(means**2, axis=1)


@dataclass(eq=False, repr=False)
class LdaHead(CalibratedLinearHead):
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

    def _solve(self, rows: LabelledFeatures, strength: float, start: tuple | None) -> tuple[np.ndarray, np.ndarray]:
        means = average_classes(rows, len(self.classes_)).astype(np.float64)
        total = rows.weights.sum()
        within = (rows.X - means[rows.codes]) * np.sqrt(rows.weights * len(rows.X) / total)[:, None]
        covariance = within.T @ within / len(within)
        share = self.shrinkage
        share = float(ledoit_wolf_shrinkage(within, assume_centered=True)) if share == "auto" else share
        self.shrinkage_ = share
        level = np.trace(covariance) / len(covariance)
        covariance = (1 - share) * covariance
        covariance[np.diag_indices_from(covariance)] += share * level + 1e-9 * (level or 1.0)
        kernel = cho_solve(cho_factor(covariance), means.T)
        shares = np.bincount(rows.codes, rows.weights, len(means)) / total
        return kernel, -0.5 * np.sum(means.T * kernel, axis=0) + np.log(np.maximum(shares, 1e-12))

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

    def _fit(self, rows: LabelledFeatures, held: LabelledFeatures | None, groups: np.ndarray | None) -> None:
        self.mean_ = np.average(rows.X, axis=0, weights=rows.weights)
        units = rows._replace(X=normalize_rows(rows.X - self.mean_))
        held = None if held is None else held._replace(X=normalize_rows(held.X - self.mean_))
        parts = list_folds(self.link_, units, held, self.folds, self.seed, groups)
        k = len(self.classes_)
        kernel, scale, shift = self._find_directions(units), np.full(k, 10.0), np.zeros(k)
        if parts:
            scores = [part.held.X @ self._find_directions(units.take(part.fit)) for part in parts]
            codes, weights = (np.concatenate([part.held[field] for part in parts]) for field in (1, 2))
            if weights.any():
                scale, shift = calibrate(self.link_, np.concatenate(scores), codes, weights)
        self.kernel_, self.bias_ = kernel * scale, shift

    def _find_directions(self, rows: LabelledFeatures) -> np.ndarray:
        return normalize_rows(average_classes(rows, len(self.classes_))).T

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
