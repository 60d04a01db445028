"""What is installed: recipes inside the wheel, versions that agree."""

import ast
import importlib.util
import re
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

import tlkeras
from tlkeras.config.recipe import list_recipes

ROOT = Path(__file__).parent.parent


def test_version_is_told_once():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert tlkeras.__version__ == config["metadata"]["version"]
    assert f"## {tlkeras.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_recipes_on_disk_are_the_recipes_listed():
    on_disk = {path.stem for path in (ROOT / "recipes").glob("*.yaml")}
    assert set(list_recipes()) == on_disk
    assert len(on_disk) >= 4


def test_every_package_is_listed():
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "tlkeras").rglob("__init__.py")}
    packages = {".".join(folder.parts) for folder in folders} | {"tlkeras.recipes"}
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    assert set(config["options"]["packages"].split()) == packages


def test_every_requirement_says_why():
    """A comment stands above each group of requirements in setup.cfg."""
    text = (ROOT / "setup.cfg").read_text()
    required = text.partition("install_requires =\n")[2].partition("\n\n")[0].splitlines()
    assert required[0].strip().startswith("#")
    assert sum(line.strip().startswith("#") for line in required) >= 8


def test_wheel_holds_recipes_and_nothing_else_of_the_repository(tmp_path):
    source = tmp_path / "source"

    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "recipes", "tlkeras"):
        (source / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"tlkeras/recipes/{name}.yaml" for name in list_recipes()} <= set(names)
    assert {"tlkeras/py.typed", "tlkeras/serving/page.html", "tlkeras/plotting/page.css"} <= set(names)
    files = (ROOT / "tlkeras").rglob("*.*")
    data = [path for path in files if path.suffix in (".csv", ".mplstyle") or path.parent.name == "templates"]
    assert {path.relative_to(ROOT).as_posix() for path in data} <= set(names)
    assert {re.split(r"[/-]", name)[0] for name in names} == {"tlkeras"}


def test_every_verb_is_a_function_of_the_package():
    rooms = {path.name for path in (ROOT / "tlkeras").iterdir() if path.is_dir()}
    for verb in set(tlkeras.__all__) - {"__version__"}:
        assert callable(getattr(tlkeras, verb)), verb
        assert getattr(tlkeras, verb) is getattr(tlkeras, verb), verb
        assert verb not in rooms


@pytest.mark.parametrize("script", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_benchmarks_import_what_there_is(script):
    """What a benchmark takes from the package is there: no other test would notice that it moved."""
    taken = [
        (node.module, name.name)
        for node in ast.walk(ast.parse(script.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tlkeras"
        for name in node.names
    ]
    for module, name in taken:
        assert hasattr(importlib.import_module(module), name) or importlib.util.find_spec(f"{module}.{name}"), name
