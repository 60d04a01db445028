"""The public names: each is there, is documented, has its example run, and costs nothing before it is used."""

import doctest
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import keras
import numpy as np
import pytest

PAGE = (Path(__file__).parent.parent / "docs/python.md").read_text()
ROOMS = ("backbones", "heads", "adaptation", "finetuning", "features", "evaluation", "data")
NAMES = [(room, name) for room in ROOMS for name in import_module(f"tlkeras.{room}").__all__]
VERBS = r"(Return|Get|Compute|Calculate|Create|Make|This|These|A (function|class|method|helper))s?\b"


@pytest.mark.parametrize(("room", "name"), NAMES)
def test_a_public_name_is_there_with_a_docstring_that_begins_with_the_thing(room, name):
    found = getattr(import_module(f"tlkeras.{room}"), name)
    first = (found.__doc__ or "").strip().partition("\n")[0]
    assert re.match(r"[A-Z\d]", first) and len(first) > 20, first
    assert not first.startswith(f"{name}(") and not re.match(VERBS, first), first
    assert found.__name__ == name


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_lists_its_names_and_knows_no_others(room):
    module = import_module(f"tlkeras.{room}")
    assert set(module.__all__) <= set(dir(module)) and list(module.__all__) == sorted(module.__all__)
    with pytest.raises(AttributeError, match=rf"module 'tlkeras.{room}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018


@pytest.mark.parametrize("room", ROOMS)
def test_the_page_lists_exactly_the_public_names(room):
    (row,) = re.findall(rf"^\| `tlkeras\.{room}` \|(.*)\|$", PAGE, flags=re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", row)) == sorted(import_module(f"tlkeras.{room}").__all__)


def test_rooms_import_neither_tensorflow_nor_anything_else_that_is_heavy():
    imports = ", ".join(f"tlkeras.{room}" for room in ROOMS)
    code = f"import sys, {imports}; print(sorted({{'tensorflow', 'keras', 'sklearn', 'numpy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


EXAMPLES = [
    (room, name) for room, name in NAMES if ">>>" in (getattr(import_module(f"tlkeras.{room}"), name).__doc__ or "")
]


@pytest.mark.parametrize(("room", "name"), EXAMPLES)
def test_examples_run(room, name):
    found = getattr(import_module(f"tlkeras.{room}"), name)
    runner = doctest.DocTestRunner()
    for example in doctest.DocTestFinder(recurse=False).find(
        found, name, globs={name: found, "np": np, "keras": keras}
    ):
        runner.run(example)
    assert runner.tries > 0 and runner.failures == 0


def test_there_are_examples():
    assert {"split_images", "make_predictions", "RandomAugmentation", "predict_sets"} <= {name for _, name in EXAMPLES}
