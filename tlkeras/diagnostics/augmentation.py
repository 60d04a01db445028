"""What a recipe's augmentation does, to look at before it does it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tlkeras.config.recipe import Recipe, load_recipe
from tlkeras.data.augmentation.operations import OPERATIONS, Transform
from tlkeras.data.augmentation.policies import AugmentationPolicy
from tlkeras.data.augmentation.views import digest_to_seed, draw_views, number_views
from tlkeras.data.decoding import decode_file
from tlkeras.data.headers import ImageError, InvalidImage
from tlkeras.data.inspection import read_header_and_digest
from tlkeras.data.pipeline import epoch_permutation
from tlkeras.data.tables import Dataset
from tlkeras.errors import DataError, ResourceError
from tlkeras.finetuning.mixup import make_mixup_cutmix
from tlkeras.plotting.charts import draw_contact_sheet
from tlkeras.training import builders

_PNG = b"\x89PNG\r\n\x1a\n"
_OURS = b"Matplotlib"


def show_augmentation(
    recipe: str | Path | Recipe,
    overrides: Mapping[str, Any] | None = None,
    *,
    to: str | Path | None = None,
    images: int = 6,
    views: int = 8,
) -> dict[str, Any]:
    """A contact sheet: a row per image, as it is and in its first views; below, the batch mixed with itself.

    Args:
        recipe: Name of a shipped recipe, path of a YAML file, or a `Recipe`.
        overrides: Values by dotted key, such as `{"augmentation.policy": "rand_augment"}`.
        to: The PNG file; NAME-augmentation.png in the current folder if not given.
        images: How many.
        views: How many of each, fewer where there are fewer.

    Returns:
        `name`, `policy`, `operations` (what may happen in a round, as text), `rounds`, `views` that differ (None:
        endlessly many), `mixup`, `cutmix`, `path` of the sheet, `images` and `shown` (views of each).

    Raises:
        DataError: No image can be read.
        ResourceError: There is a file that is no such sheet, or the sheet cannot be written.
    """
    resolved = load_recipe(recipe, overrides)
    target = Path(to) if to else Path(f"{resolved.name}-augmentation.png")
    check_target(target)
    policy = builders.make_recipe_policy(resolved)
    names, plain, keys = choose_images(resolved, builders.read_dataset(resolved), images)
    seen = number_views(policy, views, resolved.training.seed)
    drawn = draw_views(plain, keys, seen)
    rows = [[image, *of_image] for image, of_image in zip(plain, drawn, strict=True)]
    labels = list(names)
    for name, mixed in _mix(resolved, plain):
        rows.append(list(mixed[: len(seen) + 1]))
        labels.append(name)
    try:
        draw_contact_sheet(rows, labels, ["as it is", *(f"view {view.number}" for view in seen)], target)
    except OSError as error:
        raise ResourceError("The sheet must be writable.", f"{target} ({error.strerror})") from None
    return {
        "name": resolved.name,
        "policy": policy.name,
        "operations": _describe(policy),
        "rounds": policy.rounds,
        "views": policy.size,
        "mixup": resolved.augmentation.mixup,
        "cutmix": resolved.augmentation.cutmix,
        "path": str(target),
        "images": len(plain),
        "shown": len(seen),
    }


def check_target(path: Path) -> None:
    """Admit new files and sheets drawn before.

    Raises:
        ResourceError: There is another file.
    """
    if path.exists():
        start = path.read_bytes()[:512] if path.is_file() else b""
        if not (start.startswith(_PNG) and _OURS in start):
            raise ResourceError("Only a drawn sheet is replaced.", f"{path}, another file", "Choose another name.")


def choose_images(recipe: Recipe, dataset: Dataset, count: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return labels, pixels and keys of images drawn evenly from the classes of the first task.

    Raises:
        DataError: No image can be read.
    """
    task, size = dataset.tasks[0], builders.image_size(recipe)
    names, pixels, digests = [], [], []
    for row in _take_turns(task.strata(dataset.targets[task.name]), recipe.data.seed):
        path = dataset.paths[row]
        seen = read_header_and_digest(path)
        if isinstance(seen, InvalidImage):
            continue
        try:
            pixels.append(decode_file(path, size, recipe.data.resize))
        except ImageError:
            continue
        digests.append(seen[0])
        names.append("".join(task.format(task.members(dataset.targets[task.name][row : row + 1]))) or str(row))
        if len(names) == count:
            break
    if not names:
        raise DataError("A sheet needs an image that can be read.", dataset.source, "See `tlkeras check`.")
    return names, np.stack(pixels), digest_to_seed(digests)


def _take_turns(strata: np.ndarray, seed: int) -> np.ndarray:
    """Return all rows, the first of each stratum, then the second of each, in an order drawn from the seed."""
    shuffled = epoch_permutation(len(strata), seed, 0)
    by_stratum = np.argsort(strata[shuffled], kind="stable")
    counts = np.unique(strata, return_counts=True)[1]
    turn = np.concatenate([np.arange(count) for count in counts])
    return shuffled[by_stratum[np.argsort(turn, kind="stable")]]


def _mix(recipe: Recipe, images: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Return a row of the batch mixed in each way that the recipe asks for."""
    options, rows = recipe.augmentation, []
    for name, alphas in (("MixUp", (options.mixup, 0.0)), ("CutMix", (0.0, options.cutmix))):
        mix = make_mixup_cutmix(*alphas)
        if mix is not None:
            ones = tf.ones([len(images)])
            mixed, _, _ = mix(tf.constant(images), ones[:, None], ones, tf.constant([recipe.training.seed % 2**31, 0]))
            rows.append((name, np.asarray(mixed)))
    return rows


def _describe(policy: AugmentationPolicy) -> list[str]:
    if policy.size is not None:
        return [f"one of {policy.size} orientations"]
    return [", then ".join(map(_describe_move, chain)) or "nothing" for chain in policy.chains]


def _describe_move(move: Transform) -> str:
    row = OPERATIONS[move.operation]
    if row.draw == "chance":
        return move.operation if move.value == 1 else f"{move.operation} with probability {move.value:g}"
    if row.draw == "around":
        return f"{move.operation} by {'±' if move.exact else 'up to ±'}{move.value:g}"
    return (
        f"{move.operation} to {move.value:g}" if move.exact else f"{move.operation} to {row.neutral:g}...{move.value:g}"
    )
