"""Sizes of images as recipes, commands and runs write them."""

import pytest

from tlkeras.config.image_size import format_size, height_and_width, read_size, scale_size, simplify_size
from tlkeras.config.recipe import load_recipe, parse_overrides, recipe_to_yaml

RECIPE = "data: {source: photos}\nbackbone: {name: tiny, weights: none, size: SIZE}\n"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (224, 224),
        ((224, 320), (224, 320)),
        ([224, 320], (224, 320)),
        ("224x320", (224, 320)),
        ("224 x 320", (224, 320)),
        ((96, 96), 96),
        ("96x96", 96),
        ((64,), 64),
        (None, None),
    ],
)
def test_read_size(given, expected):
    assert read_size(given) == expected


@pytest.mark.parametrize("given", [0, -1, 5000, True, 1.5, "big", "224", "224x", (1, 2, 3), (), (224, "a"), {"a": 1}])
def test_other_sizes_are_refused_with_the_way_out(given):
    with pytest.raises(ValueError, match=r"one number for squares.*or height and width, such as \[224, 320\]"):
        read_size(given)


def test_parts_of_a_size():
    assert height_and_width(7) == (7, 7) and height_and_width((3, 5)) == (3, 5)
    assert simplify_size((4, 4)) == 4 and simplify_size([4, 6]) == (4, 6)
    assert scale_size((224, 320), 0.5) == (112, 160) and scale_size(3, 0.1) == 1
    assert format_size(224) == "224" and format_size((224, 320)) == "224 x 320"


@pytest.mark.parametrize("written", ["[40, 64]", "40x64", '"40 x 64"'])
def test_a_recipe_and_its_copy_have_height_and_width(tmp_path, written):
    (tmp_path / "a.yaml").write_text(RECIPE.replace("SIZE", written))
    recipe = load_recipe(tmp_path / "a.yaml")
    assert recipe.backbone.size == (40, 64)
    (tmp_path / "b.yaml").write_text(recipe_to_yaml(recipe))
    assert load_recipe(tmp_path / "b.yaml").backbone == recipe.backbone
    assert load_recipe(recipe, {"data.seed": 1}).backbone == recipe.backbone


@pytest.mark.parametrize(
    ("text", "size"), [("[40,64]", (40, 64)), ("40x64", (40, 64)), ("[64,64]", 64), ("64", 64), ("null", None)]
)
def test_overrides(tmp_path, text, size):
    (tmp_path / "a.yaml").write_text(RECIPE.replace("SIZE", "32"))
    assert load_recipe(tmp_path / "a.yaml", parse_overrides([f"backbone.size={text}"])).backbone.size == size


def test_a_square_stays_one_number_in_what_is_written(tmp_path):
    (tmp_path / "a.yaml").write_text(RECIPE.replace("SIZE", "64"))
    assert "size: 64\n" in recipe_to_yaml(load_recipe(tmp_path / "a.yaml"))


@pytest.mark.parametrize(
    ("size", "quick"), [("224", 96), ("64", 64), ("[224, 320]", (96, 137)), ("[320, 224]", (137, 96)), ("null", 96)]
)
def test_a_quick_run_keeps_the_shape(tmp_path, size, quick):
    (tmp_path / "a.yaml").write_text(RECIPE.replace("SIZE", size))
    assert load_recipe(tmp_path / "a.yaml", quick=True).backbone.size == quick
