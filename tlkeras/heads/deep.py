"""Heads that Keras trains: their common fit, a multi-layer perceptron, and heads on feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import check_array, check_is_fitted

from tlkeras import progress
from tlkeras.config.schema.heads import FitConfig, HiddenNorm, RecurrentCell
from tlkeras.heads.base import BaseHead, HeadResult
from tlkeras.heads.folds import ClassWeight, LabelledFeatures, make_folds
from tlkeras.heads.scaling import moderate_deviation

if TYPE_CHECKING:
    import keras

DEFAULT_FIT = FitConfig()

_PREDICTED = 256  # rows at a time


@dataclass(eq=False, repr=False, kw_only=True)
class KerasHead(BaseHead):
    """A head that is a stack of Keras layers, trained with AdamW and early stopping; subclasses give `_list_hidden`.

    The learning rate falls to zero along a cosine over all epochs; training stops after `patience` epochs without a
    lower validation loss, and the best weights are kept. Without validation rows, a tenth of the rows validates; of
    rows in groups, whole groups.

    Args:
        class_weight: A factor per class, "balanced", or None; with several labels None.
        fitting: Epochs, batch size, rates, patience and seed.

    Attributes:
        model_: The fitted keras.Sequential, features to probabilities (n, k).
        history_: Loss per epoch by name.
    """

    class_weight: ClassWeight = None
    fitting: FitConfig = DEFAULT_FIT

    _dtypes = np.float32

    def _list_hidden(self, shape: tuple[int, ...]) -> list[keras.layers.Layer]:
        """The layers between standardised features and logits."""
        raise NotImplementedError

    def _fit(self, rows: LabelledFeatures, held: LabelledFeatures | None) -> None:
        import keras

        fitting = self.fitting
        train, held = (rows, held) if held is not None else self._hold_out(rows)
        keras.utils.set_random_seed(fitting.seed)
        self.model_ = self._build(train.X)
        steps = fitting.epochs * -(-len(train.X) // fitting.batch_size)
        rate = keras.optimizers.schedules.CosineDecay(fitting.learning_rate, steps)
        optimizer = keras.optimizers.AdamW(rate, weight_decay=fitting.weight_decay, global_clipnorm=1.0)
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        # XLA compiles longer than such a head trains, and slows a CPU down
        self.model_.compile(optimizer, self.link_.loss, jit_compile=False)
        self.history_ = self._train(train, held)

    def _train(self, train: LabelledFeatures, held: LabelledFeatures) -> dict[str, list[float]]:
        import keras

        stopping = keras.callbacks.EarlyStopping(patience=self.fitting.patience, restore_best_weights=True)
        with progress.progress_bar(f"Train the {self.kind} head", self.fitting.epochs, "epochs") as advance:
            ticking = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: advance(1))
            history = self.model_.fit(
                train.X,
                train.codes,
                sample_weight=train.weights,
                validation_data=(held.X, held.codes, held.weights),
                epochs=self.fitting.epochs,
                batch_size=self.fitting.batch_size,
                callbacks=[stopping, ticking],
                verbose=0,
            )
        return {name: [float(value) for value in values] for name, values in history.history.items()}

    def _hold_out(self, rows: LabelledFeatures) -> tuple[LabelledFeatures, LabelledFeatures]:
        strata = self.link_.group_rows(rows.codes)
        counts = np.bincount(strata)
        share = max(0.1, len(counts) / len(rows.codes))
        seed = self.fitting.seed
        if rows.groups is not None:
            parts = make_folds(strata, round(1 / share), seed, rows.groups)
            parts = [(fit, held) for fit, held in parts if rows.weights[fit].any() and rows.weights[held].any()]
            fit, held = parts[0] if parts else (None, None)
        elif counts.min() < 2 or share > 0.5:
            fit = held = None
        else:
            fit, held = train_test_split(np.arange(len(strata)), test_size=share, stratify=strata, random_state=seed)
        return (rows, rows) if fit is None else (rows.take(fit), rows.take(held))  # too few to hold any out

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

    def _predict_proba(self, X: np.ndarray) -> np.ndarray:
        return self.model_.predict(X, batch_size=_PREDICTED, verbose=0)

    def decision_function(self, X: np.ndarray) -> np.ndarray:
        """Logits, (n, k); for two classes their difference, (n,), as scikit-learn has it."""
        import keras

        check_is_fitted(self)
        logits = keras.Model(self.model_.inputs, self.model_.get_layer("logits").output)
        return self.link_.decision_function(logits.predict(self._validate(X), batch_size=_PREDICTED, verbose=0))

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters by name; if deep, also those of the fit, as `fitting__epochs`."""
        of_fit = {f"fitting__{name}": value for name, value in self.fitting} if deep else {}
        return {**super().get_params(deep), **of_fit}

    def set_params(self, **params: Any) -> Self:
        """Set parameters, those of the fit in a copy; ValueError if one is unknown or cannot be used."""
        prefix = "fitting__"
        of_fit = {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}
        super().set_params(**{name: value for name, value in params.items() if not name.startswith(prefix)})
        if of_fit:
            plain = {name: value.item() if hasattr(value, "item") else value for name, value in of_fit.items()}
            self.fitting = type(self.fitting)(**{**dict(self.fitting), **plain})
        return self

    def to_layers(self) -> list[keras.layers.Layer]:
        check_is_fitted(self)
        return list(self.model_.layers)

    def summarize(self) -> HeadResult:
        best = int(np.argmin(self.history_["val_loss"]))
        return HeadResult(self.kind, {"epochs": len(self.history_["loss"]), "best_epoch": best + 1})

    def history(self) -> dict[str, list[float]]:
        return {"epoch": [epoch + 1 for epoch in range(len(self.history_["loss"]))], **self.history_}


@dataclass(eq=False, repr=False)
class MLPHead(KerasHead):
    """Dense layers with dropout and, by option, normalisation and residual connections.

    Args:
        widths: Units of each hidden layer; none gives a linear map.
        dropout: Share of units dropped after each hidden layer.
        norm: Normalisation before each activation: "none", "batch" or "layer".
        residual: Add the input of each hidden layer to its output, by a linear map where the widths differ.
    """

    widths: Sequence[int] = (256,)
    dropout: float = 0.3
    norm: HiddenNorm = "none"
    residual: bool = False

    kind = "deep"

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

        norms: dict = {"none": [], "batch": [layers.BatchNormalization], "layer": [layers.LayerNormalization]}
        return [
            layers.Dense(width, use_bias=self.norm == "none", name=f"head_dense_{index}"),
            *(norm(name=f"head_norm_{index}") for norm in norms[self.norm]),
            layers.Activation("relu", name=f"head_relu_{index}"),
            layers.Dropout(self.dropout, seed=self.fitting.seed + index, name=f"head_dropout_{index}"),
        ]

    def _bypass(self, block: list, before: int, width: int, index: int) -> keras.Model:
        """A block with its residual connection, as one layer (He et al., CVPR 2016)."""
        import keras

        entry = tensor = keras.Input((before,))
        for layer in block:
            tensor = layer(tensor)
        around: Any = entry if before == width else keras.layers.Dense(width, name=f"head_around_{index}")(entry)
        return keras.Model(entry, keras.layers.Add(name=f"head_sum_{index}")([tensor, around]), name=f"head_{index}")


class FeatureMapHead(KerasHead):
    """A trained head on maps (n, height, width, channels), which may be float16 to take half the memory."""

    input_kind = "map"
    map_shape_: tuple[int, ...]

    def _validate_fit(self, X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        X = self._check_maps(X)
        self.map_shape_ = X.shape[1:]
        return X, np.asarray(y)

    def _validate(self, X: np.ndarray) -> np.ndarray:
        X = self._check_maps(X)
        if X.shape[1:] != self.map_shape_:
            raise ValueError(f"The head was fitted on maps of the shape {self.map_shape_}. Received: {X.shape[1:]}.")
        return X

    def _check_maps(self, X: np.ndarray) -> np.ndarray:
        """Maps as they are; ValueError if they are none, or have NaN or infinite values."""
        if np.ndim(X) != 4:
            shape = np.shape(X)
            raise ValueError(f"A {self.kind} head takes maps (n, height, width, channels). Received: shape {shape}.")
        return check_array(X, allow_nd=True, dtype=(np.float16, np.float32))


@dataclass(eq=False, repr=False)
class RecurrentHead(FeatureMapHead):
    """A recurrent network that reads a map row by row from the top, each row as one vector.

    Args:
        cell: "gru" or "lstm".
        units: State of the network.
        projection: Channels of each position after a dense layer, so that a row stays short.
        bidirectional: Also read from the bottom.
        dropout: Share of the state dropped before the logits.
    """

    cell: RecurrentCell = "gru"
    units: int = 64
    projection: int = 64
    bidirectional: bool = False
    dropout: float = 0.3

    kind = "recurrent"

    def _list_hidden(self, shape: tuple[int, ...]) -> list[keras.layers.Layer]:
        from keras import layers

        height, width, _ = shape
        cell: Any = {"gru": layers.GRU, "lstm": layers.LSTM}[self.cell](self.units, name="head_cell")
        return [
            layers.Dense(self.projection, activation="relu", name="head_projection"),
            layers.Reshape((height, width * self.projection), name="head_rows"),
            layers.Bidirectional(cell, name="head_both_ways") if self.bidirectional else cell,
            layers.Dropout(self.dropout, seed=self.fitting.seed + 1, name="head_dropout"),
        ]


@dataclass(eq=False, repr=False)
class AttentionHead(FeatureMapHead):
    """Learned queries that each weight the positions; the weighted means, concatenated, are mapped to classes.

    A query is compared with the features themselves: a linear map of keys before it would be absorbed (Ilse et al.,
    ICML 2018, with the linear in place of the tanh attention).

    Args:
        queries: Their number.
        dropout: Share of the weighted means dropped before the logits.
    """

    queries: int = 4
    dropout: float = 0.3

    kind = "attention"

    def _list_hidden(self, shape: tuple[int, ...]) -> list[keras.layers.Layer]:
        from keras import layers

        from tlkeras.heads.layers import AttentionPooling

        return [
            AttentionPooling(self.queries, name="head_attention"),
            layers.Dropout(self.dropout, seed=self.fitting.seed + 1, name="head_dropout"),
        ]


@dataclass(eq=False, repr=False)
class TransformerHead(FeatureMapHead):
    """A small transformer encoder over the positions of a map, and the mean of its outputs.

    Blocks are normalised before each part (Xiong et al., ICML 2020), positions are learned.

    Args:
        width: Channels of the encoder.
        blocks: Encoder blocks.
        heads: Attention heads of each.
        dropout: Share dropped in attention, after each part, and before the logits.
    """

    width: int = 64
    blocks: int = 2
    heads: int = 4
    dropout: float = 0.2

    kind = "transformer"

    def _list_hidden(self, shape: tuple[int, ...]) -> list[keras.layers.Layer]:
        from keras import layers

        from tlkeras.heads.layers import PositionEmbedding

        positions = shape[0] * shape[1]
        return [
            layers.Dense(self.width, name="head_projection"),
            layers.Reshape((positions, self.width), name="head_sequence"),
            PositionEmbedding(name="head_positions"),
            *(self._make_block(positions, number) for number in range(1, self.blocks + 1)),
            layers.LayerNormalization(name="head_norm"),
            layers.GlobalAveragePooling1D(name="head_mean"),
            layers.Dropout(self.dropout, seed=self.fitting.seed, name="head_dropout"),
        ]

    def _make_block(self, positions: int, number: int) -> keras.Model:
        import keras
        from keras import layers

        def drop(tensor: Any, number_in_block: int) -> Any:
            return layers.Dropout(self.dropout, seed=seed + number_in_block)(tensor)

        entry = keras.Input((positions, self.width))
        normed = layers.LayerNormalization()(entry)
        keys, seed = max(1, self.width // self.heads), self.fitting.seed + 10 * number
        attend = layers.MultiHeadAttention(self.heads, keys, dropout=self.dropout, seed=seed)
        attended = layers.Add()([entry, drop(attend(normed, normed), 1)])
        hidden = layers.Dense(2 * self.width, activation="gelu")(layers.LayerNormalization()(attended))
        outputs = layers.Add()([attended, drop(layers.Dense(self.width)(hidden), 2)])
        return keras.Model(entry, outputs, name=f"head_block_{number}")


def measure_channels(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of the last axis, float32, and its variance, moderated as that of columns is.

    Rows are read in parts: maps may be float16, in which their squares would overflow.
    """
    axes = tuple(range(X.ndim - 1))
    parts = [X[start : start + _PREDICTED] for start in range(0, len(X), _PREDICTED)]
    shares = [len(part) / len(X) for part in parts]
    mean = sum(share * part.mean(axis=axes, dtype=np.float64) for share, part in zip(shares, parts, strict=True))
    variance = sum(share * np.mean((part - mean) ** 2, axis=axes) for share, part in zip(shares, parts, strict=True))
    deviation = moderate_deviation(np.asarray(mean), np.asarray(variance), len(X))
    return np.asarray(mean, np.float32), (deviation**2).astype(np.float32)
