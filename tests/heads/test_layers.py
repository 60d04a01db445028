"""Layers of heads by hand."""

import numpy as np
import pytest

from tlkeras.heads.layers import AttentionPooling


def test_attention_by_hand():
    """Two positions 0 and 4 of one channel, query log 3 / 4: shares 1/4 and 3/4, mean 3."""
    layer = AttentionPooling(1)
    layer.build((None, 1, 2, 1))
    layer.set_weights([np.array([[np.log(3) / 4]])])
    assert float(layer(np.array([[[[0.0], [4.0]]]], "float32"))[0, 0]) == pytest.approx(3)
