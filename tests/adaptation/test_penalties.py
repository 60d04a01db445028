"""The difference of domains in a batch of both."""

import numpy as np
import pytest
import tensorflow as tf

from tlkeras.adaptation.losses import ramp
from tlkeras.adaptation.penalties import DomainAdaptationLoss, DomainDiscrepancy


@pytest.mark.parametrize("method", ["dann", "cdan", "mmd", "coral", "mcc"])
def test_in_a_batch_of_both_rows_without_weight_are_the_targets(method):
    """The penalty is that of the parts; at the start it has no gradient but that of a discriminator."""
    random = np.random.default_rng(0)
    features, logits = (tf.Variable(random.normal(size=(8, k)), dtype=tf.float32) for k in (5, 3))
    done = tf.Variable(0.0)
    discrepancy = DomainDiscrepancy(method, 5, 2, dropout=0.0, seeds=iter(range(9)))
    loss = DomainAdaptationLoss(discrepancy, 0.5, lambda: done)
    weights = tf.constant([2.0, 0.0] * 4)

    def measure():
        with tf.GradientTape() as tape:
            term = loss({"features": features, "logits": logits, "weights": weights})
        moved = [features, logits, *[variable.value for variable in loss.variables if variable.trainable]]
        return float(term), tape.gradient(term, moved, unconnected_gradients="zero")

    _, (of_features, of_logits, *of_discriminator) = measure()
    assert not np.any(of_features) and not np.any(of_logits)
    assert bool(of_discriminator) == (method in ("dann", "cdan")) and all(
        np.any(gradient) for gradient in of_discriminator[:1]
    )
    done.assign(1.0)
    source, target = ((features[start::2], logits[start::2, :2]) for start in (0, 1))
    strength = 0.5 * ramp(1.0)
    assert measure()[0] == pytest.approx(float(discrepancy.weigh(source, target, strength)[0]), rel=1e-5)
    assert np.any(measure()[1][1 if method == "mcc" else 0])
