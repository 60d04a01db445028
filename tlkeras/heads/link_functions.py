"""Link functions: how targets are encoded, and how logits become probabilities and decisions."""

from typing import Any

import numpy as np
from scipy.special import expit, softmax
from sklearn.utils.multiclass import check_classification_targets

from tlkeras.data.tasks import THRESHOLD

LinearMap = tuple[np.ndarray, np.ndarray]
"""Kernel (d, k) and bias (k,)."""


class SoftmaxLink:
    """Each row is of one class; probabilities add up to 1. Codes, the targets of the loss, are indices of classes.

    Attributes:
        activation: Keras name of the map from logits to probabilities.
        loss: Keras name of the loss of codes and probabilities.
        several: Whether a row can have several labels.
    """

    activation = "softmax"
    loss = "sparse_categorical_crossentropy"
    several = False

    def encode(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Class values (k,) and the codes of the rows, int (n,); ValueError if there is one class only."""
        check_classification_targets(y)
        classes, codes = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"A head needs two classes or more. Received: {len(classes)} class.")
        return classes, codes

    def transform(self, y: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Codes of further rows; ValueError if the head was not fitted on one of their classes."""
        unknown = np.setdiff1d(y, classes)
        if len(unknown):
            raise ValueError(
                "Validation rows have classes that no training row has. "
                f"Received: {unknown.tolist()}, beside {classes.tolist()}."
            )
        return np.searchsorted(classes, y)

    def decode(self, codes: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Targets in the form of `y`."""
        return classes[codes]

    def subproblems(self, codes: np.ndarray) -> list[np.ndarray]:
        """Targets (n,) of each logistic regression: one of all classes."""
        return [codes]

    def merge_coefficients(self, solutions: list[LinearMap]) -> LinearMap:
        """Kernel (d, k) and bias (k,) from scikit-learn's coefficients and intercepts, one row for two classes."""
        ((coefficients, bias),) = solutions
        kernel = coefficients.T
        if kernel.shape[1] == 1:
            kernel, bias = np.hstack([-kernel / 2, kernel / 2]), np.concatenate([-bias / 2, bias / 2])
        return kernel, bias

    def indicators(self, codes: np.ndarray, classes: int) -> np.ndarray:
        """1 for each class that a row has and 0 for the others, float64 (n, k)."""
        return np.eye(classes)[codes]

    def group_rows(self, codes: np.ndarray) -> np.ndarray:
        """Stratum of each row, int (n,): samples of rows keep the shares of these."""
        return codes

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities (n, k)."""
        return softmax(logits, axis=1)

    def decide(self, probabilities: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """The most probable class of each row, (n,)."""
        return classes[probabilities.argmax(axis=1)]

    def decision_function(self, logits: np.ndarray) -> np.ndarray:
        """The logits; for two classes their difference, (n,), as scikit-learn has it."""
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits


class SigmoidLink:
    """Each row has any number of labels, each with a probability of its own. Codes are indicators (n, k)."""

    activation = "sigmoid"
    loss = "binary_crossentropy"
    several = True

    def encode(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the labels (k,) and the indicators; ValueError if all rows have a label, or lack it."""
        check_classification_targets(y)
        constant = np.flatnonzero((y == y[0]).all(axis=0))
        if len(constant):
            raise ValueError(f"A head needs rows with and without each label. Received: all alike in {constant}.")
        return np.arange(y.shape[1]), np.asarray(y)

    def transform(self, y: np.ndarray, classes: np.ndarray) -> np.ndarray:
        return y

    def decode(self, codes: np.ndarray, classes: np.ndarray) -> np.ndarray:
        return codes

    def subproblems(self, codes: np.ndarray) -> list[np.ndarray]:
        return list(codes.T)

    def merge_coefficients(self, solutions: list[LinearMap]) -> LinearMap:
        coefficients, biases = zip(*solutions, strict=True)
        return np.concatenate(coefficients).T, np.concatenate(biases)

    def indicators(self, codes: np.ndarray, classes: int) -> np.ndarray:
        return codes.astype(np.float64)

    def group_rows(self, codes: np.ndarray) -> np.ndarray:
        """Each row's rarest label, or k for none; labels that are the rarest of one row only count as none."""
        labels = codes.shape[1]
        rarity = np.where(codes == 1, codes.sum(axis=0), np.inf)
        rarest = np.where(codes.any(axis=1), rarity.argmin(axis=1), labels)
        rarest[np.bincount(rarest, minlength=labels + 1)[rarest] < 2] = labels
        return np.unique(rarest, return_inverse=True)[1]

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        return expit(logits)

    def decide(self, probabilities: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Indicators, int (n, k): 1 from `THRESHOLD` on."""
        return (probabilities >= THRESHOLD).astype(np.int64)

    def decision_function(self, logits: np.ndarray) -> np.ndarray:
        return logits


LinkFunction = SoftmaxLink | SigmoidLink
"""All that depends on whether a row has one class or any number of labels; both have the same methods."""


def infer_link(y: Any) -> LinkFunction:
    """The link for targets: a sigmoid for indicators (n, k) of k > 1 labels, a softmax for anything else."""
    shape = np.asarray(y).shape
    return SigmoidLink() if len(shape) == 2 and shape[1] > 1 else SoftmaxLink()
