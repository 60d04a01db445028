"""The callback alone, inside one `fit` of a model that a Keras user has built."""

import keras
import numpy as np

from tlkeras.backbones.building import build
from tlkeras.finetuning.optimizers import scale_learning_rates
from tlkeras.finetuning.schedule import Schedule, Stage
from tlkeras.finetuning.unfreezing import GradualUnfreezing


def test_weights_move_in_the_stage_that_unfreezes_them():
    keras.utils.set_random_seed(0)
    backbone = build("tiny", size=32, weights="none")
    features = keras.layers.GlobalAveragePooling2D()(backbone.output)
    model = keras.Model(backbone.input, keras.layers.Dense(2, activation="softmax", name="answer")(features))
    model.compile(scale_learning_rates(keras.optimizers.Adam()), "sparse_categorical_crossentropy", jit_compile=False)
    schedule = Schedule((Stage("head", 0, 1e-2, epochs=1), Stage("all", "all", 1e-2, epochs=1)), minimise=True)
    snapshots = [model.get_weights()]
    watching = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: snapshots.append(model.get_weights()))
    X, y = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8), np.arange(16) % 2
    model.fit(X, y, batch_size=8, epochs=9, verbose=0, callbacks=[watching, GradualUnfreezing(schedule)])
    assert len(snapshots) == 3  # the schedule ends the fit
    paths = [variable.path for variable in model.weights]
    moved = [
        {path for path, old, new in zip(paths, before, after, strict=True) if not np.array_equal(old, new)}
        for before, after in zip(snapshots, snapshots[1:], strict=False)
    ]
    assert moved[0] == {"answer/kernel", "answer/bias"}
    kernels = {variable.path for variable in model.trainable_variables}
    assert moved[1] == kernels
    assert int(model.optimizer.iterations) == 4
