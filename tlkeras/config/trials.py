"""Recipes of trials: values by dotted key on top of a recipe, and the length of its training."""

import math
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from tlkeras.config.recipe import validate_values
from tlkeras.config.schema import Recipe
from tlkeras.config.schema.tuning import TuningConfig
from tlkeras.config.yaml_loader import to_immutable
from tlkeras.errors import RecipeError

RecipeValues = Mapping[str, Any]
"""Values of a recipe by dotted key."""

EPOCHS = "tuner/epochs"
VALIDATION = 0.2


def require_tuning(recipe: Recipe) -> TuningConfig:
    """The section `tuning`; RecipeError if there is none."""
    if recipe.tuning is None:
        raise RecipeError(
            f"{recipe.name} has no section `tuning` with a `space` to search.",
            None,
            "For example: tuning: {space: {training.learning_rate: {min: 1e-4, max: 1e-2, sampling: log}}}",
        )
    return recipe.tuning


def apply_values(recipe: Recipe, values: RecipeValues) -> Recipe:
    """The recipe of a trial: values by dotted key on top, the section `tuning` removed.

    A stage is named by its number from 0, or by its name: `finetuning.stages.top.layer_decay`. Where a value changes
    the `kind` of a section, keys that only other kinds have are left out. KerasTuner's own `tuner/epochs` shortens
    the training. A RecipeError names all problems of the result.
    """
    plain = recipe.model_dump(exclude={"tuning"})
    chosen = {key: value for key, value in values.items() if not key.startswith("tuner/")}
    kinds = {key.rpartition(".")[0] for key in chosen if key.endswith(".kind")}
    for key in sorted(chosen, key=lambda key: not key.endswith(".kind")):
        _set_value(plain, key.split("."), chosen[key])
    if not plain["data"]["validation"]:
        plain["data"]["validation"] = VALIDATION
    result = _drop_foreign_keys(plain, kinds)
    return _shorten_training(result, values[EPOCHS]) if EPOCHS in values else result


def longest_training(recipe: Recipe) -> int:
    """Epochs of the longest stage of fine-tuning, or of heads that are trained in epochs."""
    if recipe.finetuning and recipe.finetuning.stages:
        return max(stage.epochs or stage.max_epochs for stage in recipe.finetuning.stages)
    return recipe.training.epochs


def chooses_stages(recipe: Recipe) -> bool:
    """Whether the recipe fine-tunes in stages that are chosen from the data, of no known length."""
    return recipe.finetuning is not None and recipe.finetuning.stages is None


def _set_value(plain: dict[str, Any], path: list[str], value: Any) -> None:
    """Set a value in nested mappings and tuples of stages; these are copied, not changed."""
    here, *rest = path
    if not rest:
        plain[here] = to_immutable(value)
        return
    inside = {} if plain.get(here) is None else plain[here]
    if isinstance(inside, dict):
        plain[here] = dict(inside)
        _set_value(plain[here], rest, value)
    elif isinstance(inside, tuple) and len(rest) > 1 and all(isinstance(item, dict) for item in inside):
        items = [dict(item) for item in inside]
        _set_value(_find_item(items, rest[0], here), rest[1:], value)
        plain[here] = tuple(items)
    else:
        raise RecipeError(f"{here} is a value and has no keys inside.", ".".join(path))


def _find_item(items: list[dict[str, Any]], reference: str, parent: str) -> Any:
    for number, item in enumerate(items):
        if reference in (str(number), item.get("name")):
            return item
    names = ", ".join(f"{number} ({item.get('name')})" for number, item in enumerate(items))
    raise RecipeError(f"{parent} has no item {reference!r}; name one by its number or name: {names}.")


def _drop_foreign_keys(plain: dict[str, Any], kinds: set[str]) -> Recipe:
    """The validated recipe, without keys that the new kinds of the given sections do not have."""
    try:
        return Recipe.model_validate(plain)
    except ValidationError as error:
        foreign = [problem["loc"] for problem in error.errors() if problem["type"] == "extra_forbidden"]
    dropped = False
    for location in foreign:
        parent, section = plain, [str(part) for part in location[:-2]]
        for part in section:
            parent = parent[part]
        dropped |= ".".join(section) in kinds and parent.pop(str(location[-1]), None) is not None
    return _drop_foreign_keys(plain, kinds) if dropped else validate_values(plain, "A trial's recipe")


def _shorten_training(recipe: Recipe, epochs: int) -> Recipe:
    """The recipe with its training cut in the proportion of `epochs` to its longest training."""
    share = epochs / longest_training(recipe)
    training = recipe.training.model_copy(update={"epochs": math.ceil(recipe.training.epochs * share)})
    short = recipe.model_copy(update={"training": training})
    if recipe.finetuning is None or recipe.finetuning.stages is None:
        return short
    stages = []
    for stage in recipe.finetuning.stages:
        exact, most = stage.epochs and math.ceil(stage.epochs * share), math.ceil(stage.max_epochs * share)
        stages.append(stage.model_copy(update={"epochs": exact, "max_epochs": most}))
    return short.model_copy(update={"finetuning": recipe.finetuning.model_copy(update={"stages": tuple(stages)})})
