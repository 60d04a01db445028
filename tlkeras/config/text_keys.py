"""Keys that take text get the text as it was written: a column 2024, a folder `yes: no`, a separator `|`."""

from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from tlkeras.config.schema import ConfigSection, Recipe
from tlkeras.config.yaml_loader import NULLS, parse_value
from tlkeras.errors import RecipeError

_QUOTES = ("'", '"')

Path = tuple[str | int, ...]


def parse_override(key: str, text: str) -> Any:
    """The value of `--set key=text`: the text itself where the key takes one, and else what YAML reads in it.

    Text may also stand in YAML's quotes, names in a YAML list, and `null` or nothing where the key may be unset.
    """
    path = tuple(key.split("."))
    kinds = _find_kinds(path)
    if not _are_text(kinds) or _is_yaml(text, kinds):
        value, texts = parse_value(text)
        return restore_texts(value, texts, path)
    return text


def restore_texts(value: Any, texts: Mapping[Path, str], key: Path = (), inside: Path = ()) -> Any:
    """A parsed value, in which keys that take text have the text from which YAML read a number, a truth or nothing.

    Args:
        texts: What was written, by the place in the value.
        key: The place of the value in a recipe.
        inside: The place in the value that `texts` speak of.
    """
    if isinstance(value, dict):
        return {name: restore_texts(item, texts, key, (*inside, name)) for name, item in value.items()}
    if isinstance(value, tuple):
        return tuple(restore_texts(item, texts, key, (*inside, index)) for index, item in enumerate(value))
    kinds = _find_kinds((*key, *inside)) if inside in texts else []
    if not _are_text(kinds) or (value is None and NoneType in kinds):
        return value
    return texts[inside]


def _is_yaml(text: str, kinds: Sequence[Any]) -> bool:
    """Whether the text of a key that takes text is written as YAML: unset, in quotes, or a list of names."""
    if text in NULLS and NoneType in kinds:
        return True
    if text.startswith(_QUOTES):
        try:
            return isinstance(parse_value(text)[0], str) and text.rstrip().endswith(text[0])
        except RecipeError:
            return False
    return text.lstrip().startswith("[") and any(get_origin(kind) is tuple for kind in kinds)


def _are_text(kinds: Sequence[Any]) -> bool:
    """Whether values of these types are text or names, and nothing else but None."""
    given = [kind for kind in kinds if kind is not NoneType]
    return bool(given) and all(kind is str or kind == tuple[str, ...] for kind in given)


def _find_kinds(path: Path) -> list[Any]:
    """The types of the values that the schema has at a place of a recipe; none if there is no such key."""
    kinds: list[Any] = [Recipe]
    if path[:2] == ("tuning", "space") and isinstance(path[-1], int):  # one of the values that a search tries
        path = tuple(str(path[2]).split("."))
    for part in path:
        kinds = [member for kind in kinds for inner in _open(kind, part) for member in _list_members(inner)]
    return kinds


def _open(kind: Any, part: str | int) -> list[Any]:
    """The type of a value's part: the field of a section, the item of a list, the value of a mapping."""
    if isinstance(kind, type) and issubclass(kind, ConfigSection):
        return [field.annotation for name, field in kind.model_fields.items() if name == part]
    if get_origin(kind) is tuple and isinstance(part, int):
        return [get_args(kind)[0]]
    return [get_args(kind)[1]] if get_origin(kind) is dict else []


def _list_members(annotation: Any) -> list[Any]:
    """The types of a union, without what pydantic adds to them."""
    if get_origin(annotation) is Annotated:
        return _list_members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [member for one in get_args(annotation) for member in _list_members(one)]
    return [annotation]
