"""The data of a stage: the order of its examples; activations from the cache, or images decoded in every epoch."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from tlkeras.config.image_size import ImageSize
from tlkeras.data.augmentation.policies import AugmentationPolicy, make_policy
from tlkeras.data.augmentation.views import ImageAugmentation, choose_views, digest_to_seed, make_view_fn
from tlkeras.data.headers import Look
from tlkeras.data.pipeline import epoch_permutation, make_data_service_dataset, make_image_dataset
from tlkeras.errors import DataError

Batch = tuple[np.ndarray, Any]
"""Positions within the split, int64 [b]; inputs of the network's suffix, [b, ...], or a pair of these and the logits
of the source's own head from before training, [b, classes of the source]."""


class BatchSource(Protocol):
    """The examples of one split as the suffix behind one cut takes them."""

    def stream(self, batches: Sequence[np.ndarray], epoch: int) -> Iterator[Batch]:
        """Yield the batches in the order given; the view of an image is a pure function of the epoch."""
        ...


@dataclass(frozen=True)
class DataSplit:
    """One split of the data."""

    targets: np.ndarray  # dense, float32 [n, k], tasks side by side; NaN throughout a task whose target is not known
    weights: np.ndarray  # float32 [n]
    source: Callable[[str], BatchSource]  # from the name of a cut to the batches that enter the network there
    of_target: np.ndarray | None = None  # bool [n]: examples of a target domain, without labels and of weight 0

    def __len__(self) -> int:
        return len(self.targets)

    def draw_batches(self, size: int, seed: int, epoch: int, *, balanced: bool = False) -> list[np.ndarray]:
        """The positions in each batch of an epoch (from 0), int64 [size]; the remainder is left out.

        `balanced` draws every class equally often. With a target domain, the domains are drawn by turns instead.
        """
        if self.of_target is not None:
            drawn = alternating_domain_sampler(self.of_target, seed, epoch)
        elif balanced:
            drawn = balanced_sampler(self.targets.argmax(axis=1), len(self), seed, epoch)
        else:
            drawn = epoch_permutation(len(self), seed, epoch)
        size = min(size, len(drawn))
        return list(drawn[: len(drawn) // size * size].reshape(-1, size))


def split_recorded(inputs: Any) -> tuple[Any, Any]:
    """The inputs of a batch, and the recorded logits of the source or None."""
    return inputs if isinstance(inputs, tuple) else (inputs, None)


@dataclass(frozen=True)
class ActivationSource:
    """Activations at a cut."""

    views: Sequence[Any]  # per view, rows [n, ...] that are read by `rows[positions]`
    # from positions int64 [b] and an epoch to view numbers int [b]
    choose: Callable[[np.ndarray, int], np.ndarray] = lambda positions, epoch: np.zeros(len(positions), np.int64)
    recorded: Sequence[Any] | None = None  # per view, the source's logits from before training, if it is distilled

    def stream(self, batches: Sequence[np.ndarray], epoch: int) -> Iterator[Batch]:
        """Yield the batches; the next one is read while the present one is used."""
        with ThreadPoolExecutor(1) as pool:
            following = None
            for positions in batches:
                current, following = following, pool.submit(self._read, positions, epoch)
                if current is not None:
                    yield current.result()
            if following is not None:
                yield following.result()

    def _read(self, positions: np.ndarray, epoch: int) -> Batch:
        numbers = self.choose(positions, epoch) % len(self.views)
        values = _gather(self.views, numbers, positions)
        return positions, values if self.recorded is None else (values, _gather(self.recorded, numbers, positions))


def _gather(views: Sequence[Any], numbers: np.ndarray, positions: np.ndarray) -> np.ndarray:
    first = views[numbers[0]][positions[:1]]
    values = np.empty((len(positions), *first.shape[1:]), first.dtype)
    for number in np.unique(numbers):
        chosen = numbers == number
        values[chosen] = views[number][positions[chosen]]
    return values


@dataclass(frozen=True)
class ImageSource:
    """Images decoded in every epoch, for a network that is trained as a whole or without a cache."""

    paths: Sequence[str]  # files
    digests: Sequence[str]  # the hex SHA-256 of each file's bytes
    size: ImageSize  # of the images in pixels
    rendering: Look  # how an image becomes RGB of that size
    policy: AugmentationPolicy | None = None  # augmentation; None for none
    seed: int = 0  # of the augmentation
    in_graph: bool = False  # make the views of a batch where the network trains, not of each image in the pipeline
    data_service: str | None = None  # HOST:PORT of a data service that decodes them; None decodes them here

    def stream(self, batches: Sequence[np.ndarray], epoch: int) -> Iterator[Batch]:
        """Yield the batches, uint8 [b, h, w, 3]; files that became unreadable are left out."""
        if not len(batches):
            return
        positions = np.concatenate(batches)
        augment, in_graph = None, self.policy is not None and self.in_graph
        if self.policy is not None:
            keys = digest_to_seed([self.digests[position] for position in positions])
            numbers = choose_views(self.policy, None, keys, epoch, self.seed)
            augment = None if in_graph else make_view_fn(self.policy, keys, numbers, self.seed)
        paths = [self.paths[position] for position in positions]
        wanted = (paths, self.size, self.rendering, len(batches[0]))
        if self.data_service is None:
            stream = make_image_dataset(*wanted, augment=augment).as_numpy_iterator()
        else:
            stream = make_data_service_dataset(self.data_service, *wanted, augment=augment)
        for index, images in stream:
            yield positions[index], self._layer((images, keys[index], numbers[index])) if in_graph else images

    @cached_property
    def _layer(self) -> Callable[..., Any]:
        """Compiled once for all epochs."""
        layer = ImageAugmentation(self.policy or make_policy("none"), self.seed)
        return tf.function(layer, autograph=False, jit_compile=False, reduce_retracing=True)


@dataclass(frozen=True)
class DistillationSource:
    """Examples with the predictions of a network that does not train."""

    source: BatchSource  # of the examples
    predict: Callable[[Any], Any]  # from inputs [b, ...] to predictions [b, ...]

    def stream(self, batches: Sequence[np.ndarray], epoch: int) -> Iterator[Batch]:
        """Yield the batches, each with a pair of inputs and predictions."""
        for positions, inputs in self.source.stream(batches, epoch):
            yield positions, (inputs, np.asarray(self.predict(inputs)))


def balanced_sampler(classes: np.ndarray, count: int, seed: int, epoch: int) -> np.ndarray:
    """Positions in random order, int64 [count], the numbers of two classes differing by one at most.

    Every class goes through its examples in an endless sequence of permutations, and an epoch continues where the one
    before stopped. So no example comes again before all of its class have come, in large classes over several epochs.
    A pure function of class indices, int [n], a `count` that is the same in every epoch, seed and epoch (from 0).
    DataError if there are no examples.
    """
    if len(classes) == 0:
        raise DataError("There are no examples to draw from.", 0)
    sizes = np.unique(classes, return_counts=True)[1]
    by_class = np.split(np.argsort(classes, kind="stable"), np.cumsum(sizes)[:-1])
    drawn = np.empty(count, np.int64)
    for number, members in enumerate(by_class):  # they take turns, over all epochs
        turn = (number - epoch * count) % len(by_class)
        places = drawn[turn :: len(by_class)]
        places[:] = _continue_permuting(members, (epoch * count + turn) // len(by_class), len(places), (seed, number))
    return drawn[epoch_permutation(count, seed, epoch)]


def alternating_domain_sampler(of_target: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Positions, int64: source, target, source, target ...; a pure function of its arguments.

    The larger domain comes once, the other one as often as needed. `of_target` is bool [n].
    """
    larger = max(int(of_target.sum()), int((~of_target).sum()))
    drawn = balanced_sampler(of_target.astype(np.int64), 2 * larger, seed, epoch)
    domains = (drawn[~of_target[drawn]], drawn[of_target[drawn]])
    return np.stack(domains, axis=1).ravel()


def _continue_permuting(members: np.ndarray, first: int, count: int, key: tuple[int, int]) -> np.ndarray:
    """`count` members from position `first` on of an endless sequence of their permutations. The permutations are ranks
    of the raw output of Philox-4x64-10 under the seed, which is entered in the middle; the class stands in a higher
    word of the counter, so that no two classes, nor `order`, use the same output.
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
