"""What stands between logits and probabilities, and what follows: how targets are coded, divided and answered."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from scipy.special import expit, softmax
from sklearn.utils.multiclass import check_classification_targets

from tlkeras.data.tasks import THRESHOLD


class LinkFunction(Protocol):
    """How a head answers, all that depends on whether a row has one class or any number of labels.

    Attributes:
        activation: Keras name of the map from logits to probabilities.
        loss: Keras name of the loss of codes and probabilities.
        several: Whether a row can have several labels.
    """

    activation: str
    loss: str
    several: bool

    def code(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the class values (k,) and what of them each row is, as the loss takes it.

        Raises:
            ValueError: There is nothing to tell apart.
        """
        ...

    def recode(self, y: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return the codes of other rows."""
        ...

    def list_questions(self, codes: np.ndarray) -> list[np.ndarray]:
        """Return what logistic regressions have to answer one by one, (n,) each; from codes or from `y`."""
        ...

    def merge(self, solutions: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        """Return kernel (d, k) and bias (k,) from scikit-learn's coefficients and intercepts of the questions."""
        ...

    def indicate(self, codes: np.ndarray, classes: int) -> np.ndarray:
        """Return 1 for each class that a row has and 0 for the others, float64 (n, k)."""
        ...

    def group_rows(self, codes: np.ndarray) -> np.ndarray:
        """Return what a sample of rows should keep the shares of, int (n,)."""
        ...

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return probabilities (n, k)."""
        ...

    def decide(self, probabilities: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return what probabilities speak for, in the form of `y`."""
        ...

    def margins(self, logits: np.ndarray) -> np.ndarray:
        """Return what scikit-learn calls the decision function."""
        ...


class SoftmaxLink:
    """Each row is of one class: one question with k answers."""

    activation = "softmax"
    loss = "sparse_categorical_crossentropy"
    several = False

    def code(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the sorted classes and the index of each row's, int (n,)."""
        check_classification_targets(y)
        classes, codes = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"A head needs two classes or more. Received: {len(classes)} class.")
        return classes, codes

    def recode(self, y: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return the index of each row's class."""
        return np.searchsorted(classes, y)

    def list_questions(self, codes: np.ndarray) -> list[np.ndarray]:
        """Return the codes."""
        return [codes]

    def merge(self, solutions: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        """Return the map; scikit-learn keeps one row for two classes, a softmax wants two."""
        ((coefficients, bias),) = solutions
        kernel = coefficients.T
        if kernel.shape[1] == 1:
            kernel, bias = np.hstack([-kernel / 2, kernel / 2]), np.concatenate([-bias / 2, bias / 2])
        return kernel, bias

    def indicate(self, codes: np.ndarray, classes: int) -> np.ndarray:
        """Return the rows of a unit matrix."""
        return np.eye(classes)[codes]

    def group_rows(self, codes: np.ndarray) -> np.ndarray:
        """Return the codes."""
        return codes

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return probabilities that add up to 1."""
        return softmax(logits, axis=1)

    def decide(self, probabilities: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return the most probable class of each row, (n,)."""
        return classes[probabilities.argmax(axis=1)]

    def margins(self, logits: np.ndarray) -> np.ndarray:
        """Return the logits; for two classes their difference, (n,)."""
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits


class SigmoidLink:
    """Each row has any number of labels: k questions of yes or no, answered side by side."""

    activation = "sigmoid"
    loss = "binary_crossentropy"
    several = True

    def code(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the numbers of the labels and the indicators as they are, int (n, k)."""
        check_classification_targets(y)
        constant = np.flatnonzero((y == y[0]).all(axis=0))
        if len(constant):
            raise ValueError(f"A head needs rows with and without each label. Received: all alike in {constant}.")
        return np.arange(y.shape[1]), np.asarray(y)

    def recode(self, y: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return the indicators as they are."""
        return y

    def list_questions(self, codes: np.ndarray) -> list[np.ndarray]:
        """Return the columns."""
        return list(codes.T)

    def merge(self, solutions: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        """Return the solutions side by side."""
        coefficients, biases = zip(*solutions, strict=True)
        return np.concatenate(coefficients).T, np.concatenate(biases)

    def indicate(self, codes: np.ndarray, classes: int) -> np.ndarray:
        """Return the indicators as they are."""
        return codes.astype(np.float64)

    def group_rows(self, codes: np.ndarray) -> np.ndarray:
        """Return each row's rarest label, or k for none; labels that are the rarest of one row only count as none."""
        labels = codes.shape[1]
        rarity = np.where(codes == 1, codes.sum(axis=0), np.inf)
        rarest = np.where(codes.any(axis=1), rarity.argmin(axis=1), labels)
        rarest[np.bincount(rarest, minlength=labels + 1)[rarest] < 2] = labels
        return np.unique(rarest, return_inverse=True)[1]

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return a probability per label, each for itself."""
        return expit(logits)

    def decide(self, probabilities: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return indicators, int (n, k): 1 from `THRESHOLD` on."""
        return (probabilities >= THRESHOLD).astype(np.int64)

    def margins(self, logits: np.ndarray) -> np.ndarray:
        """Return the logits."""
        return logits


def infer_link(y: Any) -> LinkFunction:
    """Return the link that targets ask for: indicators (n, k) of k > 1 labels a sigmoid, anything else a softmax."""
    shape = np.asarray(y).shape
    return SigmoidLink() if len(shape) == 2 and shape[1] > 1 else SoftmaxLink()
