"""The README cannot drift: its commands run, and it names every command, recipe, backbone family and source."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from tlkeras.cli.main import main
from tlkeras.config.recipe import list_recipes

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
LINES = re.findall(r"^\$ (tlkeras .*)$", README, flags=re.MULTILINE)


def list_commands(group=main, prefix=()):
    for name, command in sorted(group.commands.items()):
        yield " ".join((*prefix, name)), command
        if hasattr(command, "commands"):
            yield from list_commands(command, (*prefix, name))


COMMANDS = dict(list_commands())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_is_in_the_readme(name):
    command = COMMANDS[name]
    assert command.help
    assert f"tlkeras {name}" in README
    assert all(option.help for option in command.params if option.param_type_name == "option")


def test_readme_names_every_recipe():
    for name in list_recipes():
        assert f"`{name}`" in README, name


def test_readme_has_one_line_to_run_and_one_to_test():
    lines = re.findall(r"^python -m venv .*$", README, flags=re.MULTILINE)
    assert [line.split("&&")[-1].strip() for line in lines] == ["tlkeras train quickstart", "pytest"]


def test_readme_has_no_holes():
    assert not re.search(r"^[A-Z]{5,}$", README, flags=re.MULTILINE)


SMALL = ["--set", "backbone.name=tiny", "--set", "backbone.weights=none"]


@pytest.fixture(scope="module", params=[SMALL, pytest.param([], marks=pytest.mark.slow)], ids=["tiny", "as shipped"])
def newcomer(request, tmp_path_factory, draw_more_photos):
    """What a newcomer's folder holds after the README's first line: a run, an image, class folders."""
    import elpv_dataset

    folder = tmp_path_factory.mktemp("newcomer")
    draw_more_photos(folder / "photos")
    image = Path(elpv_dataset.__file__).parent / "data/images/cell0001.png"
    (folder / "cell.png").write_bytes(image.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert CliRunner().invoke(main, ["train", "quickstart", "--quick", *request.param]).exit_code == 0
        yield folder


@pytest.mark.parametrize("line", LINES)
def test_readme_command_runs(line, newcomer):
    """In order, in one folder; `train` is shrunk to seconds, which shows in the names of runs."""
    arguments = [re.sub(r"^mine-(\d\d)$", r"mine-quick-\1", word) for word in shlex.split(line)[1:]]
    if arguments[0] == "train":
        arguments.append("--quick")
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert done.stdout.strip()


def test_there_are_readme_commands():
    assert len(LINES) >= 12
