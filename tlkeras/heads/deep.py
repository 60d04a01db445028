"""Deep heads: what trains a stack of layers, and a multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import check_is_fitted, validate_data

from tlkeras import progress
from tlkeras.heads.class_weights import ClassWeight, compute_sample_weights
from tlkeras.heads.link_functions import LinkFunction, infer_link

if TYPE_CHECKING:
    import keras


_PREDICTED = 256  # rows at a time


@dataclass(frozen=True)
class FitOptions:
    """How a deep head is trained.

    Args:
        epochs: At most so many passes over the examples.
        batch_size: Examples per step.
        learning_rate: Initial rate of AdamW; it falls to zero along a cosine over all epochs.
        weight_decay: Decay of the kernels per unit of learning rate.
        patience: Stop after so many epochs without a lower validation loss; the best weights are kept.
        seed: Seed of initial weights, dropout, order, and of the validation rows taken when none are given.
    """

    epochs: int = 60
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    patience: int = 8
    seed: int = 0


DEFAULT_FIT = FitOptions()


class KerasHead(ClassifierMixin, BaseEstimator):
    """A head that is a stack of Keras layers, trained with AdamW and early stopping; subclasses give `_list_hidden`.

    Attributes:
        classes_: Class values, shape (k,); with several labels their numbers.
        model_: The fitted keras.Sequential, features to probabilities (n, k).
        history_: Loss per epoch by name.
    """

    kind: ClassVar[str]
    eats: ClassVar[Literal["vector", "map"]] = "vector"
    labels: ClassVar[bool] = True
    class_weight: ClassWeight = None
    fitting: FitOptions = DEFAULT_FIT

    def _list_hidden(self, shape: tuple[int, ...]) -> list[keras.layers.Layer]:
        """Return the layers between standardised features, of a row's shape, and logits."""
        raise NotImplementedError

    def fit(
        self,
        X: np.ndarray,
        y: np.ndarray,
        sample_weight: np.ndarray | None = None,
        *,
        validation: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
        groups: np.ndarray | None = None,
    ) -> Any:
        """Fit on features (n, d), or maps (n, h, w, c), and class values (n,), or indicators (n, k) of k > 1 labels.

        Args:
            X: Features.
            y: Class of each row, or 1 for each label that it has and 0 for the others.
            sample_weight: Weight of each row.
            validation: Features, classes and weights that decide when to stop; without it a tenth of the rows do.
            groups: Accepted for the common signature of heads; rows are held out one by one.

        Raises:
            ValueError: NaN or infinite features, fewer than two classes, a label that all rows have or lack, or several
                labels with weights of classes.
        """
        import keras

        self.link_: LinkFunction = infer_link(y)
        if self.link_.several and self.class_weight is not None:
            raise ValueError(f"A row with several labels has no weight of its class. Received: {self.class_weight}.")
        X, y = self._validate(X, y)
        self.classes_, codes = self.link_.code(y)
        weights = compute_sample_weights(y, sample_weight, self.class_weight)
        train, held = self._divide(X, codes, weights, validation)
        keras.utils.set_random_seed(self.fitting.seed)
        self.model_ = self._build(train[0])
        how = self.fitting
        steps = how.epochs * -(-len(train[0]) // how.batch_size)
        rate = keras.optimizers.schedules.CosineDecay(how.learning_rate, steps)
        optimizer = keras.optimizers.AdamW(rate, weight_decay=how.weight_decay, global_clipnorm=1.0)
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        # XLA compiles longer than such a head trains, and slows a CPU down
        self.model_.compile(optimizer, self.link_.loss, jit_compile=False)
        self.history_ = self._train(train, held)
        return self

    def _validate(self, X: np.ndarray, y: np.ndarray | None = None) -> Any:
        """Return float32 features, and targets where there are some."""
        if y is None:
            return validate_data(self, X, reset=False, dtype=np.float32)
        return validate_data(self, X, y, dtype=np.float32, multi_output=self.link_.several)

    def _train(self, train: tuple, held: tuple) -> dict[str, list[float]]:
        import keras

        stopping = keras.callbacks.EarlyStopping(patience=self.fitting.patience, restore_best_weights=True)
        with progress.progress_bar(f"Train the {self.kind} head", self.fitting.epochs, "epochs") as advance:
            ticking = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: advance(1))
            history = self.model_.fit(
                *train[:2],
                sample_weight=train[2],
                validation_data=held,
                epochs=self.fitting.epochs,
                batch_size=self.fitting.batch_size,
                callbacks=[stopping, ticking],
                verbose=0,
            )
        return {name: [float(value) for value in values] for name, values in history.history.items()}

    def _divide(self, X: np.ndarray, codes: np.ndarray, weights: np.ndarray, validation: tuple | None) -> tuple:
        """Return (features, codes, weights) to train on and to stop by."""
        if validation is not None:
            held_X, held_y, held_weights = validation
            held_codes = self.link_.recode(held_y, self.classes_)
            return (X, codes, weights), (held_X, held_codes, held_weights)
        strata = self.link_.group_rows(codes)
        counts = np.bincount(strata)
        share = max(0.1, len(counts) / len(codes))
        if counts.min() < 2 or share > 0.5:
            return (X, codes, weights), (X, codes, weights)  # too few to hold any out
        rows, seed = np.arange(len(X)), self.fitting.seed
        fit, held = train_test_split(rows, test_size=share, stratify=strata, random_state=seed)
        return (X[fit], codes[fit], weights[fit]), (X[held], codes[held], weights[held])

    def _build(self, X: np.ndarray) -> keras.Sequential:
        import keras
        from keras import layers

        mean, variance = measure_channels(X)
        return keras.Sequential(
            [
                keras.Input(X.shape[1:]),
                layers.Normalization(mean=mean.tolist(), variance=variance.tolist(), name="head_input"),
                *self._list_hidden(X.shape[1:]),
                layers.Dense(len(self.classes_), name="logits"),
                layers.Activation(self.link_.activation, name="probabilities"),
            ]
        )

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Return the probabilities of classes or labels, shape (n, k)."""
        check_is_fitted(self)
        return self.model_.predict(self._validate(X), batch_size=_PREDICTED, verbose=0)

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Return the most probable class of each row, shape (n,), or the indicators of its labels, (n, k)."""
        probabilities = self.predict_proba(X)
        return self.link_.decide(probabilities, self.classes_)

    def to_layers(self) -> list[keras.layers.Layer]:
        """Return the fitted layers, raw features to probabilities."""
        check_is_fitted(self)
        return list(self.model_.layers)

    def describe(self) -> dict[str, Any]:
        """Return what the fit chose."""
        best = int(np.argmin(self.history_["val_loss"]))
        return {"kind": self.kind, "epochs": len(self.history_["loss"]), "best_epoch": best + 1}

    def history(self) -> dict[str, list[float]]:
        """Return loss and validation loss by epoch, as columns."""
        return {"epoch": [epoch + 1 for epoch in range(len(self.history_["loss"]))], **self.history_}


class MLPHead(KerasHead):
    """Dense layers with dropout and, by option, normalisation and ways around each.

    Args:
        widths: Units of each hidden layer; none gives a linear map.
        dropout: Share of units dropped after each hidden layer.
        norm: What is normalised before each activation: "none", "batch" or "layer".
        residual: Add what goes into each hidden layer to what comes out; where the widths differ, a linear map of it.
        class_weight: A factor per class, "balanced", or None; with several labels None.
        fitting: How it is trained.
    """

    kind = "deep"

    def __init__(
        self,
        widths: Sequence[int] = (256,),
        dropout: float = 0.3,
        norm: Literal["none", "batch", "layer"] = "none",
        residual: bool = False,
        class_weight: ClassWeight = None,
        fitting: FitOptions = DEFAULT_FIT,
    ):
        self.widths = widths
        self.dropout = dropout
        self.norm = norm
        self.residual = residual
        self.class_weight = class_weight
        self.fitting = fitting

    def _list_hidden(self, shape: tuple[int, ...]) -> list[keras.layers.Layer]:
        stack: list = []
        width_before = shape[-1]
        for index, width in enumerate(self.widths, 1):
            block = self._list_block(index, width)
            stack += [self._bypass(block, width_before, width, index)] if self.residual else block
            width_before = width
        return stack

    def _list_block(self, index: int, width: int) -> list[keras.layers.Layer]:
        from keras import layers

        norms: dict[str, list] = {
            "none": [],
            "batch": [layers.BatchNormalization],
            "layer": [layers.LayerNormalization],
        }
        return [
            layers.Dense(width, use_bias=self.norm == "none", name=f"head_dense_{index}"),
            *(norm(name=f"head_norm_{index}") for norm in norms[self.norm]),
            layers.Activation("relu", name=f"head_relu_{index}"),
            layers.Dropout(self.dropout, seed=self.fitting.seed + index, name=f"head_dropout_{index}"),
        ]

    def _bypass(self, block: list, before: int, width: int, index: int) -> keras.Model:
        """Return a block with the way around it, as one layer (He et al., CVPR 2016)."""
        import keras

        entry = tensor = keras.Input((before,))
        for layer in block:
            tensor = layer(tensor)
        around = entry if before == width else keras.layers.Dense(width, name=f"head_around_{index}")(entry)
        return keras.Model(entry, keras.layers.Add(name=f"head_sum_{index}")([tensor, around]), name=f"head_{index}")


def measure_channels(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and variance of the last axis, float32; constant channels get a variance of 1.

    Rows are read in parts: maps may be kept in float16, in which their squares would overflow.
    """
    axes = tuple(range(X.ndim - 1))
    parts = [X[start : start + _PREDICTED] for start in range(0, len(X), _PREDICTED)]
    shares = [len(part) / len(X) for part in parts]
    mean = sum(share * part.mean(axis=axes, dtype=np.float64) for share, part in zip(shares, parts, strict=True))
    variance = sum(share * np.mean((part - mean) ** 2, axis=axes) for share, part in zip(shares, parts, strict=True))
    return np.asarray(mean, np.float32), np.where(variance > 0, variance, 1.0).astype(np.float32)
