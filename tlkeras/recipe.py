"""A recipe: YAML in, one validated, frozen object out.

There are two layers and no more: the recipe file, and `--set key=value` on top of it. What results is stored in
the run, so that a run can be read without knowing which layer said what.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from tlkeras.document import Document, parse_document, parse_value
from tlkeras.errors import RecipeError, suggest


class Section(BaseModel):
    """What all sections share: unknown keys are refused, values keep their types, nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _check_strength(value: Any) -> Any:
    if value != "auto" and not (type(value) in (int, float) and 0 < value < math.inf):
        raise ValueError(f"it must be 'auto' or a number above 0. Received: {value!r}.")
    return value


def _with_kind(value: Any) -> Any:
    return {"kind": "linear", **value} if isinstance(value, dict) else value


Share = Annotated[float, Field(ge=0, lt=1)]
Names = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]


class Data(Section):
    """Which pictures, which column is the label, and who is held out."""

    source: str = Field(min_length=1)
    label: str | None = None
    weight: str | None = None
    group: str | None = None
    domain: str | None = None
    stratify: Names | None = None
    validation: Share = 0.0
    test: Share = 0.2
    tolerance: Share = 0.25
    resize: Literal["squash", "crop", "pad"] = "squash"
    limit: int | None = Field(default=None, ge=2)
    seed: int = Field(default=0, ge=0, lt=2**32)

    @model_validator(mode="after")
    def _leave_something_to_train_on(self) -> Data:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation + test must be below 1. Received: {self.validation:g} + {self.test:g}.")
        if self.test == 0:
            raise ValueError("test must be above 0, or there is nothing to measure on. Received: 0.")
        return self


class Backbone(Section):
    """Which pretrained network, at which picture size."""

    name: str
    weights: str = "imagenet"
    size: int | None = Field(default=None, ge=1, le=4096)


class Features(Section):
    """Where the backbone is cut, how the map becomes a vector, and which engine computes it."""

    cut: str | int = "last"
    pooling: Literal["average", "max"] = "average"
    precision: Literal["float16", "float32"] = "float32"
    engine: Literal["auto", "openvino", "tensorflow", "keras"] = "auto"
    cache: bool = True


class Linear(Section):
    """Multinomial logistic regression on the cached features."""

    kind: Literal["linear"] = "linear"
    C: Annotated[Literal["auto"] | float, BeforeValidator(_check_strength)] = "auto"
    folds: int = Field(default=5, ge=2)
    class_weight: Literal["none", "balanced"] = "none"


class Deep(Section):
    """A multi-layer perceptron on the cached features."""

    kind: Literal["deep"] = "deep"
    widths: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = (256,)
    dropout: Share = 0.3
    batch_norm: bool = False
    class_weight: Literal["none", "balanced"] = "none"


class Training(Section):
    """How what has no closed form is trained: deep heads. The seed is every head's."""

    epochs: int = Field(default=60, ge=1)
    batch_size: int = Field(default=64, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0, le=10, allow_inf_nan=False)
    weight_decay: float = Field(default=1e-4, ge=0, allow_inf_nan=False)
    patience: int = Field(default=8, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**32)


Head = Annotated[Annotated[Linear | Deep, Field(discriminator="kind")], BeforeValidator(_with_kind)]


class Evaluation(Section):
    """How sure the figures are."""

    bootstrap: int = Field(default=2000, ge=100, le=100_000)
    seed: int = Field(default=0, ge=0, lt=2**32)


class Cache(Section):
    """Where activations are kept, and how much of the disk they may take."""

    root: str | None = None
    budget_gb: float = Field(default=50.0, gt=0, le=1e6, allow_inf_nan=False)


class Recipe(Section):
    """One run, completely described."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$")
    data: Data
    backbone: Backbone
    features: Features = Features()
    mapping: Head = Linear()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    cache: Cache = Cache()


def load_recipe(reference: str, overrides: Mapping[str, Any] | None = None, *, quick: bool = False) -> Recipe:
    """Read a shipped recipe by name, or any recipe by path, and apply the overrides.

    Args:
        reference: The name of a shipped recipe (`quickstart`) or the path of a YAML file.
        overrides: Values by dotted key, such as `{"data.seed": 1}`.
        quick: Shrink the run to seconds: few pictures, small size, few epochs.

    Raises:
        RecipeError: The recipe cannot be found, read or validated; all problems are named at once.
    """
    path = find_recipe(reference)
    document = parse_document(_read_text(path), str(path))
    document.values.setdefault("name", re.sub(r"[^A-Za-z0-9_.-]+", "-", path.stem).strip("-.") or "run")
    for key, value in (overrides or {}).items():
        document.set(key, value)
    recipe = validate(document)
    return shrink(recipe) if quick else recipe


def validate(document: Document) -> Recipe:
    """Turn a parsed document into a Recipe, or raise one RecipeError that names every problem."""
    try:
        return Recipe.model_validate(document.values)
    except ValidationError as error:
        problems = [_explain(problem, document) for problem in error.errors()]
    count = "one problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise RecipeError.from_problems(f"{document.name} has {count}:", problems)


def shrink(recipe: Recipe) -> Recipe:
    """Return the recipe cut down to a run of seconds; its figures mean nothing."""
    return recipe.model_copy(
        update={
            "name": f"{recipe.name}-quick",
            "data": recipe.data.model_copy(update={"limit": min(recipe.data.limit or 96, 96)}),
            "backbone": recipe.backbone.model_copy(update={"size": min(recipe.backbone.size or 96, 96)}),
            "training": recipe.training.model_copy(update={"epochs": min(recipe.training.epochs, 2)}),
            "evaluation": recipe.evaluation.model_copy(update={"bootstrap": 100}),
        }
    )


def list_recipes() -> dict[str, Path]:
    """Return the shipped recipes by name; the folder is the registry."""
    folder = Path(str(files("tlkeras.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_receipt(path: Path) -> list[str]:
    """Return the comment lines that open a recipe: what it does, its command, the score to expect."""
    lines = []
    for line in _read_text(path).splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].removeprefix(" "))
    return lines


def find_recipe(reference: str) -> Path:
    """Return the file of a recipe given by shipped name or by path.

    Raises:
        RecipeError: There is neither; the nearest shipped name is told.
    """
    path = Path(os.path.expanduser(reference))
    if path.suffix in {".yaml", ".yml"} or path.parent != Path():
        if path.is_file():
            return path
        raise RecipeError("A recipe must be a file that exists.", reference, "See `tlkeras ls` for shipped ones.")
    shipped = list_recipes()
    if reference not in shipped:
        raise RecipeError(
            "A recipe is the name of a shipped one or the path of a .yaml file.",
            repr(reference),
            suggest(reference, shipped),
        )
    return shipped[reference]


def parse_overrides(assignments: tuple[str, ...] | list[str]) -> dict[str, Any]:
    """Turn `key=value` texts into values by dotted key; values are read as YAML.

    Raises:
        RecipeError: A text has no `=`, or its value is no YAML; all such texts are named at once.
    """
    overrides, problems = {}, []
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            problems.append(f"{assignment!r} must read key=value, such as data.seed=1")
            continue
        try:
            overrides[key.strip()] = parse_value(text)
        except RecipeError as error:
            problems.append(f"{assignment!r}: {error}")
    if problems:
        raise RecipeError.from_problems("An override cannot be read:", problems)
    return overrides


def dump_recipe(recipe: Recipe) -> str:
    """Return the recipe as YAML that reads back to an equal recipe."""
    plain = json.loads(recipe.model_dump_json())
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)


def fingerprint(recipe: Recipe) -> str:
    """Return a short hash of everything in the recipe but its name (16 hexadecimal digits)."""
    plain = recipe.model_dump_json(exclude={"name"})
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError("A recipe must be a readable UTF-8 text file.", f"{path} ({error})") from None


def _explain(problem: Any, document: Document) -> str:
    """Say one pydantic error in our words: where, the rule, what was received, the nearest name."""
    location = problem["loc"]
    if location[:1] == ("mapping",) and location[1:2] in [(kind,) for kind in _KINDS]:
        location = location[:1] + location[2:]  # pydantic names the chosen kind on the way
    key = ".".join(map(str, location)) or "the recipe"
    line = document.line(location)
    where = f"line {line}: " if line else ""
    kind, received = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        siblings = _fields_beside(location, document)
        return f"{where}unknown key {key!r}. {suggest(str(location[-1]), siblings)}"
    if kind == "missing":
        return f"{where}{key} is missing"
    if kind in {"union_tag_invalid", "union_tag_not_found"}:
        received = received.get("kind") if isinstance(received, dict) else received
        return f"{where}{key}.kind must be one of {', '.join(_KINDS)}. Received: {received!r}. " + suggest(
            str(received), _KINDS
        )
    if kind == "literal_error":
        valid = problem["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return f"{where}{key} must be {problem['ctx']['expected']}. Received: {received!r}. " + suggest(
            str(received), valid
        )
    if kind == "value_error":
        return f"{where}{key}: {problem['ctx']['error']}"
    return f"{where}{key}: {problem['msg'][0].lower()}{problem['msg'][1:]}. Received: {received!r}."


_HEADS: dict[str, type[Section]] = {get_args(head.model_fields["kind"].annotation)[0]: head for head in (Linear, Deep)}
_KINDS = tuple(_HEADS)


def _fields_beside(location: tuple, document: Document) -> list[str]:
    """Return the keys that are valid where an unknown one was found."""
    if len(location) == 1:
        return list(Recipe.model_fields)
    if location[0] == "mapping":
        kind = document.get(("mapping", "kind"))
        return list(_HEADS.get(kind or "linear", Linear).model_fields)
    section = Recipe.model_fields[str(location[0])].annotation
    return list(section.model_fields) if section is not None and hasattr(section, "model_fields") else []
