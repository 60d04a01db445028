"""What a schedule needs of a compiled model, checked before the first step of its `fit`."""

from collections.abc import Iterator, Mapping
from typing import Any

import keras

from tlkeras.finetuning.optimizers import find_scaled
from tlkeras.finetuning.schedule import Schedule, Stage


def find_problems(
    schedule: Schedule, model: keras.Model, total: int, monitor: str, params: Mapping[str, Any]
) -> Iterator[str]:
    """What would go wrong in a fit of a model with so many blocks, a sentence each; `params` are those of callbacks."""
    optimizer = model.optimizer
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if isinstance(inner, keras.optimizers.MultiOptimizer) or not isinstance(inner.learning_rate, keras.Variable):
        yield f"the learning rate of {inner.name} cannot be set: give it a number."
    scaled = find_scaled(optimizer) is not None
    if not scaled and getattr(inner, "use_ema", False):
        yield f"{inner.name} with use_ema averages frozen weights too: compile with scale_learning_rates(...)."
    if find_direction(model, monitor) == ("up" if schedule.minimise else "down"):
        word, right = ("rise", "False") if schedule.minimise else ("fall", "True")
        yield f"{monitor!r} should {word}: give Schedule minimise={right}."
    for stage in schedule.stages:
        if not scaled and not set(stage.multipliers(total)) <= {0.0, 1.0}:
            yield f"stage {stage.name!r} has rates per block: compile with scale_learning_rates({inner.name})."
        if stage.unfreeze == "auto":
            yield f"stage {stage.name!r} takes its rates from gradients, which only `tlkeras train` does."
        if changes_by_step(stage) and not params.get("steps"):
            yield f"stage {stage.name!r} has a rate per step: give fit steps_per_epoch."
        if changes_by_step(stage) and model.steps_per_execution > 1:
            way_out = "compile with 1, or give it decay='constant' and no warmup."
            yield f"stage {stage.name!r} has a rate per step, not per {model.steps_per_execution} steps: {way_out}"


def changes_by_step(stage: Stage) -> bool:
    """Whether the learning rate changes from step to step."""
    return stage.decays or stage.warmup > 0


def find_direction(model: keras.Model, monitor: str) -> str | None:
    """Whether a monitored value should go "up" or "down", None if Keras does not know."""
    name = monitor.removeprefix("val_")
    if name == "loss" or name.endswith("_loss"):
        return "down"
    compiled = getattr(model, "_compile_metrics", None)
    for metric in keras.tree.flatten(getattr(compiled, "_user_metrics", None)):
        own = str(getattr(metric, "name", metric)).lower()
        if metric is not None and (name == own or name.endswith(f"_{own}")):
            return getattr(_resolve(metric), "_direction", None)
    return None


def _resolve(metric: Any) -> Any:
    try:
        return keras.metrics.get({"acc": "accuracy"}.get(metric, metric) if isinstance(metric, str) else metric)
    except ValueError:
        return None
