"""What a search varies: recipe keys, as KerasTuner's hyperparameters and back."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from tlkeras.config.recipe import Recipe, validate_values
from tlkeras.config.schema.tuning import SearchDimension, TuningConfig
from tlkeras.config.yaml_loader import to_immutable
from tlkeras.errors import RecipeError

EPOCHS = "tuner/epochs"
VALIDATION = 0.2
_MOST_CORNERS = 256


def require_tuning(recipe: Recipe) -> TuningConfig:
    """Return the section `tuning`.

    Raises:
        RecipeError: There is none.
    """
    if recipe.tuning is None:
        raise RecipeError(
            "A recipe to tune must have a section `tuning` with a `space`.",
            f"{recipe.name} without one",
            "For example: tuning: {space: {training.learning_rate: {min: 1e-4, max: 1e-2, sampling: log}}}",
        )
    return recipe.tuning


def apply_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a trial: values by dotted key on top, the section `tuning` gone.

    A stage is named by its number from 0, or by its name: `finetuning.stages.top.layer_decay`. Where a value changes
    the `kind` of a section, keys that only other kinds have are left out. KerasTuner's own `tuner/epochs` shortens
    what is trained.

    Raises:
        RecipeError: The result is no valid recipe; all problems are named.
    """
    plain = recipe.model_dump(exclude={"tuning"})
    chosen = {key: value for key, value in values.items() if not key.startswith("tuner/")}
    kinds = {key.rpartition(".")[0] for key in chosen if key.endswith(".kind")}
    for key in sorted(chosen, key=lambda key: not key.endswith(".kind")):
        _put(plain, key.split("."), chosen[key])
    if not plain["data"]["validation"]:
        plain["data"]["validation"] = VALIDATION
    result = _drop_foreign(plain, kinds)
    return _shorten(result, values[EPOCHS]) if EPOCHS in values else result


def longest(recipe: Recipe) -> int:
    """Return the epochs that a trial of this recipe trains at most: the longest stage, or those of deep heads."""
    if recipe.finetuning and recipe.finetuning.stages:
        return max(stage.epochs or stage.max_epochs for stage in recipe.finetuning.stages)
    return recipe.training.epochs


def list_problems(recipe: Recipe) -> list[str]:
    """Return what is wrong with a recipe's space: keys that do not exist, values that the recipe refuses."""
    tuning, problems = require_tuning(recipe), []
    kinds = {key: dimension for key, dimension in tuning.space.items() if key.endswith(".kind")}
    combinations = itertools.product(*(dimension.ends() for dimension in kinds.values()))
    settings = [dict(zip(kinds, chosen, strict=True)) for chosen in combinations]
    for key, dimension in tuning.space.items():
        for value in dimension.ends():
            refusals = [_refusal(recipe, {**setting, key: value}, key) for setting in settings]
            if all(refusals):
                problems.append(f"{key} = {value!r}: {refusals[0]}")
    return problems


def boundary_recipes(recipe: Recipe) -> Iterator[Recipe]:
    """Yield valid recipes at the ends of the space, of its keys below `finetuning`, `backbone` and `features`.

    They need all frozen work that any trial needs.
    """
    space = require_tuning(recipe).space
    frozen = {k: d for k, d in space.items() if k.split(".")[0] in ("finetuning", "backbone", "features", "data")}
    ends = itertools.product(*(_between(dimension) for dimension in frozen.values()))
    for chosen in itertools.islice(ends, _MOST_CORNERS):
        try:
            yield apply_values(recipe, dict(zip(frozen, chosen, strict=True)))
        except RecipeError:
            continue


def make_hyperparameters(tuning: TuningConfig) -> Any:
    """Return the space as `keras_tuner.HyperParameters`."""
    import keras_tuner

    space = keras_tuner.HyperParameters()
    declare(tuning, space)
    return space


def declare(tuning: TuningConfig, space: Any) -> None:
    """Declare what is searched in KerasTuner's hyperparameters; values that it has stay."""
    for key, dimension in tuning.space.items():
        if dimension.values is not None:
            plain = all(type(value) in (int, float) for value in dimension.values)
            alike = len({type(value) for value in dimension.values}) == 1
            values = list(dimension.values) if plain and alike else [json.dumps(value) for value in dimension.values]
            space.Choice(key, values, ordered=plain and alike)
            continue
        make = space.Int if dimension.whole else space.Float
        options = {} if dimension.step is None else {"step": dimension.step}
        make(key, dimension.min, dimension.max, sampling=dimension.sampling, **options)


def read_values(tuning: TuningConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of KerasTuner as those of a recipe, its own `tuner/...` ones among them."""
    return {
        key: json.loads(value) if key in tuning.space and isinstance(value, str) else value
        for key, value in values.items()
    }


def _between(dimension: SearchDimension) -> tuple[Any, ...]:
    """Return all whole numbers of a short range, else what a check tries."""
    if dimension.values is None and dimension.whole:
        low, high, step = (int(value) for value in (dimension.min or 0, dimension.max or 0, dimension.step or 1))
        if dimension.sampling == "linear" and (high - low) // step < 32:
            return tuple(range(low, high + 1, step))
    return dimension.ends()


def _put(plain: dict[str, Any], path: list[str], value: Any) -> None:
    """Set a value in nested mappings and tuples of stages; what is on the way is copied, not changed."""
    here, *rest = path
    if not rest:
        plain[here] = to_immutable(value)
        return
    inside = plain.get(here)
    if inside is None:
        inside = {}
    if isinstance(inside, dict):
        plain[here] = dict(inside)
        _put(plain[here], rest, value)
    elif isinstance(inside, tuple) and len(rest) > 1 and all(isinstance(item, dict) for item in inside):
        items = [dict(item) for item in inside]
        _put(_pick(items, rest[0], here), rest[1:], value)
        plain[here] = tuple(items)
    else:
        raise RecipeError(f"{here} is a value and has no keys inside.", ".".join(path))


def _pick(items: list[dict[str, Any]], which: str, of: str) -> dict[str, Any]:
    for number, item in enumerate(items):
        if which in (str(number), item.get("name")):
            return item
    names = ", ".join(f"{number} ({item.get('name')})" for number, item in enumerate(items))
    raise RecipeError(f"One of {of} is named by its number or name: {names}.", repr(which))


def _drop_foreign(plain: dict[str, Any], kinds: set[str]) -> Recipe:
    """Validate, leaving out keys that the kinds of the given sections do not have."""
    try:
        return Recipe.model_validate(plain)
    except ValidationError as error:
        foreign = [problem["loc"] for problem in error.errors() if problem["type"] == "extra_forbidden"]
    dropped = False
    for location in foreign:
        section = ".".join(str(part) for part in location[: len(location) - 2])
        parent = plain
        for part in section.split(".") if section else []:
            parent = parent[part]
        dropped |= section in kinds and parent.pop(str(location[-1]), None) is not None
    return _drop_foreign(plain, kinds) if dropped else validate_values(plain, "A trial's recipe")


def _refusal(recipe: Recipe, values: dict[str, Any], key: str) -> str | None:
    """Return why a value is refused, or None; a key that is dropped as foreign is refused too."""
    try:
        result = apply_values(recipe, values)
    except RecipeError as error:
        return str(error).split("\n")[-1].strip()
    found: Any = result.model_dump()
    for part in key.split("."):
        if isinstance(found, tuple):
            found = next((item for number, item in enumerate(found) if part in (str(number), item.get("name"))), {})
        elif isinstance(found, dict) and part in found:
            found = found[part]
        else:
            return "no kind that the space chooses has this key"
    return None


def _shorten(recipe: Recipe, epochs: int) -> Recipe:
    """Return the recipe with its training cut to a share of its longest."""
    share = epochs / longest(recipe)
    short = recipe.model_copy(
        update={"training": recipe.training.model_copy(update={"epochs": math.ceil(recipe.training.epochs * share)})}
    )
    if recipe.finetuning is None or recipe.finetuning.stages is None:
        return short
    stages = tuple(
        stage.model_copy(
            update={
                "max_epochs": math.ceil(stage.max_epochs * share),
                "epochs": stage.epochs and math.ceil(stage.epochs * share),
            }
        )
        for stage in recipe.finetuning.stages
    )
    return short.model_copy(update={"finetuning": recipe.finetuning.model_copy(update={"stages": stages})})
