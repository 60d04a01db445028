"""The order in which an epoch draws examples, where classes or domains are drawn equally often."""

from __future__ import annotations

import numpy as np

from tlkeras.data.pipeline import epoch_permutation
from tlkeras.errors import DataError


def balanced_sampler(classes: np.ndarray, count: int, seed: int, epoch: int) -> np.ndarray:
    """Positions in random order, int64 [count], the numbers of two classes differing by one at most.

    Every class goes through its examples in an endless sequence of permutations, and an epoch continues where the one
    before stopped. So no example comes again before all of its class have come, in large classes over several epochs.
    DataError if there are no examples.

    Args:
        classes: Class index of each example, int [n].
        count: Positions to draw, the same in every epoch.
        seed: Of the draw, a pure function of the arguments.
        epoch: Epochs before this one.
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

    The larger domain comes once, the other one as often as needed.

    Args:
        of_target: Whether an example is of the target domain, bool [n].
        seed, epoch: As of `balanced_sampler`.
    """
    larger = max(int(of_target.sum()), int((~of_target).sum()))
    drawn = balanced_sampler(of_target.astype(np.int64), 2 * larger, seed, epoch)
    domains = (drawn[~of_target[drawn]], drawn[of_target[drawn]])
    return np.stack(domains, axis=1).ravel()


def _continue_permuting(members: np.ndarray, first: int, count: int, key: tuple[int, int]) -> np.ndarray:
    """`count` members from position `first` on of an endless sequence of their permutations.

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
