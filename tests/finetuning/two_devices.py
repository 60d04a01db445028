"""Imported by test_distribution.py in a process of its own, whose CPU TensorFlow sees as two devices; prints JSON."""

import json
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
from test_trainer import CLASSES_OF, STAGES, Breaking, cuts_of, make_network, make_part

from tlkeras.config.schema.finetuning import SoftmaxConfig
from tlkeras.finetuning.checkpoints import Checkpoints
from tlkeras.finetuning.distribution import ONE_DEVICE, make_mirrored
from tlkeras.finetuning.losses import make_loss, mixup_batch
from tlkeras.finetuning.optimizers import scale_learning_rates
from tlkeras.finetuning.schedule import Schedule, Stage
from tlkeras.finetuning.stage_runner import Objective
from tlkeras.finetuning.trainer import Trainer, TrainerConfig
from tlkeras.heads.linear import LinearHead

TOP = STAGES[1]
fit = LinearHead(C=0.1).fit


def shorten(stage):
    return stage.model_copy(update={"epochs": 1})


CASES = {
    "end to end": ((shorten(STAGES[2]),), {"mixup": True}),
    "suffix, then all": ((shorten(TOP), shorten(STAGES[2])), {"mixup": True}),
    "uneven batches": ((TOP,), {"batch_size": 7}),
    "float16": ((shorten(TOP),), {"precision": "float16"}),
    "batch norm trains": ((Stage("all", "all", 1e-3, epochs=1, batch_norm="train"),), {}),
    "batch norm recomputed": ((Stage("all", "all", 1e-3, epochs=1, batch_norm="reestimate"),), {}),
    "heads refitted": (
        (Stage("all", "all", 1e-3, epochs=1, batch_norm="reestimate"),),
        {"fit_heads": lambda positions, features: {"net": fit(features, CLASSES_OF[positions]).to_layers()}},
    ),
    "rates by gradients": ((Stage("auto", "auto", 1e-3, epochs=1),), {}),
}


def train(distribution, stages, options, folder=None, breaks=None):
    """History, and weights by path."""
    options = dict(options)
    plain = make_network()
    replicated = distribution.replicate(plain)
    with distribution.scope():
        optimizer = scale_learning_rates(keras.optimizers.SGD(1e-3, momentum=0.9, global_clipnorm=0.1))
    objective = Objective(make_loss(SoftmaxConfig()), mix=mixup_batch if options.pop("mixup", False) else None)
    settings = TrainerConfig(**{"batch_size": 8, "ema": 0.9, "save_seconds": 0.0, **options}, distribution=distribution)
    splits = (make_part(plain, breaks=breaks), make_part(plain))
    schedule = Schedule(stages, minimise=True, keep="last")
    trainer = Trainer(replicated, schedule, cuts_of(plain, stages), optimizer, objective, splits, settings)
    history = trainer.run(Checkpoints(Path(folder)) if folder else None)
    distribution.gather(replicated, plain)
    return history, {variable.path: np.array(variable) for variable in plain.model.weights}


def compare(left, right):
    """The largest differences of losses and of weights, and for scale the largest change by training."""
    (history, weights), (others, other) = left, right
    assert list(weights) == list(other)
    losses = max(abs(a[key] - b[key]) for a, b in zip(history, others, strict=True) for key in ("loss", "val_loss"))
    before = {variable.path: np.array(variable) for variable in make_network().model.weights}
    moved = max(float(np.abs(weights[path] - before[path]).max()) for path in weights)
    return {
        "losses": losses,
        "weights": max(float(np.abs(weights[p] - other[p]).max()) for p in weights),
        "moved": moved,
    }


def resume(mirrored):
    """Interrupt a run, resume it, and compare with one that never stopped."""
    stages = (shorten(TOP), shorten(STAGES[2]))
    whole = train(mirrored, stages, {})
    with tempfile.TemporaryDirectory() as folder:
        left = [4]
        try:
            train(mirrored, stages, {}, folder, lambda source: Breaking(source, left))
        except InterruptedError:
            return compare(whole, train(mirrored, stages, {}, folder))
    raise AssertionError("it was not interrupted")


def main():
    mirrored = make_mirrored()
    results = {"devices": mirrored.devices}
    for name in sys.argv[1:]:
        if name == "resumed":
            results[name] = resume(mirrored)
            continue
        stages, options = CASES[name]
        results[name] = compare(train(ONE_DEVICE, stages, options), train(mirrored, stages, options))
    print(json.dumps(results))
