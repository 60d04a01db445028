"""Augmentation policies by name, or composed of operations."""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import Any

import tensorflow as tf

from tlkeras.data.augmentation.operations import FILLS, OPERATIONS, Transform, apply_dihedral, apply_transforms
from tlkeras.errors import TlkerasError, suggest

# Part of the key of everything computed from augmented pixels: raise it whenever the same draws give other pixels.
VERSION = 1


@dataclass(frozen=True)
class AugmentationPolicy:
    """Views of a name in `POLICIES` or "own": `size` orientations by number, or chains of transforms drawn at random.

    Each round applies one of the chains, equally likely. Pixels outside a moved image are filled as in `FILLS`.
    """

    name: str
    size: int | None = None
    chains: tuple[tuple[Transform, ...], ...] = ()
    rounds: int = 1
    fill: str = "reflect"

    def __post_init__(self) -> None:
        if self.fill not in FILLS:
            raise TlkerasError("Unknown fill.", repr(self.fill), suggest(str(self.fill), FILLS))

    def without_quarter_turns(self) -> "AugmentationPolicy":
        """The policy for images that are not square: of eight orientations only the four that keep the sides."""
        return self if self.size is None else replace(self, size=min(self.size, 4))

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits of a digest of all but the name."""
        content = json.dumps([VERSION, *astuple(self)[1:]])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def apply(self, image: tf.Tensor, number: int | tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """One view, uint8 [h, w, 3]: orientations by `number`, modulo the size, or draws by `seed`, int [2], alone.

        TlkerasError unless the image is uint8.
        """
        check_pixels(image)
        if self.size is not None:
            return apply_dihedral(image, number % self.size)
        numbers = 1 + 3 * max(map(len, self.chains))
        for drawn in tf.unstack(tf.random.stateless_uniform([self.rounds, numbers], seed, alg="philox")):
            draws = tf.reshape(drawn[1:], [-1, 3])
            branches = [partial(apply_transforms, chain, image, draws, self.fill) for chain in self.chains]
            chosen = tf.cast(drawn[0] * len(branches), tf.int32)
            several = len(branches) > 1
            image = tf.ensure_shape(tf.switch_case(chosen, branches), image.shape) if several else branches[0]()
        return image


# The operations of both papers, without the identity, and their strongest values in RandAugment and TrivialAugment.
_STRONGEST: Mapping[str, tuple[float, float]] = {
    "autocontrast": (1, 1),
    "equalize": (1, 1),
    "rotate": (30, 135),
    "solarize": (0, 0),
    "saturation": (0.9, 0.99),
    "posterize": (4, 2),
    "contrast": (0.9, 0.99),
    "brightness": (0.9, 0.99),
    "sharpness": (0.9, 0.99),
    "shear_x": (0.3, 0.99),
    "shear_y": (0.3, 0.99),
    "translate_x": (0.45, 1 / 7),  # 150 pixels of 331, and 32 of 224
    "translate_y": (0.45, 1 / 7),
}


def rand_augment(operations: int = 2, magnitude: float = 9, fill: str = "reflect") -> AugmentationPolicy:
    """RandAugment (Cubuk et al. 2020): operations drawn from fourteen, all of one magnitude, 0 to 30."""
    numbers = isinstance(operations, int) and isinstance(magnitude, int | float)
    if not (numbers and operations > 0 and 0 <= magnitude <= 30):
        rule = "RandAugment takes at least 1 operation and a magnitude from 0 to 30."
        raise TlkerasError(rule, f"operations {operations!r}, magnitude {magnitude!r}")
    chains: list[tuple[Transform, ...]] = [()]
    for name, (strongest, _) in _STRONGEST.items():
        row = OPERATIONS[name]
        level = 1 if row.draw == "chance" else magnitude / 30
        chains.append((Transform(name, row.neutral + (strongest - row.neutral) * level, exact=True),))
    return AugmentationPolicy("rand_augment", None, tuple(chains), operations, fill)


def trivial_augment(fill: str = "reflect") -> AugmentationPolicy:
    """TrivialAugment (Wide; Müller and Hutter 2021), its strength drawn from the whole range, not of 31 levels."""
    chains = [(Transform(name, strongest),) for name, (_, strongest) in _STRONGEST.items()]
    return AugmentationPolicy("trivial_augment", None, ((), *chains), fill=fill)


def _compose(name: str, steps: Sequence[Mapping[str, Any]], fill: str = "reflect") -> AugmentationPolicy:
    chain = tuple(transform for step in steps for transform in _read_step(step))
    return AugmentationPolicy(name, None, (chain,), fill=fill) if chain else AugmentationPolicy(name, size=1)


# Small changes, as between two shots of the same thing.
_LIGHT = ({"flip": "horizontal"}, {"translate": 0.05}, {"zoom": 0.1}, {"rotate": 10}, {"brightness": 0.1})
# Mirroring, square windows of 65 to 100 % of the side, and colour.
_STANDARD = ({"flip": "horizontal"}, {"crop": 0.65}, {"brightness": 0.2}, {"contrast": 0.2}, {"saturation": 0.2})

POLICIES: Mapping[str, Callable[..., AugmentationPolicy]] = {
    "none": lambda: AugmentationPolicy("none", size=1),
    "flip": lambda: AugmentationPolicy("flip", size=2),
    "dihedral": lambda: AugmentationPolicy("dihedral", size=8),
    "light": partial(_compose, "light", _LIGHT),
    "standard": partial(_compose, "standard", _STANDARD),
    "rand_augment": rand_augment,
    "trivial_augment": trivial_augment,
}


def check_pixels(images: tf.Tensor) -> None:
    """Raise a TlkerasError unless images are uint8: of floats nobody knows whether they end at 1 or at 255."""
    if images.dtype not in ("uint8", tf.uint8):
        dtype = getattr(images.dtype, "name", images.dtype)
        way_out = "Augment before pixels are scaled, or cast them: keras.ops.cast(images, 'uint8')."
        raise TlkerasError("Augmentation takes uint8 images, 0 to 255.", f"{dtype}", way_out)


_FLIPS = {"horizontal": ["horizontal"], "vertical": ["vertical"], "both": ["horizontal", "vertical"]}
_BOTH_AXES = {"shear": ["shear_x", "shear_y"], "translate": ["translate_x", "translate_y"]}
_STEPS = {**{name: [name] for name in OPERATIONS}, **_BOTH_AXES, "flip": []}  # the value of a flip names them


def make_policy(policy: str | Sequence[Mapping[str, Any]], **options: Any) -> AugmentationPolicy:
    """A policy by a name of `POLICIES`, or of operations in order: [{"rotate": 10}, {"equalize": 0.5}].

    Besides `OPERATIONS` there are "shear" and "translate", along both axes, and {"flip": "horizontal", "vertical" or
    "both"}, each with probability 1/2. Options are `fill`, and `operations` and `magnitude` of rand_augment. A
    TlkerasError is raised for an unknown name or a value out of range.

    >>> make_policy([{"flip": "horizontal"}, {"rotate": 10}]).chains[0][1].value
    10
    """
    if not isinstance(policy, str):
        make: Callable[..., AugmentationPolicy] = partial(_compose, "own", policy)
    elif policy in POLICIES:
        make = POLICIES[policy]
    else:
        raise TlkerasError("Unknown augmentation.", repr(policy), suggest(policy, POLICIES))
    valid = inspect.signature(make).parameters
    for name in options:
        if name not in valid:
            way_out = suggest(name, valid) if valid else "It has none."
            raise TlkerasError(f"The augmentation {policy!r} has no such option.", repr(name), way_out)
    return make(**options)


def _read_step(step: Mapping[str, Any]) -> list[Transform]:
    if not isinstance(step, Mapping) or len(step) != 1:
        rule = "A step of an augmentation is one operation with its value, such as {rotate: 10}."
        raise TlkerasError(rule, repr(step))
    [(name, value)] = step.items()
    if name not in _STEPS:
        raise TlkerasError("Unknown augmentation operation.", repr(name), suggest(str(name), _STEPS))
    if name != "flip":
        return [Transform(each, value) for each in _STEPS[name]]
    if str(value) not in _FLIPS:
        raise TlkerasError("Unknown flip.", repr(value), suggest(str(value), _FLIPS))
    return [Transform(f"flip_{axis}", 0.5) for axis in _FLIPS[value]]
