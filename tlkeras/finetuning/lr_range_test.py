"""The learning-rate range test: a few steps at rising rates, and the rate to train at.

Source: Smith, Cyclical Learning Rates for Training Neural Networks, WACV 2017.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.random.seed_generator import GLOBAL_SEED_GENERATOR

from tlkeras import progress
from tlkeras.errors import DataError, TlkerasError
from tlkeras.lazy_tensorflow import check_backend

LOWEST, HIGHEST, STEPS = 1e-6, 1.0, 100
_FEWEST_STEPS = 20
_DIVERGED = 4.0  # times the best loss, as in fastai
_SIGMAS = 4.0  # for the least of many means
_SIGMA = 1.4826  # of normal noise, in its median absolute deviations


@dataclass(frozen=True)
class LRFinderResult:
    """The outcome of a range test."""

    rates: tuple[float, ...]  # tried, rising
    losses: tuple[float, ...]  # of the batch at each rate, before its step, until the loss diverged
    smoothed: tuple[float, ...]  # the mean of the losses around each rate
    suggestion: float | None  # the rate to train at, or None
    reason: str  # why this one, or why none


def find_learning_rate(
    model: keras.Model, batches: Any, *, lowest: float = LOWEST, highest: float = HIGHEST, steps: int = STEPS
) -> LRFinderResult:
    """The rate to train at, from a few steps of a copy of a compiled model at rising rates.

    The model is only read: weights, statistics, states of random layers, optimizer and metrics stay as they are, and
    the random states of Python, NumPy and Keras are restored, whatever ends the search.
    TlkerasError if the model is not functional, not compiled or has a step of its own, or the range is empty; DataError
    if reading the batches would change them, or there are none.

    The model's `trainable` flags hold, and it starts from the present weights and optimizer. Batches, each (x, y) or
    (x, y, weights), are a list, a `keras.utils.PyDataset`, or a function without arguments that makes a new
    `tf.data.Dataset`; they are repeated where they are fewer than the steps. The rates are evenly apart on a
    logarithmic scale, up to the highest unless the loss diverges before.
    """
    check_backend("find_learning_rate")
    _check_model(model)
    read = _make_reader(batches)
    with _preserving_randomness():
        copied, optimizer = _copy(model)
        if not optimizer.built:
            optimizer.build(copied.trainable_variables)
        step = _make_step(copied, optimizer)

        def take_steps(rates: Sequence[float]) -> Iterator[float]:
            for rate, batch in zip(rates, _cycle(read), strict=False):
                optimizer.learning_rate = rate
                yield float(step(*batch))

        return run_lr_sweep(take_steps, lowest, highest, steps)


def run_lr_sweep(
    take_steps: Callable[[Sequence[float]], Iterator[float]],
    lowest: float = LOWEST,
    highest: float = HIGHEST,
    steps: int = STEPS,
) -> LRFinderResult:
    """Try rising rates until the loss diverges; the rate to train at; TlkerasError if the range is empty.

    `take_steps` leads from rates to an iterator over the loss at each, which takes a step at a time.
    """
    if not (0 < lowest < highest < float("inf") and steps >= _FEWEST_STEPS):
        rule = f"The range is empty: rates rise from above 0, in {_FEWEST_STEPS} steps or more."
        raise TlkerasError(rule, f"lowest {lowest:g}, highest {highest:g}, steps {steps}")
    rates, losses = np.geomspace(lowest, highest, steps).tolist(), list[float]()
    with progress.progress_bar("Learning rates", steps) as advance:
        for loss in take_steps(rates):
            if not np.isfinite(loss):
                break
            losses.append(loss)
            advance(1)
            if _has_diverged(losses, _width(steps)):
                break
    return suggest_learning_rate(rates, losses)


def suggest_learning_rate(rates: Sequence[float], losses: Sequence[float]) -> LRFinderResult:
    """A tenth of the rate at which the smoothed loss is least, where it fell by more than its noise.

    At the least loss training is about to diverge, so the rate there is too high; a tenth of it is the rule of fastai's
    `minimum`. The other rule in use, the steepest descent, takes the derivative of a noisy curve: where a fitted head
    leaves little to descend, as in fine-tuning, it follows the noise. Losses are fewer than rates where they diverged.
    """
    width = _width(len(rates))
    half, smoothed = width // 2, _smooth(losses, width)
    whole = smoothed[half : len(losses) - half]  # without the ends, whose means are of fewer losses
    suggestion = None
    if len(whole) <= width:
        reason = f"The loss diverged within {len(losses) + 1} steps: begin at a rate below {rates[0]:.0e}."
    else:
        least = int(np.argmin(whole))
        scatter = np.median(np.abs(np.subtract(losses, smoothed)[: least + half]))  # a median: the end explodes
        fall, noise = whole[0] - whole[least], _SIGMA * scatter * np.sqrt(2 / width)  # of two means
        if fall <= _SIGMAS * noise:
            reason = f"The loss fell by {fall:.2g}, and its noise is {noise:.2g}: there is little to learn here."
        elif least == len(whole) - 1 and len(losses) == len(rates):
            reason = f"The loss still fell at the highest rate: try rates beyond {rates[-1]:.2g}."
        else:
            suggestion = rates[least + half] / 10
            reason = f"A tenth of {rates[least + half]:.1e}, where the loss was least."
    return LRFinderResult(tuple(rates[: len(losses)]), tuple(losses), tuple(smoothed), suggestion, reason)


def _width(steps: int) -> int:
    return 2 * (steps // 25) + 3


def _has_diverged(losses: Sequence[float], width: int) -> bool:
    """Whether the mean of the last losses is more than four times the best such mean."""
    if len(losses) < width:
        return False
    means = np.convolve(losses, np.full(width, 1 / width), "valid")
    return bool(means[-1] > _DIVERGED * means.min())


def _smooth(losses: Sequence[float], width: int) -> list[float]:
    """The mean around each loss, without the lag of an exponential one; of fewer losses at the ends."""
    half = width // 2
    return [float(np.mean(losses[max(0, i - half) : i + half + 1])) for i in range(len(losses))]


def _check_model(model: keras.Model) -> None:
    if not model.compiled or model.optimizer is None:
        raise TlkerasError("The model is not compiled.", model.name, "Call `model.compile` first.")
    functional = bool(getattr(model, "outputs", None))
    if not functional or type(model).train_step is not keras.Model.train_step:
        raise TlkerasError(
            "The model is not functional, or has a `train_step` of its own.",
            type(model).__name__,
            "Use `tlkeras.finetuning.lr_range_test.run_lr_sweep` with a step of your own.",
        )


def _make_reader(batches: Any) -> Callable[[], Iterator[Any]]:
    """A function that reads the batches from the start. Each iteration over a dataset that shuffles changes the state
    of its generator, and an iterator is used up.
    """
    if isinstance(batches, keras.utils.PyDataset):
        return lambda: (batches[index] for index in range(batches.num_batches))
    if callable(batches):
        return lambda: iter(batches())
    if isinstance(batches, Sequence):
        return lambda: iter(batches)
    raise DataError(
        "Reading these batches would change them: give a list, a PyDataset, or a function.",
        type(batches).__name__,
        "A function makes new ones, as in find_learning_rate(model, lambda: make_dataset()).",
    )


@contextmanager
def _preserving_randomness() -> Iterator[None]:
    """Restore the global random states of Python, NumPy and Keras (of its layers and operations)."""
    of_keras = global_state.get_global_attribute(GLOBAL_SEED_GENERATOR)
    states = random.getstate(), np.random.get_state(), of_keras and np.array(of_keras.state)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        global_state.set_global_attribute(GLOBAL_SEED_GENERATOR, of_keras)  # Keras makes it at its first use
        if of_keras:
            of_keras.state.assign(states[2])


def _copy(model: keras.Model) -> tuple[keras.Model, keras.optimizers.Optimizer]:
    """A model and an optimizer with the present values, in variables of their own."""
    uncompiled = keras.Model(model.inputs, model.outputs)  # else Keras compiles the clone too, if it can
    copied = keras.models.clone_model(uncompiled)
    for layer, original in zip(copied._flatten_layers(), model._flatten_layers(), strict=True):
        layer.trainable = original.trainable
    twins = {id(old): new for old, new in zip(model.variables, copied.variables, strict=True)}
    for old, new in zip(model.variables, copied.variables, strict=True):
        new.assign(old)
    optimizer = _copy_optimizer(model.optimizer, twins)
    copied.compile(optimizer, model.loss, loss_weights=model._compile_config.config.get("loss_weights"))
    return copied, optimizer


def _copy_optimizer(
    optimizer: keras.optimizers.Optimizer, twins: Mapping[int, keras.Variable]
) -> keras.optimizers.Optimizer:
    """An optimizer of the same kind and state for the twins of variables, whose rate is a number and no schedule."""
    inner = getattr(optimizer, "inner_optimizer", None)
    config = optimizer.get_config()
    copied = type(optimizer).from_config(config if inner else {**config, "learning_rate": LOWEST})
    if inner:
        copied.inner_optimizer = _copy_optimizer(inner, twins)
    pattern = getattr(optimizer, "_exclude_from_weight_decay_pattern", None)
    if pattern:  # which no config holds
        copied.exclude_from_weight_decay(var_names=[pattern.pattern])
    if optimizer.built:
        copied.build([twins[id(variable)] for variable in (inner or optimizer)._trainable_variables])
        states = ([part for part in each.variables if part.name != "learning_rate"] for each in (copied, optimizer))
        for new, old in zip(*states, strict=True):
            new.assign(old)
    return copied


def _make_step(model: keras.Model, optimizer: keras.optimizers.Optimizer) -> Callable[..., tf.Tensor]:
    """The training step of Keras, without its metrics."""

    def step(x: Any, y: Any, weights: Any) -> tf.Tensor:
        variables = model.trainable_variables
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=True), weights, training=True)
            scaled = optimizer.scale_loss(loss)
        optimizer.apply(tape.gradient(scaled, variables), variables)
        return loss

    return tf.function(step, jit_compile=False, reduce_retracing=True)


def _cycle(read: Callable[[], Iterator[Any]]) -> Iterator[tuple[Any, Any, Any]]:
    """Batches as tensors, without end."""
    while True:
        batch = None
        for batch in read():
            tensors = keras.tree.map_structure(lambda x: None if x is None else tf.convert_to_tensor(x), batch)
            yield keras.utils.unpack_x_y_sample_weight(tensors)
        if batch is None:
            raise DataError("There are no batches to find a learning rate on.")
