"""The verbs of recipes: listed, copied, looked through before work starts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tlkeras.api.running import RUNS
from tlkeras.config import recipe as recipes
from tlkeras.config.recipe import Recipe
from tlkeras.errors import RecipeError, ResourceError, RunError
from tlkeras.lazy_tensorflow import import_tensorflow_quietly
from tlkeras.runs.directory import Run, list_runs


def check(
    recipe: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    deep: bool = False,
    html: str | Path | None = None,
    fix: str | Path | None = None,
) -> dict[str, Any]:
    """Look through images and labels, and say what training on them would do and what is in its way.

    Args:
        recipe: A recipe, or images alone: a folder, a manifest, "tfds:NAME" or a packaged set. These are looked at as
            `linear_probe` would take them.
        overrides: Values by dotted key.
        deep: Look for wrong labels and outliers however many features must be computed for it.
        html: A page to write, with the images in question.
        fix: A cleaned manifest to write; images are never touched.

    Returns:
        `name`, `problems` (training is not advisable while there is one), `notes`, facts, and all that was found; see
        `tlkeras.diagnostics.check.check`.
    """
    train, resolved = resolve_recipe_or_data(recipe, overrides)
    import_tensorflow_quietly()
    from tlkeras.diagnostics import check

    page, manifest = (None if path is None else str(path) for path in (html, fix))
    return check.check(resolved, check.CheckOptions(train, deep, page, manifest))


def resolve_recipe_or_data(recipe: str, overrides: Mapping[str, Any] | None) -> tuple[bool, Recipe]:
    """Return whether this is a recipe rather than images alone, and the recipe; `linear_probe` for images."""
    from tlkeras.data.sources.folders import is_data_source

    if not is_data_source(recipe) or recipe in recipes.list_recipes():
        return True, recipes.load_recipe(recipe, overrides)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(recipe).name).strip("-.") or "images"
    return False, recipes.load_recipe("linear_probe", {"name": name, "data.source": recipe, **(overrides or {})})


def show_schedule(recipe: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what a recipe's fine-tuning would do: per stage its blocks, rates, parameters, and where it starts.

    Raises:
        RecipeError: The recipe does not fine-tune, or a stage does not suit the backbone or the data.
    """
    resolved = recipes.load_recipe(recipe, overrides)
    import_tensorflow_quietly()
    from tlkeras.diagnostics import check

    return check.show_schedule(resolved)


def show_augmentation(
    recipe: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    to: str | Path | None = None,
    images: int = 6,
    views: int = 8,
) -> dict[str, Any]:
    """Draw what a recipe's augmentation does to some of its images.

    Args:
        recipe: Name of a shipped recipe, or path of a YAML file.
        overrides: Values by dotted key, such as `{"augmentation.policy": "rand_augment"}`.
        to: The PNG file; NAME-augmentation.png in the current folder if not given.
        images: How many.
        views: How many of each, fewer where there are fewer.
    """
    resolved = recipes.load_recipe(recipe, overrides)
    import_tensorflow_quietly()
    from tlkeras.diagnostics import augmentation

    target = Path(to) if to else Path(f"{resolved.name}-augmentation.png")
    return augmentation.plot_augmentation(resolved, target, images=images, views=views)


def show_rates(
    recipe: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    stage: str | None = None,
    steps: int = 100,
    to: str | Path | None = None,
) -> dict[str, Any]:
    """Try rising learning rates in one stage of a recipe, and suggest one; see `tlkeras.diagnostics.learning_rate.find_learning_rate`.

    Args:
        recipe: Name of a shipped recipe, or path of a YAML file.
        overrides: Values by dotted key.
        stage: Its name; the first where it is left out.
        steps: Rates to try, from 1e-6 to 1.
        to: The PNG file of the curve; NAME-rates.png in the current folder if not given.
    """
    resolved = recipes.load_recipe(recipe, overrides)
    import_tensorflow_quietly()
    from tlkeras.diagnostics import learning_rate

    target = Path(to) if to else Path(f"{resolved.name}-rates.png")
    return learning_rate.find_learning_rate(resolved, learning_rate.LRFinderOptions(target, stage, steps=steps))


def show_features(
    recipe: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    method: str = "tsne",
    layer: str | None = None,
    images: int = 2000,
    to: str | Path | None = None,
) -> dict[str, Any]:
    """Draw what a recipe's features separate before anything is fitted; see `tlkeras.diagnostics.features.show_features`.

    Args:
        recipe: Name of a shipped recipe, or path of a YAML file.
        overrides: Values by dotted key.
        method: Of the second projection: tsne or umap.
        layer: A block or cut of the backbone whose maps are drawn too, into FILE-maps.png.
        images: How many are looked at, at most.
        to: The PNG file; NAME-features.png in the current folder if not given.
    """
    resolved = recipes.load_recipe(recipe, overrides)
    import_tensorflow_quietly()
    from tlkeras.diagnostics import features

    target = Path(to) if to else Path(f"{resolved.name}-features.png")
    maps = target.with_name(f"{target.stem}-maps.png")
    return features.show_features(resolved, features.FeaturePlotOptions(target, method, layer, maps, images))


def list_recipes(*, runs: str | Path = RUNS) -> dict[str, Any]:
    """Return the shipped recipes with the first line of their receipts, and the runs made so far."""
    shipped = [
        {"name": name, "about": (recipes.read_header(path) or [""])[0]} for name, path in recipes.list_recipes().items()
    ]
    made = []
    for run in list_runs(Path(runs)):
        figures = _read_figures(run)
        made.append(
            {
                "name": run.name,
                "state": run.read_state(),
                "created": run.read_created(),
                "accuracy": figures.get("accuracy"),
                "roc_auc": figures.get("roc_auc"),
            }
        )
    return {"recipes": shipped, "runs": made}


def copy_recipe(recipe: str, target: str | Path) -> Path:
    """Copy a recipe, as installed, to a file of your own.

    Raises:
        RecipeError: The target exists.
        ResourceError: It cannot be written.
    """
    source, path = recipes.find_recipe(recipe), Path(target)
    if path.is_dir():
        path = path / source.name
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8"))
    except FileExistsError:
        raise RecipeError("A recipe is never overwritten.", path, "Choose another name or move the file.") from None
    except OSError as error:
        path.unlink(missing_ok=True)  # what a full disk left of it
        raise ResourceError("The target of a copy must be writable.", f"{path} ({error.strerror})") from None
    return path


def _read_figures(run: Run) -> dict[str, float | None]:
    """Return the value of each metric of a run; nothing where it was not measured or the file is damaged."""
    try:
        return {name: figure["value"] for name, figure in run.read_json("metrics.json")["metrics"].items()}
    except (RunError, KeyError, TypeError, AttributeError):
        return {}
