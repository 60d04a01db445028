"""The loss to minimise, from logits and dense targets; and which examples, mixed how, it is computed on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tlkeras.data.pipeline import epoch_permutation
from tlkeras.errors import DataError, RecipeError, suggest

_TINY = 1e-7  # below it a float32 cannot tell 1 - p from 0


@dataclass(frozen=True)
class SoftmaxLoss:
    """Cross entropy of a softmax: each example is of one class.

    Called with targets [n, k], rows summing to 1, and logits [n, k] it returns the losses, float32 [n]; so it can also
    be given to `keras.Model.compile`.

    Args:
        smoothing: Share of the target spread evenly over all classes (Szegedy et al., CVPR 2016, section 7).

    Raises:
        RecipeError: The smoothing is not in [0, 1).
        DataError: When called: targets and logits differ in shape.
    """

    smoothing: float = 0.0

    def __post_init__(self) -> None:
        _check_smoothing(self.smoothing)

    def __call__(self, targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Return the loss of each example, float32 [n]."""
        targets, logits = _match(targets, logits)
        return tf.nn.softmax_cross_entropy_with_logits(smooth(targets, self.smoothing, targets.shape[-1]), logits)


@dataclass(frozen=True)
class FocalLoss:
    """Focal loss, -alpha_c (1 - p_c)^gamma log p_c summed over the target: easy examples count little.

    Computed from log-probabilities, so that an example that is very wrong keeps its gradient. Called as `Softmax` is.

    Args:
        gamma: How fast an example that is answered well stops to count; 0 gives the cross entropy.
        alpha: One weight per class, or None for equal ones.
        smoothing: As in `Softmax`.

    Raises:
        RecipeError: gamma is negative, a weight is not positive, or the smoothing is not in [0, 1).
        DataError: When called: targets and logits differ in shape, or there is not one weight per class.

    Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, equation 5, with p_t taken from a softmax.
    """

    gamma: float = 2.0
    alpha: Sequence[float] | None = None
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        _check_smoothing(self.smoothing)
        if not self.gamma >= 0:
            raise RecipeError("gamma of the focal loss must be 0 or more.", self.gamma)
        if self.alpha is not None and not all(weight > 0 for weight in self.alpha):
            raise RecipeError("alpha of the focal loss must be positive for every class.", list(self.alpha))

    def __call__(self, targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Return the loss of each example, float32 [n]."""
        targets, logits = _match(targets, logits)
        classes = targets.shape[-1]
        log_p = tf.nn.log_softmax(logits)
        # a power's slope at 0 is infinite below gamma = 1
        miss = tf.maximum(-tf.math.expm1(log_p), _TINY) ** self.gamma
        terms = -smooth(targets, self.smoothing, classes) * miss * log_p
        if self.alpha is not None:
            if len(self.alpha) != classes:
                raise DataError("alpha must have one weight per class.", f"{len(self.alpha)} for {classes} classes")
            terms *= tf.constant(self.alpha, tf.float32)
        return tf.reduce_sum(terms, axis=-1)


@dataclass(frozen=True)
class SigmoidLoss:
    """Binary cross entropy, averaged over the classes: an example can be of none, one or several of them.

    Called with targets [n, k] in [0, 1] and logits [n, k] it returns the losses, float32 [n].

    Args:
        smoothing: Share of each target moved to one half.

    Raises:
        RecipeError: The smoothing is not in [0, 1).
        DataError: When called: targets and logits differ in shape.
    """

    smoothing: float = 0.0

    def __post_init__(self) -> None:
        _check_smoothing(self.smoothing)

    def __call__(self, targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Return the loss of each example, float32 [n]."""
        targets, logits = _match(targets, logits)
        losses = tf.nn.sigmoid_cross_entropy_with_logits(smooth(targets, self.smoothing, outcomes=2), logits)
        return tf.reduce_mean(losses, axis=-1)


@dataclass(frozen=True)
class SquaredErrorLoss:
    """Half the squared error of a number, in units of its deviation.

    Args:
        scale: Deviation of the numbers that are learned from.
        offset: Their mean; a network answers with (number - offset) / scale.
    """

    scale: float = 1.0
    offset: float = 0.0

    def __call__(self, targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """Return the loss of each example, float32 [n], of numbers [n, 1] and standardised answers [n, 1]."""
        standard = (tf.cast(targets, tf.float32) - self.offset) / self.scale
        return 0.5 * tf.reduce_sum(tf.square(standard - tf.cast(logits, tf.float32)), axis=-1)


Loss = Callable[[Any, Any], tf.Tensor]
LOSSES: dict[str, Callable[..., Loss]] = {"softmax": SoftmaxLoss, "focal": FocalLoss, "sigmoid": SigmoidLoss}


def make_loss(kind: str, **options: Any) -> Loss:
    """Return what computes the loss [n] from targets [n, k] and logits [n, k], by its kind.

    Raises:
        RecipeError: There is no such kind (the nearest is told), or an option is out of range.
    """
    if kind not in LOSSES:
        raise RecipeError(f"An objective is one of {', '.join(LOSSES)}.", repr(kind), suggest(kind, LOSSES))
    return LOSSES[kind](**options)


def weighted_mean(losses: tf.Tensor, weights: tf.Tensor | None = None) -> tf.Tensor:
    """Return sum(weights * losses) / n, a float32 scalar.

    The sum is divided by the number of examples, as Keras does, and not by the sum of the weights: then an example
    pulls equally hard whichever others share its batch, and batches add up to the weighted loss of the whole set.
    Weights should have a mean of 1 over the training set, or they also scale the learning rate.

    Args:
        losses: One per example, [n].
        weights: One per example, [n], or None for ones.
    """
    losses = tf.cast(losses, tf.float32)
    return tf.reduce_mean(losses if weights is None else losses * tf.cast(weights, tf.float32))


def one_hot(classes: tf.Tensor, count: int) -> tf.Tensor:
    """Return dense targets, float32 [n, count], for class indices [n]; -1, for no class, gives a row of zeros."""
    return tf.one_hot(classes, count)


def smooth(targets: tf.Tensor, smoothing: float, outcomes: int) -> tf.Tensor:
    """Return (1 - smoothing) * targets + smoothing / outcomes, of the shape of the targets.

    Args:
        targets: Dense, [n, k].
        smoothing: Share that is spread evenly.
        outcomes: How many it is spread over: k classes of which one is right, or 2 where each is a yes or no.
    """
    return targets * (1.0 - smoothing) + smoothing / outcomes


def balanced_sampler(classes: np.ndarray, count: int, seed: int, epoch: int) -> np.ndarray:
    """Draw examples so that each class comes equally often; a pure function of its arguments.

    Every class goes through its examples in an endless sequence of permutations, and an epoch goes on where the one
    before stopped. So no example comes again before all of its class have come, in large classes over several epochs.

    Args:
        classes: Class index of each example, int [n].
        count: Positions to draw, the same in every epoch.
        seed: Seed of the draw.
        epoch: Epochs before this one.

    Returns:
        Positions within `classes`, int64 [count], in random order. The numbers of two classes differ by one at most.

    Raises:
        DataError: There are no examples.
    """
    if len(classes) == 0:
        raise DataError("There must be at least one example to draw from.", 0)
    sizes = np.unique(classes, return_counts=True)[1]
    by_class = np.split(np.argsort(classes, kind="stable"), np.cumsum(sizes)[:-1])
    drawn = np.empty(count, np.int64)
    for number, members in enumerate(by_class):  # they take turns, over all epochs
        turn = (number - epoch * count) % len(by_class)
        places = drawn[turn :: len(by_class)]
        places[:] = _continue_permuting(members, (epoch * count + turn) // len(by_class), len(places), (seed, number))
    return drawn[epoch_permutation(count, seed, epoch)]


def alternating_domain_sampler(of_target: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Draw as many examples of a source as of a target, by turns; the larger domain comes once, the other again.

    Args:
        of_target: bool [n].
        seed: Seed of the draw.
        epoch: Epochs before this one.

    Returns:
        Positions, int64: source, target, source, target ...; a pure function of the arguments.

    Raises:
        DataError: There are no examples.
    """
    larger = max(int(of_target.sum()), int((~of_target).sum()))
    drawn = balanced_sampler(of_target.astype(np.int64), 2 * larger, seed, epoch)
    domains = (drawn[~of_target[drawn]], drawn[of_target[drawn]])
    return np.stack(domains, axis=1).ravel()


def mixup(
    inputs: tf.Tensor, targets: Any, weights: tf.Tensor, seed: tf.Tensor, alpha: float = 0.2
) -> tuple[tf.Tensor, Any, tf.Tensor]:
    """Blend each example with the one before it in its batch, which is taken to be in random order (MixUp).

    The share of the example itself is drawn from Beta(alpha, alpha). Targets are blended in proportion to share times
    weight: then the weighted loss of the blend is that of its two halves, share * weight * loss and so on, exactly.
    With equal weights it is the paper's blend.

    Args:
        inputs: Images, activations or features, [n, ...]; whole numbers are rounded.
        targets: Dense, float [n, k], or several of them by task.
        weights: One per example, float [n].
        seed: Two integers; the same ones give the same blend.
        alpha: Strength: shares near 0 and 1 when small, even ones at 1.

    Returns:
        Inputs of the given dtype, targets and weights float32.

    Raises:
        RecipeError: alpha is not positive.

    Source: Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018.
    """
    if not alpha > 0:
        raise RecipeError("alpha of MixUp must be positive.", alpha)
    inputs, weights = tf.convert_to_tensor(inputs), tf.cast(weights, tf.float32)
    share = _draw_shares(tf.shape(inputs)[0], alpha, seed)
    own, other = share * weights, (1.0 - share) * tf.roll(weights, 1, axis=0)
    total = own + other
    own_part = tf.math.divide_no_nan(own, total)
    other_part = tf.math.divide_no_nan(other, total)  # not 1 - own_part: both are 0 where nothing counts
    mixed = _blend(inputs, share, 1.0 - share)
    if inputs.dtype.is_integer:
        mixed = tf.round(mixed)
    blended = tf.nest.map_structure(lambda dense: _blend(dense, own_part, other_part), targets)
    return tf.cast(mixed, inputs.dtype), blended, total


def _check_smoothing(smoothing: float) -> None:
    if not 0 <= smoothing < 1:
        raise RecipeError("Label smoothing must be at least 0 and below 1.", smoothing)


def _match(targets: tf.Tensor, logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return both in float32; shapes that would broadcast are refused."""
    targets, logits = tf.cast(targets, tf.float32), tf.cast(logits, tf.float32)
    if targets.shape.rank != logits.shape.rank or not targets.shape.is_compatible_with(logits.shape):
        raise DataError(
            "Targets must be dense: one row per example, one column per class.",
            f"targets of shape {targets.shape} for logits of shape {logits.shape}",
            "Make them from class indices by one_hot.",
        )
    return targets, logits


def _continue_permuting(members: np.ndarray, first: int, count: int, key: tuple[int, int]) -> np.ndarray:
    """Return `count` members from place `first` on of an endless sequence of their permutations.

    The permutations are ranks of the raw output of Philox-4x64-10 under the seed, which is entered in the middle; the
    class stands in a higher word of the counter, so that no two classes, nor `order`, use the same output.
    """
    size = len(members)
    seed, number = key
    start = first - first % size
    rounds = -(-(first + count - start) // size)
    skipped = start % 4  # four words are made at a time
    counter = np.array([start // 4, 0, number, 1], dtype=np.uint64)
    generator = np.random.Philox(key=np.array([seed % 2**64, 0], dtype=np.uint64), counter=counter)
    words = generator.random_raw(skipped + rounds * size)[skipped:].reshape(rounds, size)
    sequence = members[np.argsort(words, axis=1, kind="stable")].ravel()
    return sequence[first - start :][:count]


def _draw_shares(count: tf.Tensor, alpha: float, seed: tf.Tensor) -> tf.Tensor:
    """Draw from Beta(alpha, alpha), float32 [count].

    As g1 / (g1 + g2) with Gamma(alpha) variables, whose logarithms are drawn because for small alpha the variables
    themselves underflow: Gamma(alpha) = Gamma(alpha + 1) * U^(1 / alpha) (Marsaglia and Tsang, 2000).
    """
    seeds = tf.random.split(seed, 2)
    above = tf.random.stateless_gamma([2, count], seeds[0], alpha + 1.0)
    uniform = 1.0 - tf.random.stateless_uniform([2, count], seeds[1])  # never 0
    logs = tf.math.log(above) + tf.math.log(uniform) / alpha
    return tf.sigmoid(logs[0] - logs[1])


def _blend(values: tf.Tensor, own: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    """Return own * values + other * the values one row up, float32; `own` and `other` are [n]."""
    values = tf.cast(values, tf.float32)
    shape = [-1] + [1] * (values.shape.rank - 1)
    return tf.reshape(own, shape) * values + tf.reshape(other, shape) * tf.roll(values, 1, axis=0)
