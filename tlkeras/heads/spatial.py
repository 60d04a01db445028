"""Heads on feature maps: recurrent over rows, attention over positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils.validation import check_array

from tlkeras.config.schema.heads import RecurrentCell
from tlkeras.heads.deep import KerasHead

if TYPE_CHECKING:
    import keras


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
        """Maps as they are.

        Raises:
            ValueError: X is no batch of maps, or has NaN or infinite values.
        """
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

        def drop(tensor: Any, number_in_block: int) -> Any:
            return layers.Dropout(self.dropout, seed=self.fitting.seed + 10 * number + number_in_block)(tensor)

        entry = keras.Input((positions, self.width))
        normed = layers.LayerNormalization()(entry)
        seed = self.fitting.seed + 10 * number
        attend = layers.MultiHeadAttention(
            self.heads, max(1, self.width // self.heads), dropout=self.dropout, seed=seed
        )
        attended = layers.Add()([entry, drop(attend(normed, normed), 1)])
        hidden = layers.Dense(2 * self.width, activation="gelu")(layers.LayerNormalization()(attended))
        outputs = layers.Add()([attended, drop(layers.Dense(self.width)(hidden), 2)])
        return keras.Model(entry, outputs, name=f"head_block_{number}")
