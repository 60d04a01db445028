"""The contact sheet of a recipe's augmentation."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from PIL import Image

from tlkeras.cli.main import main


def show(*arguments: object):
    return CliRunner().invoke(main, ["--quiet", "show", "augmentation", "mine.yaml", *map(str, arguments)])


def test_a_sheet_is_drawn(workplace):
    policy = (
        "--set",
        "augmentation.policy=rand_augment",
        "--set",
        "augmentation.mixup=0.5",
        "--set",
        "backbone.size=32",
    )
    done = show(*policy, "--set", "augmentation.cutmix=1", "--images", 3, "--views", 4, "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["path"] == "mine-augmentation.png" and (result["images"], result["shown"]) == (3, 4)
    assert result["views"] is None and result["rounds"] == 2 and len(result["operations"]) == 14
    assert {"rotate by ±9", "nothing", "autocontrast", "solarize to 179.2"} <= set(result["operations"])
    with Image.open("mine-augmentation.png") as sheet:
        assert sheet.size[0] > 5 * 60 and sheet.size[1] > 5 * 60
    assert show("--set", "backbone.size=32").exit_code == 0  # a sheet is replaced


def test_operations_are_listed_in_order(workplace):
    done = show("--set", "augmentation.policy=[{flip: both}, {crop: 0.5}, {rotate: 10}]", "--set", "backbone.size=32")
    steps = "flip_horizontal with probability 0.5, then flip_vertical with probability 0.5, then crop to 1...0.5, then"
    assert steps in " ".join(done.stdout.replace("│", " ").split()), done.output
    assert "one of 8 orientations" in show("--set", "augmentation.policy=dihedral", "--set", "backbone.size=32").stdout


@pytest.mark.parametrize("name", ["mine.yaml", "photos"])
def test_other_files_stay(workplace, name):
    done = show("--to", name)
    assert done.exit_code == 6 and "was not drawn by tlkeras" in done.stderr
