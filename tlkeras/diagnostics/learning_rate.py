"""The learning-rate range test of a recipe's stage: a few steps at rising rates, before any training."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tlkeras.config.recipe import Recipe, load_recipe
from tlkeras.data.inspection import ValidatedDataset, validate_images
from tlkeras.errors import RecipeError, ResourceError, suggest
from tlkeras.features.extraction import CachedActivations
from tlkeras.features.extractor import POOLED, SOURCE_LOGITS, FeatureExtractor
from tlkeras.finetuning.inputs import BatchSource
from tlkeras.finetuning.lr_range_test import HIGHEST, LOWEST, STEPS
from tlkeras.finetuning.network import IMAGES, Network
from tlkeras.finetuning.schedule import Schedule
from tlkeras.heads.heads import list_layers
from tlkeras.plotting.charts import plot_lr_finder
from tlkeras.training import builders
from tlkeras.training.builders.fit_heads import SplitFeatures, fit_heads
from tlkeras.training.finetune import make_split


@dataclass(frozen=True)
class LRFinderOptions:
    """What is searched.

    Attributes:
        image: The PNG file to draw the curve into.
        stage: Its name; None: the first.
        lowest: The first rate tried.
        highest: The last one, unless the loss diverges before.
        steps: Rates to try.
    """

    image: Path
    stage: str | None = None
    lowest: float = LOWEST
    highest: float = HIGHEST
    steps: int = STEPS


def find_learning_rate(
    recipe: str | Path | Recipe,
    overrides: Mapping[str, Any] | None = None,
    *,
    stage: str | None = None,
    steps: int = STEPS,
    to: str | Path | None = None,
) -> dict[str, Any]:
    """A learning rate for one stage of a recipe, suggested by a range test from the fitted head and pretrained weights.

    Images are seen as they are, so that what is computed for the search serves the training too; stages before are
    not carried out.

    Args:
        recipe: Name of a shipped recipe, path of a YAML file, or a `Recipe`.
        overrides: Values by dotted key.
        stage: Its name; the first where it is left out.
        steps: Rates to try, from 1e-6 to 1.
        to: The PNG file of the curve; NAME-rates.png in the current folder if not given.

    Returns:
        `name`, `stage`, `learning_rate` (the recipe's own), `suggestion` (None where the losses tell none), `reason`,
        `rates`, `losses`, `smoothed`, and `image`, the path of the curve; None where not one step was finite.

    Raises:
        TlkerasError: The recipe does not fine-tune, has no such stage, or the image cannot be written.
    """
    resolved = load_recipe(recipe, overrides)
    return _search(
        resolved, LRFinderOptions(Path(to) if to else Path(f"{resolved.name}-rates.png"), stage, steps=steps)
    )


def _search(recipe: Recipe, search: LRFinderOptions) -> dict[str, Any]:
    dataset = builders.read_dataset(recipe)
    extractor = builders.build_feature_extractor(recipe)
    schedule, plan, _ = builders.plan_recipe(recipe, extractor, dataset, builders.split_dataset(recipe, dataset))
    index = _find_stage(schedule, search.stage)
    if not search.image.parent.is_dir():
        raise ResourceError("The folder of an image must exist.", search.image.parent, "Make it first.")
    inspection = validate_images(dataset)
    rows = np.flatnonzero(builders.split_dataset(recipe, inspection.dataset) == "train")
    with ExitStack() as stack:
        cut = plan.cuts[index]
        taps = _list_taps(extractor, cut)
        features = stack.enter_context(builders.extract_features(recipe, extractor, inspection, taps, rows=rows))
        values, rows = dict(zip(taps, features.outputs, strict=True)), rows[features.kept]
        split = SplitFeatures(rows, np.asarray(values[POOLED]))
        heads = fit_heads(partial(builders.make_recipe_head, recipe), inspection.dataset, {"train": split})
        weighting = builders.make_weighting(recipe, inspection.dataset.tasks)
        network = Network(
            extractor.backbone, extractor.pooled, list_layers(heads), recipe.name, extractor.source_head, weighting
        )
        supply = _make_supply(recipe, extractor, inspection, rows, cut, values)
        part = make_split(recipe, inspection, rows, {cut: supply}, "train")
        trainer = builders.make_trainer(recipe, inspection.dataset, network, schedule, plan, (part, None))
        found = trainer.find_rate(index, search.lowest, search.highest, search.steps)
    if found.rates:
        plot_lr_finder(found.rates, found.losses, found.suggestion, search.image, found.smoothed)
    return {
        "name": recipe.name,
        "stage": schedule.stages[index].name,
        "learning_rate": schedule.stages[index].learning_rate,
        "suggestion": found.suggestion,
        "reason": found.reason,
        "rates": list(found.rates),
        "losses": list(found.losses),
        "smoothed": list(found.smoothed),
        "image": str(search.image) if found.rates else None,
    }


def _find_stage(schedule: Schedule, name: str | None) -> int:
    names = [stage.name for stage in schedule.stages]
    if name is not None and name not in names:
        raise RecipeError(f"A stage is one of {', '.join(names)}.", repr(name), suggest(name, names))
    return 0 if name is None else names.index(name)


def _list_taps(extractor: FeatureExtractor, cut: str) -> tuple[str, ...]:
    """Return what is computed of each image: what the head is fitted on, and what the stage begins with."""
    begins = () if cut in (POOLED, IMAGES) else (cut,)
    recorded = (SOURCE_LOGITS,) if extractor.source_head is not None and cut != IMAGES else ()
    return (POOLED, *begins, *recorded)


def _make_supply(
    recipe: Recipe,
    extractor: FeatureExtractor,
    inspection: ValidatedDataset,
    rows: np.ndarray,
    cut: str,
    values: Mapping[str, CachedActivations],
) -> BatchSource:
    if cut == IMAGES:
        return builders.make_image_source(recipe, extractor, inspection, rows, augmented=True)
    recorded = [values[SOURCE_LOGITS]] if SOURCE_LOGITS in values else None
    return builders.make_activation_source(recipe, inspection, rows, [values[cut]], recorded)
