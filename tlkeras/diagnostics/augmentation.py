"""Contact sheets of a recipe's augmentation."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tlkeras.config.recipe import Recipe
from tlkeras.data.augmentation.operations import OPERATIONS, Transform
from tlkeras.data.augmentation.views import digest_to_seed, draw_views, number_views
from tlkeras.data.depth import DEEP
from tlkeras.data.headers import ImageError, ImageWarning, InvalidImage, Rendering
from tlkeras.data.inspection import read_header_and_digest
from tlkeras.data.pipeline import epoch_permutation
from tlkeras.data.sources.folders import load_recipe_or_source
from tlkeras.data.tables import Dataset
from tlkeras.errors import DataError, ResourceError
from tlkeras.finetuning.losses import make_mixup_cutmix
from tlkeras.plotting.charts import plot_contact_sheet
from tlkeras.results import Result
from tlkeras.training import builders
from tlkeras.training.builders.data import data_seed, decode_recipe_image, mixup_cutmix_alphas
from tlkeras.training.builders.heads import training_seed

_PNG = b"\x89PNG\r\n\x1a\n"
_MATPLOTLIB = b"Matplotlib"


@dataclass(frozen=True)
class AugmentationResult(Result):
    """A recipe's augmentation and its contact sheet."""

    name: str
    policy: str
    operations: tuple[str, ...]  # the alternatives of a round, in words
    rounds: int
    views: int | None  # number of different views; None: unlimited
    mixup: float  # alpha; 0 for none
    cutmix: float  # alpha; 0 for none
    path: str  # the PNG file of the sheet
    images: int
    shown: int  # number of views of each


def show_augmentation(
    recipe: str | Path | Recipe,
    overrides: Mapping[str, Any] | None = None,
    *,
    to: str | Path | None = None,
    images: int = 6,
    views: int = 8,
) -> AugmentationResult:
    """Draw a contact sheet: a row per image, as it is and in its first views; below, the batch mixed with itself.

    DataError if no image can be read; ResourceError if the file exists and was not drawn, or cannot be written.

    Args:
        to: The PNG file; NAME-augmentation.png in the current folder by default.
        views: Number of views of each image, fewer where the policy has fewer.
    """
    resolved = load_recipe_or_source(recipe, overrides)[0]
    target = Path(to) if to else Path(f"{resolved.name}-augmentation.png")
    check_target(target)
    policy = builders.make_recipe_policy(resolved)
    labels, plain, keys = choose_images(resolved, builders.read_dataset(resolved), images)
    numbered = number_views(policy, views, training_seed(resolved))
    drawn = draw_views(plain, keys, numbered)
    rows = [[image, *of_image] for image, of_image in zip(plain, drawn, strict=True)]
    for name, batch in _mix(resolved, plain).items():
        rows.append(list(batch[: len(numbered) + 1]))
        labels.append(name)
    titles = ["as it is", *(f"view {view.number}" for view in numbered)]
    write_plot(partial(plot_contact_sheet, rows, labels, titles), target)
    operations = [", then ".join(map(_describe_transform, chain)) or "nothing" for chain in policy.chains]
    if policy.size is not None:
        operations = [f"one of {policy.size} orientations"]
    about = (resolved.name, policy.name, tuple(operations), policy.rounds, policy.size)
    mixed = mixup_cutmix_alphas(resolved)
    return AugmentationResult(*about, *mixed, str(target), images=len(plain), shown=len(numbered))


def check_target(path: Path) -> None:
    """Raise a ResourceError if there is a file that is no image drawn before."""
    start = path.read_bytes()[:512] if path.is_file() else b""
    if path.exists() and not (start.startswith(_PNG) and _MATPLOTLIB in start):
        rule = f"{path} exists and was not drawn by tlkeras, so it is not replaced."
        raise ResourceError(rule, None, "Choose another name.")


def write_plot(plot: Callable[[Path], None], path: Path) -> None:
    """Call a function that writes an image file; ResourceError if the file cannot be written."""
    try:
        plot(path)
    except OSError as error:
        raise ResourceError(f"The image cannot be written to {path}.", error.strerror) from None


def choose_images(recipe: Recipe, dataset: Dataset, count: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Labels, pixels uint8 [n, h, w, 3] and keys of images drawn evenly from the first task's classes."""
    task = dataset.tasks[0]
    labels, pixels, digests = [], [], []
    order = _alternate_strata(task.strata(dataset.targets[task.name]), data_seed(recipe))
    rendering = _find_rendering(recipe, dataset, order[:count])
    for row in order:
        path = dataset.paths[row]
        header = read_header_and_digest(path)
        with suppress(ImageError):
            if not isinstance(header, InvalidImage):
                pixels.append(decode_recipe_image(recipe, path, rendering))
                digests.append(header[0])
                labels.append("".join(task.format(task.members(dataset.targets[task.name][row : row + 1]))) or str(row))
        if len(labels) == count:
            break
    if not labels:
        raise DataError("No image can be read.", dataset.source, "See `tlkeras check`.")
    return labels, np.stack(pixels), digest_to_seed(digests)


def _find_rendering(recipe: Recipe, dataset: Dataset, rows: np.ndarray) -> Rendering:
    """How images are shown; where their files were not read yet, by the values of the chosen ones of 16 bits."""
    if dataset.digests.any():
        return dataset.rendering
    part = dataset.take(rows)
    seen = [read_header_and_digest(path) for path in part.paths]
    digests = np.array(["" if isinstance(one, InvalidImage) else one[0] for one in seen], object)
    read = zip(part.paths, seen, strict=True)
    deep = [path for path, one in read if not isinstance(one, InvalidImage) and one[1].deep]
    told = tuple(ImageWarning(path, DEEP, "") for path in deep)
    return builders.find_depth_range(recipe, replace(part, digests=digests, warnings=told)).rendering


def _alternate_strata(strata: np.ndarray, seed: int) -> np.ndarray:
    """All rows, the first of each stratum, then the second of each, in an order drawn from the seed."""
    shuffled = epoch_permutation(len(strata), seed, 0)
    by_stratum = np.argsort(strata[shuffled], kind="stable")
    counts = np.unique(strata, return_counts=True)[1]
    turn = np.concatenate([np.arange(count) for count in counts])
    return shuffled[by_stratum[np.argsort(turn, kind="stable")]]


def _mix(recipe: Recipe, images: np.ndarray) -> dict[str, np.ndarray]:
    """The batch mixed in each way that the recipe has, by its name."""
    mixup, cutmix = mixup_cutmix_alphas(recipe)
    rows = {}
    for name, alphas in (("MixUp", (mixup, 0.0)), ("CutMix", (0.0, cutmix))):
        mix = make_mixup_cutmix(*alphas)
        if mix is not None:
            ones, seed = tf.ones([len(images)]), tf.constant([training_seed(recipe) % 2**31, 0])
            mixed, _, _ = mix(tf.constant(images), ones[:, None], ones, seed)
            rows[name] = np.asarray(mixed)
    return rows


def _describe_transform(transform: Transform) -> str:
    row, name, value = OPERATIONS[transform.operation], transform.operation, transform.value
    if row.draw == "chance":
        return name if value == 1 else f"{name} with probability {value:g}"
    if row.draw == "around":
        return f"{name} by {'±' if transform.exact else 'up to ±'}{value:g}"
    return f"{name} to {value:g}" if transform.exact else f"{name} to {row.neutral:g}...{value:g}"
