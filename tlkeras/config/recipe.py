"""A recipe: YAML in, and `--set key=value` on top of it; one validated, frozen object out, which the run stores."""

import hashlib
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from importlib.resources import files
from itertools import takewhile
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from tlkeras.config.frames import is_frame, save_frame
from tlkeras.config.image_size import ImageSize, height_and_width, scale_size
from tlkeras.config.schema import ConfigSection, EvaluationConfig, Recipe, Stage
from tlkeras.config.text_keys import parse_override, restore_texts
from tlkeras.config.yaml_loader import YamlDocument, load_yaml
from tlkeras.errors import RecipeError, ResourceError, suggest

_QUICK_SIDE = 96  # pixels
RENAMED = {
    "mapping": "head",
    "domains": "domain_adaptation",
    "keep_source": "regularizer",
    "average": "ema",
    "accumulate": "gradient_accumulation_steps",
    "clip_norm": "global_clipnorm",
    "balanced": "balanced_sampling",
    "backbone_ratio": "backbone_lr_multiplier",
    "tolerance": "split_tolerance",
    "place": "device",
    "feed": "data_service",
    "bootstrap": "bootstrap_samples",
    "finalists": "confirm_top",
    "seeds": "confirm_seeds",
    "squash": "stretch",
    "number": "regression",
    "labels": "multilabel",
}
"""From each former word of a recipe to the present one, which the refusal of the former suggests."""

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".jsonl", ".ndjson")


def load_recipe(
    reference: str | Path | Recipe, overrides: Mapping[str, Any] | None = None, *, quick: bool = False
) -> Recipe:
    """A shipped recipe by name (`quickstart`), a YAML file by path, or a given recipe, with the overrides applied.

    A RecipeError names all problems at once.

    Args:
        overrides: Values by dotted key, such as `{"data.seed": 1}`; `data.source` may be a table in memory.
        quick: Shrink the run to seconds: few images, small size, few epochs.
    """
    if isinstance(reference, Recipe):
        if not overrides:
            return make_quick_recipe(reference) if quick else reference
        document = load_yaml(recipe_to_yaml(reference), reference.name)
    else:
        path = find_recipe(str(reference))
        document = load_yaml(_read_text(path), str(path))
        document.values.setdefault("name", re.sub(r"[^A-Za-z0-9_.-]+", "-", path.stem).strip("-.") or "run")
    for key, value in _name_frame(document, overrides or {}).items():
        document.set(key, os.fspath(value) if isinstance(value, os.PathLike) else value)
    recipe = validate(document)
    return make_quick_recipe(recipe) if quick else recipe


def _name_frame(document: YamlDocument, overrides: Mapping[str, Any]) -> Mapping[str, Any]:
    """Overrides in which a table in memory is a file, whose relative paths start from the working directory."""
    frame = overrides.get("data.source")
    if not is_frame(frame):
        return overrides
    root = overrides.get("data.root") or (document.values.get("data") or {}).get("root") or ""
    return {**overrides, "data.source": save_frame(frame), "data.root": os.path.abspath(os.path.expanduser(root))}


def bootstrap_options(reference: str | Path | Recipe) -> EvaluationConfig:
    """The number and the seed of the bootstrap resamples that a recipe sets."""
    return load_recipe(reference).evaluation


def validate(document: YamlDocument) -> Recipe:
    """The recipe of a parsed document; one RecipeError names every problem."""
    try:
        return Recipe.model_validate(restore_texts(document.values, document.texts))
    except ValidationError as error:
        problems = [_explain(problem, document) for problem in error.errors()]
    count = "one problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise RecipeError.from_problems(f"{document.name} has {count}:", problems)


def validate_values(values: Mapping[str, Any], name: str) -> Recipe:
    """The recipe of nested values; one RecipeError names every problem."""
    return validate(YamlDocument(name, dict(values)))


def make_quick_recipe(recipe: Recipe) -> Recipe:
    """The recipe reduced to a run of seconds, to try it; its metrics mean nothing."""
    short = Stage(name="quick", unfreeze=1, epochs=1)
    return recipe.model_copy(
        update={
            "finetuning": recipe.finetuning and recipe.finetuning.model_copy(update={"stages": (short,)}),
            "name": f"{recipe.name}-quick",
            "data": recipe.data.model_copy(update={"limit": min(recipe.data.limit or 96, 96)}),
            "backbone": recipe.backbone.model_copy(update={"size": _make_quick_size(recipe.backbone.size)}),
            "training": recipe.training.model_copy(update={"epochs": min(recipe.training.epochs, 2)}),
            "evaluation": recipe.evaluation.model_copy(update={"bootstrap_samples": 100}),
        }
    )


def _make_quick_size(size: ImageSize | None) -> ImageSize:
    """A shorter side of at most 96 pixels."""
    shorter = min(height_and_width(size or _QUICK_SIDE))
    return scale_size(size or _QUICK_SIDE, min(1.0, _QUICK_SIDE / shorter))


def list_recipes() -> dict[str, Path]:
    """The shipped recipes by name; the folder is the registry."""
    folder = Path(str(files("tlkeras.recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_header(path: Path) -> list[str]:
    """The comment lines at the top of a recipe: what it does, its command, the score to expect."""
    comments = takewhile(lambda line: line.startswith("#"), _read_text(path).splitlines())
    return [line[1:].removeprefix(" ") for line in comments]


def find_recipe(reference: str) -> Path:
    """The file of a recipe given by shipped name or by path; RecipeError with the nearest name if there is none."""
    shipped, path = list_recipes(), Path(os.path.expanduser(reference))
    if reference in shipped:
        return shipped[reference]
    if path.is_dir() or (path.is_file() and path.suffix.lower() in TABLE_SUFFIXES):
        command = f"tlkeras train {shlex.quote(reference)}"
        raise RecipeError(
            f"No recipe called {reference!r}.", way_out=f"It is a source of images: did you mean `{command}`?"
        )
    if path.suffix not in {".yaml", ".yml"} and path.parent == Path():
        raise RecipeError(f"No recipe called {reference!r}.", way_out=suggest(reference, shipped))
    if not path.is_file():
        raise RecipeError(f"{reference} does not exist.", way_out="See `tlkeras ls` for shipped recipes.")
    return path


def copy_recipe(recipe: str, target: str | Path, data: str | None = None) -> Path:
    """The path of a new file with a recipe as it is installed, or with other images as its `data.source`.

    RecipeError if the target exists; ResourceError if it cannot be written.
    """
    source, path = find_recipe(recipe), Path(target)
    if path.is_dir():
        path = path / source.name
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(_replace_source(source.read_text(encoding="utf-8"), data))
    except FileExistsError:
        raise RecipeError(f"{path} already exists; tlkeras never overwrites a recipe.") from None
    except OSError as error:
        path.unlink(missing_ok=True)  # a part that a full disk left
        raise ResourceError(f"Cannot write {path}: {error.strerror}.") from None
    return path


def _replace_source(text: str, data: str | None) -> str:
    """The text of a recipe with another source, all else and its comments as they were."""
    if data is None:
        return text
    return re.sub(
        r"(?m)^(  source:).*$", lambda found: f"{found[1]} {json.dumps(data, ensure_ascii=False)}", text, count=1
    )


def parse_overrides(assignments: tuple[str, ...] | list[str]) -> Mapping[str, Any]:
    """Values by dotted key from `key=value` texts: text for keys that take text, and else read as YAML.

    A RecipeError has all texts without `=`, or whose value is no YAML. Blanks around the `=` are left out.
    """
    overrides, problems = {}, []
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            problems.append(f"{assignment!r} is not key=value, such as data.seed=1")
            continue
        try:
            overrides[key.strip()] = parse_override(key.strip(), text.lstrip() if key != key.rstrip() else text)
        except RecipeError as error:
            problems.append(f"{assignment!r}: {error}")
    if problems:
        raise RecipeError.from_problems("An override cannot be read:", problems)
    return overrides


def recipe_to_yaml(recipe: Recipe) -> str:
    """The recipe as YAML that reads back to an equal recipe."""
    return yaml.safe_dump(json.loads(recipe.model_dump_json()), sort_keys=False, allow_unicode=True)


def fingerprint(recipe: Recipe) -> str:
    """Hash of everything in the recipe but its name, 16 hexadecimal digits."""
    return hashlib.sha256(recipe.model_dump_json(exclude={"name"}).encode()).hexdigest()[:16]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read as UTF-8 text.", error) from None


def _explain(problem: Any, document: YamlDocument) -> str:
    """A pydantic error as a sentence: line, key, what is wrong, the value received, the nearest name."""
    location, valid = _resolve_location(problem["loc"], document)
    key = ".".join(map(str, location)) or "the recipe"
    line = document.line(location)
    where = f"line {line}: " if line else ""
    kind, received = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        return f"{where}unknown key {key!r}. {_suggest(location[-1], valid)}"
    if kind == "missing":
        return f"{where}{key} is missing"
    if kind == "union_tag_invalid":
        kinds = problem["ctx"]["expected_tags"].replace("'", "").split(", ")
        return f"{where}unknown {key}.kind {received['kind']!r}. {_suggest(received['kind'], kinds)}"
    if kind == "literal_error":
        choices = problem["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        return f"{where}unknown {key} {received!r}. {_suggest(received, choices)}"
    if kind == "value_error":
        return f"{where}{key}: {problem['ctx']['error']}"
    return f"{where}{key}: {problem['msg'][0].lower()}{problem['msg'][1:]}. Received: {received!r}."


def _suggest(word: Any, valid: list[str]) -> str:
    """A sentence with the valid word nearest to one that was given, or with the present word for a former one."""
    new = RENAMED.get(str(word))
    return f"Did you mean {new!r}?" if new in valid else suggest(str(word), valid)


def _resolve_location(location: tuple, document: YamlDocument) -> tuple[tuple, list[str]]:
    """The place of a problem, without the kinds that pydantic adds to it, and the keys valid there."""
    path: list[Any] = []
    sections: list[type[ConfigSection]] = [Recipe]
    for part in location:
        if len(sections) > 1 and part in {_kind_of(section) for section in sections}:
            sections = [section for section in sections if _kind_of(section) == part]
            continue
        path.append(part)
        fields = {name: field for section in sections for name, field in section.model_fields.items()}
        if part in fields and part is not location[-1]:
            sections = list(_find_sections((fields[part].annotation, *fields[part].metadata)))
    return tuple(path), [name for section in sections for name in section.model_fields]


def _find_sections(annotation: Any) -> Iterator[type[ConfigSection]]:
    if isinstance(annotation, type) and issubclass(annotation, ConfigSection):
        yield annotation
    for part in annotation if isinstance(annotation, tuple) else get_args(annotation):
        yield from _find_sections(part)


def _kind_of(section: type[ConfigSection]) -> str | None:
    field = section.model_fields.get("kind")
    return field.default if field else None
