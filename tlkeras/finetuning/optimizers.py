"""One optimizer for a whole run, with a learning-rate multiplier per variable; Muon for convolutions."""

from __future__ import annotations

import functools
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tlkeras.errors import TlkerasError, suggest
from tlkeras.lazy_tensorflow import check_backend

_WRAPPERS = (keras.optimizers.LossScaleOptimizer, keras.optimizers.MultiOptimizer)
_OPTIMIZERS = [
    kind for kind in vars(keras.optimizers).values() if isinstance(kind, type) and issubclass(kind, keras.Optimizer)
]


@keras.saving.register_keras_serializable("tlkeras")
class ConvMuon(keras.optimizers.Muon):
    """Muon whose orthogonal steps are those of convolutions, too; that of Keras gives these to AdamW.

    A kernel [..., inputs, outputs] is flattened to a matrix, and its step has the same length in every direction. Under
    AdamW the numbers of a step are of one size, so that where inputs are never negative, as behind a ReLU, they add up
    to a shift of the output's mean, which frozen batch norm does not undo. Depthwise kernels, vectors, embeddings and
    layers named in `exclude_layers` take AdamW's steps.

    Arguments and the size of a step are those of `keras.optimizers.Muon`: 0.2 on average, times the rate, whatever the
    shape (`rms_rate`), so that rates and weight decay for AdamW suit it.

    Source: Jordan et al., Muon, 2024 (kernels flattened); Liu et al., Muon is scalable for LLM training, 2025 (size).
    """

    def zeropower_via_newtonschulz5(self, x: Any, steps: int) -> Any:
        """About the nearest orthogonal matrix, in the shape of the kernel.

        An iteration multiplies the matrix by a polynomial of its Gram matrix. These commute: their product is found
        first, from small matrices alone, so that the whole one is multiplied twice and not twice per iteration.
        """
        matrix = _flatten(x)
        matrix = matrix / (ops.norm(matrix) + 1e-7)
        tall = matrix.shape[0] > matrix.shape[1]
        turned = ops.transpose(matrix)
        gram = turned @ matrix if tall else matrix @ turned
        product = identity = ops.eye(gram.shape[0], dtype=gram.dtype)
        for _ in range(steps):
            factor = self.muon_a * identity + self.muon_b * gram + self.muon_c * gram @ gram
            product, gram = factor @ product, factor @ gram @ factor
        return ops.reshape(matrix @ product if tall else product @ matrix, x.shape)

    def lr_adjust(self, x: Any) -> Any:
        """Scale a step by the larger side of the matrix."""
        return ops.reshape(super().lr_adjust(_flatten(x)), x.shape)

    def _should_use_adamw(self, variable: Any) -> bool:
        if len(variable.shape) <= 2:
            return super()._should_use_adamw(variable)
        keywords = [*self.exclude_layers, *(["(?i)embedding"] if self.exclude_embeddings else [])]
        return variable.shape[-1] == 1 or any(re.search(keyword, variable.path) for keyword in keywords)


def _flatten(x: Any) -> Any:
    return ops.reshape(x, (-1, x.shape[-1]))


class ScaledOptimizer(keras.optimizers.Optimizer):
    """The class that `scale_learning_rates` mixes into an optimizer's: each variable's rate times its multiplier.

    A multiplier scales the step itself, as parameter groups do in PyTorch; a scaled gradient would change nothing
    under Adam. Decoupled weight decay is scaled alike. With every multiplier at 1 the numbers are those of the plain
    optimizer, bit for bit but in traced steps of RMSprop and Adagrad, where the last bit may differ; at 0 the variable
    and its slots stay as they are, whatever the gradient.

    The bias of moments that began at 0 is corrected by how often their own variable was moved, as in PyTorch: Keras
    corrects by the steps of the run, and the first ones of a variable unfrozen late would be up to six times too long.

    Multipliers and counts are variables of the optimizer, float32 [variables it is built on]: they change without a
    new trace and are saved with it. An optimizer built on all variables can be applied to any part of them.

    Keras loads a model with its optimizer built on what trains, and drops the state of one that was built on more, as
    it is of a model saved while blocks are frozen. Here that state is kept until `build_on` finds its variables.
    """

    _multipliers: Any = None  # a variable, once built
    _counts: Any = None  # a variable, once built: how often each variable was moved
    _given: Mapping[str, float] = {}
    _loaded: Sequence[np.ndarray] | None = None  # a state of more variables than it is built on
    _loaded_paths: Sequence[str] = ()  # of the variables that it was built on when it was saved, if known
    _present: Any = None  # within a step: by index, multipliers and counts of the variables that it updates
    _factor: Any = None  # while one variable is updated: its multiplier
    _count: Any = None  # while one variable is updated: its count

    @property
    def iterations(self) -> Any:
        """The steps taken; while one variable is updated, those that moved it."""
        return super().iterations if self._count is None else self._count

    def set_multipliers(self, multipliers: Mapping[str, float]) -> None:
        """Replace all multipliers, by `variable.path`, at once or when it is built; variables left out get 1.

        TlkerasError if a multiplier is negative or not finite, or a path is not that of exactly one variable.
        """
        for path, multiplier in multipliers.items():
            if not (math.isfinite(multiplier) and multiplier >= 0):
                raise TlkerasError("A multiplier is negative or not finite.", f"{multiplier} for {path!r}")
        self._given = dict(multipliers)
        if not self.built:
            return
        paths = [variable.path for variable in self._trainable_variables]
        _check_paths(multipliers, paths)
        values = np.array([multipliers.get(path, 1.0) for path in paths], "float32")
        if self._multipliers is None:  # Keras may build within a trace, where to assign would be a part of each step
            self._multipliers = self.add_variable(values.shape, lambda *_, **__: values, "float32", name="multipliers")
        else:
            self._multipliers.assign(values)

    def add_counts(self, steps: int) -> None:
        """Create the counts: `steps` for each variable, those that an optimizer took before it was scaled."""
        count = keras.initializers.Constant(steps)
        shape = [len(self._trainable_variables)]
        self._counts = self.add_variable(shape, count, "float32", aggregation="only_first_replica", name="counts")

    def restart_averages(self) -> None:
        """Set the averages of `use_ema` to the weights, which were restored: the end of `fit` would overwrite them."""
        if self.use_ema and self.built:
            for variable, average in zip(self._trainable_variables, self._model_variables_moving_average, strict=True):
                average.assign(variable)

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Create the slots of all variables that any stage trains, and the multipliers."""
        if self.built:
            return
        super().build(list(variables))
        self.add_counts(0)
        given, own = self._given, {variable.path for variable in variables}
        away = set(self._loaded_paths) - own  # in a saved model they may have been frozen since
        self.set_multipliers({path: multiplier for path, multiplier in given.items() if path not in away})
        self._given = given

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        with self._scaled_for(variable) as multiplier:
            super().update_step(gradient, variable, learning_rate * multiplier)

    def assign(self, variable: Any, value: Any) -> None:
        """Set a variable or a slot, unless the multiplier is 0; to add and to subtract likewise."""
        super().assign(variable, value if self._factor is None else ops.where(self._factor > 0, value, variable))

    def assign_add(self, variable: Any, value: Any) -> None:
        super().assign_add(variable, self._cancel_at_zero(value))

    def assign_sub(self, variable: Any, value: Any) -> None:
        super().assign_sub(variable, self._cancel_at_zero(value))

    def load_own_variables(self, store: Any) -> None:
        """Set the state, or keep one of another number of variables."""
        self._loaded = None
        if len(store.keys()) == len(self.variables):
            super().load_own_variables(store)
        else:
            self._loaded = tuple(np.array(store[str(index)]) for index in range(len(store.keys())))

    def take_state(self, other: ScaledOptimizer, variables: Sequence[keras.Variable], named: Sequence[Any]) -> None:
        """Build on the variables that the state kept by another belongs to, and set it.

        They are those of `named` with the paths that it was saved with, else `variables`; TlkerasError if these do not
        fit.
        """
        by_path, paths = {variable.path: variable for variable in named}, other._loaded_paths
        is_found = len(by_path) == len(named) and paths and by_path.keys() >= set(paths)
        self.build([by_path[path] for path in paths] if is_found else list(variables))
        shapes, values = [tuple(variable.shape) for variable in self.variables], other._loaded or ()
        if shapes != [value.shape for value in values]:
            raise TlkerasError(
                "The state of the optimizer that was loaded belongs to other variables.",
                f"{len(values)} values for {len(shapes)} variables of {self.name}",
                "Resume with the schedule and the model that it was saved with.",
            )
        for variable, value in zip(self.variables, values, strict=True):
            variable.assign(value)

    def get_config(self) -> dict[str, Any]:
        """The configuration of the plain optimizer, the multipliers, and the variables that it is built on."""
        built = self.built and self._loaded is None
        paths = [variable.path for variable in self._trainable_variables] if built else list(self._loaded_paths)
        return {**super().get_config(), "multipliers": dict(self._given), "built_on": paths}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> ScaledOptimizer:
        """An optimizer that is not yet built."""
        plain = {name: value for name, value in config.items() if name not in ("multipliers", "built_on")}
        optimizer = super().from_config(plain, custom_objects)
        optimizer.set_multipliers(config.get("multipliers", {}))
        optimizer._loaded_paths = config.get("built_on", ())
        return optimizer

    def _backend_apply_gradients(self, grads: Sequence[Any], trainable_variables: Sequence[Any]) -> None:
        if self._loaded is not None:
            warnings.warn(
                f"The state that {self.name} was saved with is dropped: it has other variables.", stacklevel=2
            )
            self._loaded = None
        # to unstack is one operation, where indexing would take three for each
        multipliers, counts = tf.unstack(self._multipliers.value), tf.unstack(self._counts.value)
        indices = [self._get_variable_index(variable) for variable in trainable_variables]
        self._present = {index: (multipliers[index], counts[index]) for index in indices}
        try:
            super()._backend_apply_gradients(grads, trainable_variables)
        finally:
            self._present = None

    def _backend_update_step(
        self, grads: Sequence[Any], trainable_variables: Sequence[Any], learning_rate: Any
    ) -> None:
        moved = self._find_moved()
        super()._backend_update_step(grads, trainable_variables, learning_rate)
        self._counts.assign_add(moved)

    def _find_moved(self) -> Any:
        """1 for each variable that this step moves, 0 for the others: float32 [variables]."""
        present = np.array([index in self._present for index in range(self._counts.shape[0])], "float32")
        return tf.sign(self._multipliers.value) * present

    def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
        for variable in variables:
            with self._scaled_for(variable):
                super()._apply_weight_decay([variable])

    def _get_current_learning_rate(self) -> Any:
        rate = super()._get_current_learning_rate()
        return rate if self._factor is None else rate * self._factor

    @contextmanager
    def _scaled_for(self, variable: Any) -> Iterator[Any]:
        self._factor, self._count = self._present[self._get_variable_index(variable)]
        try:
            yield self._factor
        finally:
            self._factor = self._count = None

    def _cancel_at_zero(self, value: Any) -> Any:
        """The value, or 0 at a multiplier of 0; a branch per variable would double the time of tracing."""
        if self._factor is None:
            return value
        return tf.math.multiply_no_nan(value, tf.cast(tf.sign(self._factor), value.dtype))

    def _overwrite_model_variables_with_average_value(self, trainable_variables: Sequence[Any]) -> None:
        """Skip frozen variables, and pair by variable: Keras pairs by position, wrong for a part of them."""
        for variable in trainable_variables:
            index = self._get_variable_index(variable)
            if self._present is None or index in self._present:
                average = self._model_variables_moving_average[index]
                self.assign(variable, ops.where(self._multipliers[index] > 0, average, variable))


class ScaledNadam(ScaledOptimizer):
    """The part of a scaled Nadam that keeps the product of its momenta for each variable, where Keras keeps one."""

    _products: Any = None  # a variable, once built, float32 [variables]
    _advanced: Any = None  # within a step: the products after it, by index

    def add_counts(self, steps: int) -> None:
        """Create the counts, and the products: that of Keras for each variable."""
        super().add_counts(steps)
        product = keras.initializers.Constant(float(self._u_product) if steps else 1.0)
        self._products = self.add_variable(
            self._counts.shape, product, "float32", aggregation="only_first_replica", name="products"
        )

    def _backend_update_step(
        self, grads: Sequence[Any], trainable_variables: Sequence[Any], learning_rate: Any
    ) -> None:
        step = self._counts.value + 1.0
        before = self._products.value
        after = before * self.beta_1 * (1.0 - 0.5 * ops.power(0.96, step))
        self._advanced, moved = tf.unstack(after), self._find_moved()
        try:
            super()._backend_update_step(grads, trainable_variables, learning_rate)
        finally:
            self._advanced = None
        self._products.assign(tf.where(moved > 0, after, before))

    @contextmanager
    def _scaled_for(self, variable: Any) -> Iterator[Any]:
        product = self._u_product
        with super()._scaled_for(variable) as factor:
            if self._advanced is not None:
                self.__dict__["_u_product"] = self._advanced[self._get_variable_index(variable)]
            try:
                yield factor
            finally:
                self.__dict__["_u_product"] = product


def scale_learning_rates(
    optimizer: keras.optimizers.Optimizer | str, multipliers: Mapping[str, float] | None = None
) -> ScaledOptimizer:
    """The same optimizer, now also a `ScaledOptimizer`: with a learning-rate multiplier per variable.

    It may be any of Keras or of your own; rate, slots and exclusions from weight decay stay. Multipliers are as for
    `ScaledOptimizer.set_multipliers`. TlkerasError if it wraps others, a multiplier is invalid, or Keras does not use
    TensorFlow.

    >>> optimizer = scale_learning_rates(keras.optimizers.SGD(0.1), {"kernel": 0.5})
    >>> weight = keras.Variable(np.float32(1.0), name="kernel")
    >>> optimizer.apply([np.float32(1.0)], [weight])
    >>> round(float(weight), 3)
    0.95
    """
    check_backend("scale_learning_rates")
    optimizer = keras.optimizers.get(optimizer)
    if isinstance(optimizer, _WRAPPERS):
        rule = "An optimizer that wraps others has no rates of its own to scale."
        raise TlkerasError(rule, type(optimizer).__name__, "Scale the inner optimizer before it is wrapped.")
    if not isinstance(optimizer, ScaledOptimizer):
        kind: Any = type(optimizer)
        optimizer.__class__ = _add_scaling(kind)
        if optimizer.built:
            optimizer.add_counts(int(optimizer.iterations))
    optimizer.set_multipliers(multipliers or {})
    return optimizer


def find_scaled(optimizer: keras.optimizers.Optimizer) -> ScaledOptimizer | None:
    """The scaled optimizer, also inside the loss scaling that Keras adds for float16; None if there is none."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    return inner if isinstance(inner, ScaledOptimizer) else None


def build_on(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable], named: Sequence[keras.Variable] = ()
) -> keras.optimizers.Optimizer:
    """The optimizer built on at least these variables, a new one of the same kind if it was built on fewer.

    A state that was loaded and that it could not take is set, see `ScaledOptimizer`; it may be of any of those `named`.
    TlkerasError if it was built on fewer and has taken steps, so that its moments would be lost.
    """
    known = {id(variable) for variable in optimizer._trainable_variables}
    missing = [variable.path for variable in variables if id(variable) not in known]
    scaled = find_scaled(optimizer)
    has_state = scaled is not None and scaled._loaded is not None
    if optimizer.built and (missing or has_state):
        if int(optimizer.iterations):
            raise TlkerasError(
                "The optimizer was not built on every variable that a stage trains.",
                f"{optimizer.name}, which has taken steps without {(missing or ['those loaded'])[0]!r}",
                "Compile the model with a new optimizer, while all of its layers are trainable.",
            )
        optimizer = type(optimizer).from_config(optimizer.get_config())
        if has_state and (renewed := find_scaled(optimizer)):
            renewed.take_state(cast(ScaledOptimizer, scaled), variables, named)
    if not optimizer.built:
        optimizer.build(list(variables))
    return optimizer


@functools.cache
def _add_scaling(kind: type[keras.optimizers.Optimizer]) -> type[ScaledOptimizer]:
    """The class that is both; Keras can load it again by its name."""
    mixed_in = ScaledNadam if issubclass(kind, keras.optimizers.Nadam) else ScaledOptimizer
    scaled = type(f"Scaled{kind.__name__}", (mixed_in, kind), {"__doc__": kind.__doc__})
    return keras.saving.register_keras_serializable("tlkeras")(scaled)


def _check_paths(multipliers: Mapping[str, float], paths: Sequence[str]) -> None:
    counts = Counter(paths)
    for path in multipliers:
        if path not in counts:
            raise TlkerasError("The optimizer is not built on this variable.", repr(path), suggest(path, counts))
        if counts[path] > 1:
            raise TlkerasError(f"{counts[path]} variables share a path.", repr(path), "Rename their layers.")


# So that a saved model with a scaled optimizer loads in a process that has scaled none yet.
for _kind in (*_OPTIMIZERS, ConvMuon):
    if _kind not in (keras.Optimizer, *_WRAPPERS):
        _add_scaling(_kind)
