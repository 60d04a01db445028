"""The search space of a recipe: checked, and as KerasTuner's hyperparameters and back."""

import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from tlkeras.config.recipe import Recipe
from tlkeras.config.schema.tuning import SearchDimension, TuningConfig
from tlkeras.config.trials import RecipeValues, apply_values, chooses_stages, require_tuning
from tlkeras.errors import RecipeError

_MOST_BOUNDARIES = 256


def check_space(recipe: Recipe) -> TuningConfig:
    """A recipe's section `tuning`; RecipeError with all problems if there is none, or values make no valid recipe."""
    tuning = require_tuning(recipe)
    problems = []
    kinds = {key: dimension for key, dimension in tuning.space.items() if key.endswith(".kind")}
    combinations = itertools.product(*(dimension.ends() for dimension in kinds.values()))
    settings = [dict(zip(kinds, chosen, strict=True)) for chosen in combinations]
    for key, dimension in tuning.space.items():
        for value in dimension.ends():
            refusals = [_find_refusal(recipe, {**setting, key: value}, key) for setting in settings]
            if all(refusals):
                problems.append(f"{key} = {value!r}: {refusals[0]}")
    if tuning.algorithm == "hyperband" and chooses_stages(recipe):
        problems.append("hyperband divides epochs, which finetuning.stages: auto leaves open: write the stages down")
    if problems:
        raise RecipeError.from_problems(f"The search space of {recipe.name} has problems:", problems)
    return tuning


def boundary_recipes(recipe: Recipe) -> Iterator[Recipe]:
    """Valid recipes at the ends of the space, of its keys below `finetuning`, `backbone`, `features` and `data`.

    They need all frozen work that any trial needs.
    """
    space = require_tuning(recipe).space
    frozen = {k: d for k, d in space.items() if k.split(".")[0] in ("finetuning", "backbone", "features", "data")}
    combinations = itertools.product(*(_list_boundaries(dimension) for dimension in frozen.values()))
    for chosen in itertools.islice(combinations, _MOST_BOUNDARIES):
        try:
            yield apply_values(recipe, dict(zip(frozen, chosen, strict=True)))
        except RecipeError:
            continue


def declare(tuning: TuningConfig, space: Any) -> Any:
    """The given `keras_tuner.HyperParameters` with the space declared; values that they have already are kept."""
    for key, dimension in tuning.space.items():
        if dimension.values is not None:
            plain = all(type(value) in (int, float) for value in dimension.values)
            ordered = plain and len({type(value) for value in dimension.values}) == 1
            values = list(dimension.values) if ordered else [json.dumps(value) for value in dimension.values]
            space.Choice(key, values, ordered=ordered)
            continue
        make = space.Int if dimension.whole else space.Float
        options = {} if dimension.step is None else {"step": dimension.step}
        make(key, dimension.min, dimension.max, sampling=dimension.sampling, **options)
    return space


def read_values(tuning: TuningConfig, values: Mapping[str, Any]) -> RecipeValues:
    """The values of a recipe from those of KerasTuner, its own `tuner/...` ones among them."""
    return {
        key: json.loads(value) if key in tuning.space and isinstance(value, str) else value
        for key, value in values.items()
    }


def _list_boundaries(dimension: SearchDimension) -> tuple[Any, ...]:
    """All whole numbers of a short range, else its ends, or all values of a list."""
    if dimension.values is None and dimension.whole:
        low, high, step = (int(value) for value in (dimension.min or 0, dimension.max or 0, dimension.step or 1))
        if dimension.sampling == "linear" and (high - low) // step < 32:
            return tuple(range(low, high + 1, step))
    return dimension.ends()


def _find_refusal(recipe: Recipe, values: RecipeValues, key: str) -> str | None:
    """Why a value is refused, or None; a key that is left out as foreign is refused too."""
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
