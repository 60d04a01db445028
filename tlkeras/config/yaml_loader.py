"""YAML 1.2 without surprises: `1e-4` is a number, `no` a word, keys are unique, and the line of each value is known."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml

from tlkeras.errors import RecipeError

MAX_BYTES = 1_000_000
MAX_VALUES = 10_000
MAX_DEPTH = 20


@dataclass
class YamlDocument:
    """Nested values (mappings, tuples, scalars), with the line of each by its path.

    `texts` are the scalars that were no text to YAML, as they were written.
    """

    name: str
    values: dict[str, Any]
    lines: dict[tuple, int] = field(default_factory=dict)
    texts: dict[tuple, str] = field(default_factory=dict)

    def line(self, path: tuple) -> int | None:
        """Line (from 1) of a value, or of the nearest mapping around it; None for an override."""
        while path:
            if path in self.lines:
                return self.lines[path] or None
            path = path[:-1]
        return None

    def set(self, key: str, value: Any) -> None:
        """Set a value at a dotted key, and make the mappings on its way; RecipeError if it leads through no mapping."""
        *parents, last = path = tuple(key.split("."))
        target = self.values
        for depth, part in enumerate(parents, 1):
            if target.get(part) is None:
                target[part] = {}
            target = target[part]
            if not isinstance(target, dict):
                inside = ".".join(parents[:depth])
                raise RecipeError(f"{inside} is a value and has no keys inside.", f"--set {key}")
        target[last] = to_immutable(value)
        self.lines[path] = 0
        self.texts = {place: text for place, text in self.texts.items() if place[: len(path)] != path}


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core types: no octal, sexagesimal, date or yes/no surprises."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012  (as PyYAML declares it)


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))

NULLS = ("", "~", "null", "Null", "NULL")
_BLOCKS = ("|", ">")  # they open a block of text; with nothing in it they were meant themselves
_SCALARS: dict[str, Callable[[str], Any]] = {
    "bool": lambda text: text.lower() == "true",
    "int": int,
    "float": lambda text: float(text.replace(".inf", "inf").replace(".nan", "nan")),
    "null": lambda text: None,
    "str": str,
}


def load_yaml(text: str, name: str) -> YamlDocument:
    """The document of a YAML mapping; RecipeError if it is too large, no mapping, or has repeated keys or tags."""
    node = _compose(text, name)
    if not isinstance(node, yaml.MappingNode):
        kind = "nothing" if node is None else "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        raise RecipeError(f"{name} is not a mapping of keys to values.", kind)
    builder = _YamlConstructor()
    values = builder.build(node, ())
    if builder.problems:
        raise RecipeError.from_problems(f"{name} cannot be read:", builder.problems)
    return YamlDocument(name, values, builder.lines, builder.texts)


def parse_value(text: str) -> tuple[Any, dict[tuple, str]]:
    """One YAML value, such as the right side of `--set key=value`, and its `texts`; an empty text is None."""
    node = _compose(text, "the value")
    builder = _YamlConstructor()
    value = None if node is None else builder.build(node, ())
    if builder.problems:
        raise RecipeError(builder.problems[0])
    return value, builder.texts


def _compose(text: str, name: str) -> yaml.Node | None:
    if len(text) > MAX_BYTES:
        raise RecipeError(f"{name} is larger than {MAX_BYTES:,} characters.", f"{len(text):,}")
    try:
        return yaml.compose(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise RecipeError(f"{name} is not valid YAML{where}.", reason) from None


class _YamlConstructor:
    """Builds plain values from YAML nodes, bounded in number and depth so that aliases cannot explode."""

    def __init__(self) -> None:
        self.lines: dict[tuple, int] = {}
        self.texts: dict[tuple, str] = {}
        self.problems: list[str] = []
        self.count = 0

    def build(self, node: yaml.Node, path: tuple) -> Any:
        self.count += 1
        if self.count > MAX_VALUES or len(path) > MAX_DEPTH:
            limits = f"{MAX_VALUES:,} values or {MAX_DEPTH} levels"
            raise RecipeError(f"A recipe has more than {limits}, aliases expanded.")
        self.lines.setdefault(path, node.start_mark.line + 1)
        tag = node.tag.removeprefix("tag:yaml.org,2002:")
        if tag not in {*_SCALARS, "map", "seq"}:
            self.problems.append(f"line {node.start_mark.line + 1}: the tag {node.tag!r} is not allowed")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return tuple(self.build(item, (*path, index)) for index, item in enumerate(node.value))
        style = getattr(node, "style", None)
        if tag != "str" or (style in _BLOCKS and not node.value):
            self.texts[path] = node.value or style or ""
        return self._scalar(node, tag)

    def _mapping(self, node: yaml.MappingNode, path: tuple) -> dict[str, object]:
        values: dict[str, object] = {}
        for key_node, value_node in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in values:
                first = self.lines[(*path, key)]
                self.problems.append(f"line {line}: key {'.'.join((*path, key))!r} repeats line {first}")
                continue
            self.lines[(*path, key)] = line
            values[key] = self.build(value_node, (*path, key))
        return values

    def _scalar(self, node: yaml.Node, tag: str) -> Any:
        try:
            return _SCALARS[tag](node.value)
        except ValueError:
            self.problems.append(f"line {node.start_mark.line + 1}: {node.value!r} is no {tag}")
            return None


def to_immutable(value: Any) -> Any:
    """The value with tuples for lists and copies of mappings, as the parser gives them."""
    if isinstance(value, dict):
        return {str(key): to_immutable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(to_immutable(item) for item in value)
    return value
