"""Deep domain adaptation on cached activations: a small network with a penalty on the difference of domains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from tlkeras import progress
from tlkeras.adaptation.alignment import check_domains
from tlkeras.adaptation.penalties import WEIGHTS, DiscrepancyMethod, DomainDiscrepancy, make_seeded_dense, ramp
from tlkeras.errors import DataError, RecipeError, suggest
from tlkeras.heads.base import HeadResult
from tlkeras.heads.folds import ClassWeight, compute_sample_weights
from tlkeras.lazy_tensorflow import check_backend


@dataclass(frozen=True)
class AdaptationOptions:
    """Options of deep domain adaptation."""

    method: DiscrepancyMethod = "dann"  # the penalty, as of `DomainDiscrepancy`; "none" learns on the source alone
    weight: float | None = None  # of the penalty at the end of its ramp; None takes the method's of `WEIGHTS`
    width: int = 256  # units of the layer whose outputs the penalty compares
    dropout: float = 0.3  # behind that layer, and in the discriminator
    epochs: int = 30  # passes over the larger domain
    batch_size: int = 64  # rows of each domain in a step
    learning_rate: float = 1e-3  # initial one of AdamW; it falls to zero along a cosine
    seed: int = 0  # of initial weights, order and dropout
    class_weight: ClassWeight = None  # in the loss of the source's rows: a factor per class, "balanced", or None


class AdaptedHead:
    """A head that learns from labelled source rows and unlabelled target rows.

    One step takes a batch of each domain, each through the network by itself. The discriminator has an optimizer of
    its own and is not exported.

    Attributes:
        classes_: Class values, (k,).
        history_: Mean losses by epoch: `loss` of the source's classes, `transfer` of the domains' difference.

    Sources: Ganin et al., JMLR 2016 (DANN); Long et al., Conditional Adversarial Domain Adaptation, 2018 (CDAN);
    and those in `tlkeras.adaptation.penalties`.
    """

    def __init__(self, options: AdaptationOptions = AdaptationOptions()):
        if options.method not in WEIGHTS:
            raise RecipeError(f"Unknown method {options.method!r}.", way_out=suggest(options.method, WEIGHTS))
        self.options = options

    def fit(
        self, Xs: np.ndarray, ys: np.ndarray, Xt: np.ndarray, sample_weight: np.ndarray | None = None
    ) -> AdaptedHead:
        """Fit on source features (n, d), their classes (n,) and weights (n,), and target features (m, d).

        Raises:
            DataError: The domains cannot be compared, or the source has fewer than two classes.
        """
        check_backend("AdaptedHead")
        check_domains(Xs, Xt)
        self.classes_, codes = np.unique(ys, return_inverse=True)
        if len(self.classes_) < 2:
            raise DataError("The source has fewer than two classes.", len(self.classes_))
        weights = compute_sample_weights(ys, sample_weight, self.options.class_weight)
        weights = (weights / weights.mean()).astype(np.float32)
        Xs, Xt = np.asarray(Xs, np.float32), np.asarray(Xt, np.float32)
        keras.utils.set_random_seed(self.options.seed)
        self._build(np.concatenate([Xs, Xt]))
        steps = -(-max(len(Xs), len(Xt)) // self.options.batch_size)
        step = self._make_step(steps * self.options.epochs)
        random = np.random.default_rng(self.options.seed)
        self.history_: dict[str, list[float]] = {"epoch": [], "loss": [], "transfer": []}
        with progress.progress_bar(f"Adapt by {self.options.method}", self.options.epochs, "epochs") as advance:
            for epoch in range(self.options.epochs):
                rows = zip(*(self._draw(random, len(X), steps) for X in (Xs, Xt)), strict=True)
                losses = [step(Xs[s], codes[s].astype(np.int32), weights[s], Xt[t]) for s, t in rows]
                means = np.mean(losses, axis=0)
                for name, value in zip(self.history_, (epoch + 1, *means.tolist()), strict=True):
                    self.history_[name].append(value)
                advance(1)
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Probabilities of classes (rows, k)."""
        return tf.nn.softmax(self._classifier(self._encoder(np.asarray(X, np.float32)))).numpy()

    def predict(self, X: np.ndarray) -> np.ndarray:
        """The most probable class of each row."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def encode(self, X: np.ndarray) -> np.ndarray:
        """Features that the penalty compares, float32 (rows, width)."""
        return self._encoder(np.asarray(X, np.float32)).numpy()

    def to_layers(self) -> list[layers.Layer]:
        """The fitted layers, raw features to probabilities, without the discriminator."""
        probabilities = layers.Activation("softmax", name="probabilities")
        return [*self._encoder.layers, *self._classifier.layers, probabilities]

    def summarize(self) -> HeadResult:
        """Method and epochs."""
        return HeadResult("adapted", {"method": self.options.method, "epochs": self.options.epochs})

    def history(self) -> dict[str, list[float]]:
        """Losses by epoch, as columns."""
        return self.history_

    def _build(self, X: np.ndarray) -> None:
        options, classes = self.options, len(self.classes_)
        seeds = iter(range(options.seed * 100, options.seed * 100 + 100))
        variance = X.var(axis=0)
        variance[variance <= 0] = 1.0
        self._encoder = keras.Sequential(
            [
                keras.Input((X.shape[1],)),
                layers.Normalization(mean=X.mean(0).tolist(), variance=variance.tolist(), name="head_input"),
                make_seeded_dense(options.width, "bottleneck", next(seeds), "relu"),
                layers.Dropout(options.dropout, seed=next(seeds), name="head_dropout"),
            ]
        )
        logits = make_seeded_dense(classes, "logits", next(seeds))
        self._classifier = keras.Sequential([keras.Input((options.width,)), logits])
        self._discrepancy = DomainDiscrepancy(
            options.method, options.width, classes, dropout=options.dropout, seeds=seeds, seed=options.seed
        )

    def _make_step(self, total: int) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
        """A compiled training step of source rows, classes, weights and target rows; it returns both losses."""
        options = self.options
        weight = WEIGHTS[options.method] if options.weight is None else options.weight
        optimizer, adversary = (self._make_optimizer(total) for _ in range(2))
        learned = [*self._encoder.trainable_variables, *self._classifier.trainable_variables]
        discriminator = self._discrepancy.discriminator
        opposed = [] if discriminator is None else discriminator.trainable_variables
        optimizer.build(learned)
        adversary.build(opposed)
        steps = tf.Variable(0.0, trainable=False)

        def step(xs: tf.Tensor, ys: tf.Tensor, weights: tf.Tensor, xt: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            strength = weight * ramp(steps / total)
            with tf.GradientTape() as tape:
                fs, ft = self._encoder(xs, training=True), self._encoder(xt, training=True)
                ls, lt = self._classifier(fs), self._classifier(ft)
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(ys, ls) * weights)
                term, transfer = self._discrepancy.weigh((fs, ls), (ft, lt), strength)
                objective = loss + term
            gradients = tape.gradient(objective, [*learned, *opposed])
            optimizer.apply(gradients[: len(learned)], learned)
            if opposed:
                adversary.apply(gradients[len(learned) :], opposed)
            steps.assign_add(1.0)
            return loss, transfer

        return tf.function(step, autograph=False, jit_compile=False, reduce_retracing=True)

    def _make_optimizer(self, total: int) -> keras.optimizers.Optimizer:
        rate = keras.optimizers.schedules.CosineDecay(self.options.learning_rate, total)
        optimizer = keras.optimizers.AdamW(rate, weight_decay=1e-4, global_clipnorm=1.0)
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        return optimizer

    def _draw(self, random: np.random.Generator, count: int, steps: int) -> list[np.ndarray]:
        """Rows of each step: permutations one after another, so that the smaller domain is repeated."""
        size = min(self.options.batch_size, count)
        rounds = -(-steps * size // count)
        rows = np.concatenate([random.permutation(count) for _ in range(rounds)])
        return list(rows[: steps * size].reshape(steps, size))
