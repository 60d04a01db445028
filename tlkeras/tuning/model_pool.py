"""A pool of compiled heads: building, tracing and compiling a model costs more than training a small one."""

import json
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

_MOST_MODELS = 32


@keras.saving.register_keras_serializable("tlkeras")
class _Dropout(keras.layers.Dropout):
    """Dropout whose rate is a variable, so that one traced step works for all rates."""

    def __init__(self, rate: float, **config: Any):
        super().__init__(0.5, **config)  # with a rate of 0 it would have no seeds to draw from
        self.share = tf.Variable(float(rate), trainable=False, dtype="float32")

    def call(self, inputs: Any, training: bool = False) -> Any:
        if not training:
            return inputs
        drawn = keras.random.uniform(keras.ops.shape(inputs), seed=self.seed_generator)
        return tf.where(drawn >= self.share, inputs / (1.0 - self.share), 0.0)


class _Cosine(keras.optimizers.schedules.LearningRateSchedule):
    """The cosine of `keras.optimizers.schedules.CosineDecay` to zero, with its two numbers as variables."""

    def __init__(self) -> None:
        self.initial, self.steps = (tf.Variable(1.0, trainable=False, dtype="float32") for _ in range(2))

    def follow(self, schedule: keras.optimizers.schedules.CosineDecay) -> None:
        self.initial.assign(schedule.initial_learning_rate)
        self.steps.assign(schedule.decay_steps)

    def __call__(self, step: Any) -> Any:
        share = tf.minimum(tf.cast(step, "float32"), self.steps) / self.steps
        return self.initial * 0.5 * (1.0 + tf.cos(3.141592653589793 * share))

    def get_config(self) -> dict[str, Any]:
        return {}


class CompiledModelCache:
    """Compiled models that heads of equal shape borrow instead of compiling their own.

    Rates of dropout, learning rate and weight decay may differ: in a model of the pool they are variables. A borrowed
    model starts from the weights, seeds and rates of the one it replaces, with a fresh optimizer, and learns the same.
    """

    def __init__(self) -> None:
        self._models: dict[str, keras.Sequential] = {}
        self.compiled = 0

    def attach(self, head: Any) -> Any:
        """The head, which borrows its models from this pool, if it builds any."""
        build = getattr(head, "_build", None)
        if build is not None:
            head._build = lambda X: _BorrowedModel(self, build(X))
        return head

    def borrow(
        self, model: keras.Sequential, optimizer: keras.optimizers.Optimizer, **options: Any
    ) -> keras.Sequential:
        """A compiled model of the pool in place of a model that is not compiled, and its optimizer."""
        key = _make_key(model, optimizer, options)
        borrowed = self._models.pop(key, None)
        if borrowed is None:
            borrowed = keras.models.clone_model(model, clone_function=_clone_layer)
            schedule = _Cosine()
            schedule.follow(optimizer._learning_rate)
            optimizer._learning_rate = schedule
            optimizer.weight_decay = tf.Variable(optimizer.weight_decay or 0.0, trainable=False)
            borrowed.compile(optimizer, **options)
            self.compiled += 1
        else:
            borrowed.optimizer._learning_rate.follow(optimizer._learning_rate)
            borrowed.optimizer.weight_decay.assign(optimizer.weight_decay or 0.0)
            for variable in borrowed.optimizer.variables:
                variable.assign(tf.zeros_like(variable))
        self._models[key] = borrowed
        if len(self._models) > _MOST_MODELS:
            del self._models[next(iter(self._models))]
        _copy_state(model, borrowed)
        return borrowed


class _BorrowedModel:
    """A model that a head has built, replaced by one of the pool when it is compiled."""

    def __init__(self, pool: CompiledModelCache, fresh: keras.Sequential):
        self._pool, self._model = pool, fresh

    def compile(self, optimizer: Any, loss: Any, **options: Any) -> None:
        self._model = self._pool.borrow(self._model, optimizer, loss=loss, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _clone_layer(layer: keras.layers.Layer) -> keras.layers.Layer:
    config = layer.get_config()
    return _Dropout(**config) if type(layer) is keras.layers.Dropout else type(layer).from_config(config)


def _copy_state(model: keras.Sequential, borrowed: keras.Sequential) -> None:
    borrowed.set_weights(model.get_weights())
    for ours, theirs in zip(_list_dropouts(borrowed), _list_dropouts(model), strict=True):
        ours.share.assign(theirs.rate)
        if theirs.rate > 0:
            ours.seed_generator.state.assign(theirs.seed_generator.state)


def _list_dropouts(model: keras.Model) -> Iterator[keras.layers.Dropout]:
    return (layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Dropout))


def _make_key(model: keras.Sequential, optimizer: keras.optimizers.Optimizer, options: dict[str, Any]) -> str:
    """Everything that two models must have in common to share one of the pool, as text."""
    config = optimizer.get_config()
    fixed = {name: config[name] for name in sorted(config) if name not in ("name", "learning_rate", "weight_decay")}
    return json.dumps([_strip(model.get_config()), type(optimizer).__name__, fixed, options], default=str)


def _strip(config: Any) -> Any:
    """A configuration without the values that a borrowed model takes from the one it replaces."""
    if isinstance(config, (list, tuple)):
        return [_strip(item) for item in config]
    if not isinstance(config, dict):
        return config
    kept = {key: _strip(value) for key, value in config.items() if key not in ("name", "seed")}
    if config.get("class_name") == "Dropout":
        kept["config"].pop("rate")
    return kept
