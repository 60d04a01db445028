"""YAML 1.2 values, lines, and what is refused."""

import pytest

from tlkeras.config.yaml_loader import MAX_BYTES, load_yaml, parse_value
from tlkeras.errors import RecipeError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("3E5", 3e5),
        ("-.5", -0.5),
        ("1.", 1.0),
        ("7", 7),
        ("-7", -7),
        ("0x10", "0x10"),
        ("12:30", "12:30"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"),
        ("'1e-4'", "1e-4"),
        ("[1, 2]", (1, 2)),
        ("{a: 1e3}", {"a": 1e3}),
    ],
)
def test_values_of_yaml_1_2(text, value):
    got, _ = parse_value(text)
    assert got == value
    assert type(got) is type(value)


def test_lines_are_known():
    document = load_yaml("a: 1\nb:\n  c: 2\n  d: [3,\n   4]\n", "x")
    assert [document.line(path) for path in [("a",), ("b", "c"), ("b", "d", 1), ("b", "nothing")]] == [1, 3, 5, 2]


def test_set_makes_the_way_and_forgets_the_line():
    document = load_yaml("a: 1\n", "x")
    document.set("b.c", [1, 2])
    assert document.values == {"a": 1, "b": {"c": (1, 2)}}
    assert document.line(("b", "c")) is None
    with pytest.raises(RecipeError, match="a is a value and has no keys inside"):
        document.set("a.b", 1)


BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{name}: &{name} [{','.join('*' + before for _ in range(10))}]\n"
    for before, name in zip("abcd", "bcde", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a: 1\na: 2\nb: {c: 1, c: 2}",
            r"line 2: key 'a' repeats line 1\n.*line 3: key 'b.c' repeats line 3",
        ),
        ("a: !!python/object/apply:os.system [ls]", "line 1: the tag .* is not allowed"),
        ("a: !secret x", "line 1: the tag '!secret' is not allowed"),
        (BOMB, "more than 10,000 values"),
        ("a: &a [*a]", "20 levels, aliases expanded"),
        ("a:\n\t- 1", r"is not valid YAML \(line 2\)"),
        ("[1, 2]", "is not a mapping of keys to values. Received: a list"),
        ("", "is not a mapping of keys to values. Received: nothing"),
        ("a: " + "x" * MAX_BYTES, "is larger than 1,000,000 characters"),
        ("[" * 5000, "is not valid YAML"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(RecipeError, match=message):
        load_yaml(text, "x.yaml")
