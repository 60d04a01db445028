"""Heads that eat feature maps: recurrent over rows, attention over positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from sklearn.utils.validation import check_array

from tlkeras.heads.class_weights import ClassWeight
from tlkeras.heads.deep import DEFAULT_FIT, FitOptions, KerasHead

if TYPE_CHECKING:
    import keras


class FeatureMapHead(KerasHead):
    """A trained head for maps (n, height, width, channels), which may be float16 to take half the memory."""

    eats = "map"
    map_shape_: tuple[int, ...]

    def _validate(self, X: np.ndarray, y: np.ndarray | None = None) -> Any:
        """Return maps as they are, and targets where there are some.

        Raises:
            ValueError: These are no maps, they have another shape than the ones fitted, NaN or infinite values.
        """
        shape = np.shape(X)
        if len(shape) != 4:
            raise ValueError(f"A {self.kind} head eats maps (n, height, width, channels). Received: shape {shape}.")
        if y is None and shape[1:] != self.map_shape_:
            raise ValueError(f"Maps must have the shape {self.map_shape_}. Received: {shape[1:]}.")
        X = check_array(X, allow_nd=True, dtype=(np.float16, np.float32))
        if y is None:
            return X
        self.map_shape_ = shape[1:]
        return X, np.asarray(y)


class RecurrentHead(FeatureMapHead):
    """A recurrent network that reads a map row by row from the top, each row as one vector.

    Args:
        cell: "gru" or "lstm".
        units: State of the network.
        projection: Channels to which each position is brought before, so that a row stays short.
        bidirectional: Read from the bottom too.
        dropout: Share of the state dropped before the logits.
        class_weight: A factor per class, "balanced", or None; with several labels None.
        fitting: How it is trained.
    """

    kind = "recurrent"

    def __init__(
        self,
        cell: Literal["gru", "lstm"] = "gru",
        units: int = 64,
        projection: int = 64,
        bidirectional: bool = False,
        dropout: float = 0.3,
        class_weight: ClassWeight = None,
        fitting: FitOptions = DEFAULT_FIT,
    ):
        self.cell = cell
        self.units = units
        self.projection = projection
        self.bidirectional = bidirectional
        self.dropout = dropout
        self.class_weight = class_weight
        self.fitting = fitting

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


class AttentionHead(FeatureMapHead):
    """Learned queries that each say where to look; the features found there, side by side, are mapped to classes.

    A query is compared with the features themselves: a linear map of keys before it would be absorbed (Ilse et al.,
    ICML 2018, with the linear in place of the tanh attention).

    Args:
        queries: How many.
        dropout: Share of what was found that is dropped before the logits.
        class_weight: A factor per class, "balanced", or None; with several labels None.
        fitting: How it is trained.
    """

    kind = "attention"

    def __init__(
        self,
        queries: int = 4,
        dropout: float = 0.3,
        class_weight: ClassWeight = None,
        fitting: FitOptions = DEFAULT_FIT,
    ):
        self.queries = queries
        self.dropout = dropout
        self.class_weight = class_weight
        self.fitting = fitting

    def _list_hidden(self, shape: tuple[int, ...]) -> list[keras.layers.Layer]:
        from keras import layers

        from tlkeras.heads.layers import AttentionPooling

        return [
            AttentionPooling(self.queries, name="head_attention"),
            layers.Dropout(self.dropout, seed=self.fitting.seed + 1, name="head_dropout"),
        ]


class TransformerHead(FeatureMapHead):
    """A small transformer encoder over the positions of a map, and the mean of what it makes of them.

    Blocks are normalised before each part (Xiong et al., ICML 2020), positions are learned.

    Args:
        width: Channels inside.
        blocks: Encoder blocks.
        heads: Attention heads of each.
        dropout: Share dropped in attention, after each part, and before the logits.
        class_weight: A factor per class, "balanced", or None; with several labels None.
        fitting: How it is trained.
    """

    kind = "transformer"

    def __init__(
        self,
        width: int = 64,
        blocks: int = 2,
        heads: int = 4,
        dropout: float = 0.2,
        class_weight: ClassWeight = None,
        fitting: FitOptions = DEFAULT_FIT,
    ):
        self.width = width
        self.blocks = blocks
        self.heads = heads
        self.dropout = dropout
        self.class_weight = class_weight
        self.fitting = fitting

    def _list_hidden(self, shape: tuple[int, ...]) -> list[keras.layers.Layer]:
        from keras import layers

        from tlkeras.heads.layers import PositionEmbedding

        height, width, _ = shape
        positions = height * width
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

        def drop(tensor: Any, place: int) -> Any:
            return layers.Dropout(self.dropout, seed=self.fitting.seed + 10 * number + place)(tensor)

        entry = keras.Input((positions, self.width))
        looked = layers.LayerNormalization()(entry)
        seed = self.fitting.seed + 10 * number
        attend = layers.MultiHeadAttention(
            self.heads, max(1, self.width // self.heads), dropout=self.dropout, seed=seed
        )
        seen = layers.Add()([entry, drop(attend(looked, looked), 1)])
        thought = layers.Dense(2 * self.width, activation="gelu")(layers.LayerNormalization()(seen))
        outputs = layers.Add()([seen, drop(layers.Dense(self.width)(thought), 2)])
        return keras.Model(entry, outputs, name=f"head_block_{number}")
