"""Distances between two domains: losses for training, and a metric to report. Features are [b, d] tensors."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

_SCALES = (0.125, 0.25, 0.5, 1.0, 2.0)
_TINY = 1e-8


def gradient_reversal(x: tf.Tensor, strength: tf.Tensor | float) -> tf.Tensor:
    """x, with its gradient multiplied by -strength.

    Source: Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016, section 4.2.
    """
    return tf.stop_gradient((1.0 + strength) * x) - strength * x


def ramp(progress: tf.Tensor | float) -> tf.Tensor:
    """2 / (1 + exp(-10 p)) - 1: 0 at the start, nearly 1 from the middle on (Ganin et al., section 5.2)."""
    return 2.0 / (1.0 + tf.exp(-10.0 * tf.cast(progress, tf.float32))) - 1.0


def coral_loss(source: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """||C_s - C_t||_F^2 / (4 d^2), a scalar; covariances are divided by b - 1.

    Source: Sun and Saenko, Deep CORAL, ECCV Workshops 2016.
    """
    width = tf.cast(tf.shape(source)[1], tf.float32)
    return tf.reduce_sum((_covariance(source) - _covariance(target)) ** 2) / (4.0 * width**2)


def relative_coral_loss(source: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """||C_s - C_t||_F^2 / ||C_s||_F^2, a scalar: `coral_loss` in units of the source's own covariance.

    It depends neither on the width nor on the scale of the features, so that one weight suits all; with 1 / (4 d^2) the
    paper has the few outputs for classes in mind.
    """
    of_source = _covariance(source)
    difference = tf.reduce_sum((of_source - _covariance(target)) ** 2)
    return difference / tf.maximum(tf.reduce_sum(of_source**2), _TINY)


def mmd_loss(source: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """Squared maximum mean discrepancy summed over five Gaussian kernels, a scalar of 0 or more.

    Kernels are exp(-d^2 / (2 a m)) with m the mean squared distance of all pairs, a = 1/8, ..., 2. All pairs count,
    also of rows with themselves, so that it cannot be negative; m has no gradient.

    Source: Long et al., Learning Transferable Features with Deep Adaptation Networks, ICML 2015; Gretton et al., A
    Kernel Two-Sample Test, JMLR 2012, equation 5.
    """
    both, count = tf.concat([source, target], 0), tf.shape(source)[0]
    squares = tf.reduce_sum(both**2, axis=1)
    distances = tf.maximum(squares[:, None] + squares[None] - 2.0 * tf.matmul(both, both, transpose_b=True), 0.0)
    scale = tf.stop_gradient(tf.maximum(tf.reduce_mean(distances), _TINY))
    kernel = tf.add_n([tf.exp(-distances / (2.0 * a * scale)) for a in _SCALES])
    within = tf.reduce_mean(kernel[:count, :count]) + tf.reduce_mean(kernel[count:, count:])
    return within - 2.0 * tf.reduce_mean(kernel[:count, count:])


def mcc_loss(logits: tf.Tensor, temperature: float = 2.5) -> tf.Tensor:
    """Class confusion in the predictions for target rows [b, k], a scalar between 0 and 1.

    Source: Jin et al., Minimum Class Confusion for Versatile Domain Adaptation, ECCV 2020, equations 2 to 6.
    """
    predictions = tf.nn.softmax(logits / temperature)
    weights = tf.stop_gradient(weigh_by_certainty(predictions))
    confusion = tf.matmul(predictions, predictions * weights[:, None], transpose_a=True)
    confusion /= tf.maximum(tf.reduce_sum(confusion, axis=1, keepdims=True), _TINY)
    classes = tf.cast(tf.shape(logits)[1], tf.float32)
    return (tf.reduce_sum(confusion) - tf.linalg.trace(confusion)) / classes


def weigh_by_certainty(predictions: tf.Tensor) -> tf.Tensor:
    """1 + exp(-entropy) of each row of probabilities [b, k], divided by their mean, [b]."""
    entropy = -tf.reduce_sum(predictions * tf.math.log(predictions + _TINY), axis=1)
    weights = 1.0 + tf.exp(-entropy)
    return weights / tf.reduce_mean(weights)


def measure_a_distance(Xs: np.ndarray, Xt: np.ndarray, seed: int = 0) -> float:
    """A-distance 2 (1 - 2 err) by a linear classifier of the domain: 0 for equal domains, 2 for separable ones.

    It is fitted on four fifths of both domains and evaluated on the rest, both domains with equal weight.

    Source: Ben-David et al., Analysis of Representations for Domain Adaptation, NIPS 2006.
    """
    X, y = np.concatenate([Xs, Xt]), np.repeat([0, 1], [len(Xs), len(Xt)])
    fit, held, y_fit, y_held = train_test_split(X, y, test_size=0.2, stratify=y, random_state=seed)
    scaler = StandardScaler().fit(fit)
    classifier = LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000).fit(scaler.transform(fit), y_fit)
    wrong = classifier.predict(scaler.transform(held)) != y_held
    error = np.mean([wrong[y_held == domain].mean() for domain in (0, 1)])
    return float(np.clip(2 * (1 - 2 * error), 0, 2))


def _covariance(X: tf.Tensor) -> tf.Tensor:
    centred = X - tf.reduce_mean(X, axis=0)
    return tf.matmul(centred, centred, transpose_a=True) / (tf.cast(tf.shape(X)[0], tf.float32) - 1.0)
