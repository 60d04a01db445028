"""Borrowed models learn the same as fresh ones."""

import numpy as np
import pytest

from tlkeras.config.schema.heads import FitConfig
from tlkeras.heads.deep import MLPHead
from tlkeras.tuning.model_pool import CompiledModelCache


@pytest.fixture(scope="module")
def rows():
    random = np.random.default_rng(0)
    X = random.normal(size=(120, 6)).astype(np.float32)
    y = (X[:, 0] + X[:, 1] > 0).astype(int)
    return X[:90], y[:90], np.ones(90), {"validation": (X[90:], y[90:], np.ones(30))}


@pytest.mark.slow
def test_a_borrowed_model_learns_the_same_as_a_fresh_one(rows):
    pool = CompiledModelCache()
    trials = [(0.2, 1e-2, 0), (0.0, 3e-2, 1), (0.6, 1e-3, 2)]
    for dropout, rate, seed in trials:
        how = FitConfig(epochs=4, batch_size=32, learning_rate=rate, weight_decay=rate / 10, seed=seed)
        fresh, borrowed = (MLPHead(widths=(5,), dropout=dropout, fitting=how) for _ in range(2))
        pool.attach(borrowed)
        *train, held = rows
        learned = [head.fit(*train, **held).history_["val_loss"] for head in (borrowed, fresh)]
        np.testing.assert_allclose(*learned, rtol=1e-4)
        np.testing.assert_allclose(borrowed.predict_proba(rows[0]), fresh.predict_proba(rows[0]), atol=1e-5)
    assert pool.compiled == 1


@pytest.mark.slow
def test_another_shape_is_another_model(rows):
    pool = CompiledModelCache()
    *train, held = rows
    for widths in ((3,), (4,), (3,)):
        head = MLPHead(widths=widths, fitting=FitConfig(epochs=1))
        pool.attach(head)
        head.fit(*train, **held)
    assert pool.compiled == 2
