"""Recipes: read, overridden, validated, resolved."""

import pytest

from tlkeras.config.recipe import (
    Recipe,
    copy_recipe,
    find_recipe,
    fingerprint,
    list_recipes,
    load_recipe,
    parse_overrides,
    read_header,
    recipe_to_yaml,
)
from tlkeras.errors import RecipeError

GOOD = "data: {source: photos}\nbackbone: {name: tiny, weights: none}\n"


@pytest.fixture
def write(tmp_path):
    def _write(text, name="mine.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return _write


def test_every_shipped_recipe_is_valid_and_has_a_header():
    shipped = list_recipes()
    assert {"quickstart", "linear_probe", "deep_head", "elpv_paper"} <= set(shipped)
    for name, path in shipped.items():
        recipe = load_recipe(name)
        header = "\n".join(read_header(path))
        assert recipe.name == name
        assert f"tlkeras train {name}" in header
        assert "Expect" in header


def test_resolved_recipe_reads_back_equal(write):
    recipe = load_recipe("elpv_paper", {"data.seed": 3, "head.C": 0.01})
    again = load_recipe(write(recipe_to_yaml(recipe)))
    assert again == recipe
    assert fingerprint(again) == fingerprint(recipe)
    assert fingerprint(load_recipe("elpv_paper")) != fingerprint(recipe)


def test_name_comes_from_the_file(write):
    assert load_recipe(write(GOOD, "solar.yaml")).name == "solar"
    assert load_recipe(write(GOOD, "my recipe (1).yaml")).name == "my-recipe-1"
    assert load_recipe(write(GOOD, "é.yaml")).name == "run"


def test_recipe_is_frozen(write):
    recipe = load_recipe(write(GOOD))
    with pytest.raises(ValueError, match="frozen"):
        recipe.data.seed = 2


def test_numbers_without_a_point_are_numbers(write):
    recipe = load_recipe(write(GOOD + "head: {kind: deep}\ntraining: {learning_rate: 1e-4}"))
    assert recipe.training.learning_rate == 1e-4


def test_all_problems_at_once_with_lines_and_nearest_names(write):
    text = (
        "data:\n  sorce: photos\n  test: 1.5\n"
        "backbone: {name: tiny, size: '64'}\n"
        "head: {kind: deep, droput: 0.5}\n"
        "features: {pooling: avg, cache: 3}\n"
        "trainin: {}\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(text))
    message = str(caught.value)
    for part in [
        "8 problems",
        "data.source is missing",
        "line 2: unknown key 'data.sorce'. Did you mean 'source'?",
        "line 3: data.test",
        "line 4: backbone.size",
        "line 5: unknown key 'head.droput'. Did you mean 'dropout'?",
        "unknown features.pooling 'avg'. Did you mean 'average'?",
        "line 6: features.cache",
        "line 7: unknown key 'trainin'. Did you mean 'training'?",
    ]:
        assert part in message


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "head.kind",
            "liner",
            r"unknown head.kind 'liner'. Did you mean 'linear'\?",
        ),
        ("head.epochs", 3, "unknown key 'head.epochs'"),
        ("training.epochs", 0, "greater than or equal to 1. Received: 0"),
        ("training.batch_size", 0, "greater than or equal to 1"),
        ("training.learning_rate", -1.0, "greater than 0"),
        ("training.learning_rate", float("nan"), "training.learning_rate"),
        ("training.learning_rate", float("inf"), "training.learning_rate"),
        ("data.validation", 0.9, r"validation 0.9 \+ test 0.2 leave no training images"),
        ("data.test", 0.0, "leaves no images to evaluate on"),
        ("data.source", "", "at least 1 character"),
        ("data.seed", 1.5, "valid integer"),
        ("data.seed", True, "valid integer"),
        ("head", 3, "head"),
        ("name", "../evil", "name"),
        ("name.x", 1, "name is a value and has no keys inside"),
        ("nonsense", 1, "unknown key 'nonsense'"),
        ("cache.budget_gb", 0.0, "greater than 0"),
        ("cache.budget_gb", float("inf"), "finite number"),
        ("head.C", 0, "head.C: take 'auto' or a number above 0. Received: 0."),
        ("head.C", float("inf"), "take 'auto' or a number above 0"),
        ("head.C", "strong", "take 'auto' or a number above 0. Received: 'strong'"),
        ("training.seed", 2**32, "less than"),
        ("deep", 1, "unknown key 'deep'"),
        ("linear", 3, "unknown key 'linear'"),
        ("data.deep", 1, "unknown key 'data.deep'"),
        ("backbone.size", 100_000, "of 1 to 4096 pixels each. Received: 100000."),
        ("features.batch_size", 8, "unknown key 'features.batch_size'"),
    ],
)
def test_bad_override(write, key, value, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(GOOD), {key: value})


def test_overrides_from_texts():
    assert parse_overrides(["data.seed=1", "a=1e-4", "b=x=y", "c=[p, q]"]) == {
        "data.seed": 1,
        "a": 1e-4,
        "b": "x=y",
        "c": ("p", "q"),
    }
    with pytest.raises(RecipeError, match=r"(?s)'data.seed' is not key=value.*'=3' is not.*'c=\[1'"):
        parse_overrides(["data.seed", "=3", "c=[1"])


def test_a_missing_recipe_is_named_with_the_nearest(tmp_path, monkeypatch):
    with pytest.raises(RecipeError, match=r"^No recipe called 'quickstrt'. Did you mean 'quickstart'\?"):
        load_recipe("quickstrt")
    with pytest.raises(RecipeError, match="^nowhere/mine.yaml does not exist. See `tlkeras ls`"):
        load_recipe("nowhere/mine.yaml")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for folder in ("photos", "photos/"):
        with pytest.raises(RecipeError) as caught:
            load_recipe(folder)
        command = f"tlkeras train {folder}"
        assert str(caught.value) == f"No recipe called {folder!r}. It is a source of images: did you mean `{command}`?"


def test_a_recipe_is_never_overwritten(tmp_path):
    path = copy_recipe("quickstart", tmp_path)
    assert path.read_text() == find_recipe("quickstart").read_text()
    with pytest.raises(RecipeError, match="quickstart.yaml already exists; tlkeras never overwrites a recipe"):
        copy_recipe("quickstart", tmp_path)


def test_a_kind_that_is_like_no_other_lists_all_once(write):
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(GOOD), {"head.kind": "xyz"})
    assert str(caught.value).count("transformer") == 1


def test_recipe_file_that_is_no_text(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe\x00data")
    with pytest.raises(RecipeError, match="cannot be read as UTF-8 text"):
        load_recipe(str(path))


def test_byte_order_mark_is_no_key(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_recipe(str(path)).data.source == "photos"


def test_quick_shrinks_every_recipe():
    for name in list_recipes():
        quick = load_recipe(name, quick=True)
        assert quick.name == f"{name}-quick"
        assert quick.data.limit <= 96
        assert quick.backbone.size <= 96
        assert quick.training.epochs <= 2


def test_every_key_is_named_in_the_documentation():
    from pathlib import Path

    text = (Path(__file__).parent.parent.parent / "README.md").read_text()
    for section, field in Recipe.model_fields.items():
        assert f"`{section}" in text, section
        annotation = field.annotation
        for key in getattr(annotation, "model_fields", {}):
            assert f"`{key}`" in text, f"{section}.{key}"


@pytest.mark.parametrize(
    ("key", "new"),
    [
        ("mapping.kind", "head"),
        ("domains.method", "domain_adaptation"),
        ("finetuning.keep_source", "regularizer"),
        ("finetuning.average", "ema"),
        ("finetuning.accumulate", "gradient_accumulation_steps"),
        ("finetuning.clip_norm", "global_clipnorm"),
        ("finetuning.balanced", "balanced_sampling"),
        ("data.tolerance", "split_tolerance"),
        ("augmentation.place", "device"),
        ("training.feed", "data_service"),
        ("evaluation.bootstrap", "bootstrap_samples"),
        ("tuning.finalists", "confirm_top"),
        ("tuning.seeds", "confirm_seeds"),
    ],
)
def test_an_old_key_gets_the_new_one_as_suggestion(write, key, new):
    with pytest.raises(RecipeError, match=f"Did you mean '{new}'"):
        load_recipe(write(GOOD), {key: 1})


def test_old_values_get_the_new_ones_as_suggestion(write):
    with pytest.raises(RecipeError, match="Did you mean 'stretch'"):
        load_recipe(write(GOOD), {"data.resize": "squash"})
    with pytest.raises(RecipeError, match="Did you mean 'regression'"):
        load_recipe(write(GOOD), {"data.tasks": {"a": {}, "age": {"kind": "number"}}})
    stages = [{"name": "a", "unfreeze": 1, "epochs": 1, "backbone_ratio": 1.0}]
    with pytest.raises(RecipeError, match="Did you mean 'backbone_lr_multiplier'"):
        load_recipe(write(GOOD), {"finetuning.stages": stages})


@pytest.mark.parametrize("key", ["head", "finetuning.loss", "finetuning.regularizer"])
def test_a_word_alone_is_the_kind(key):
    word = {"head": "deep", "finetuning.loss": "focal", "finetuning.regularizer": "bss"}[key]
    assert load_recipe("fine_tune", {key: word}) == load_recipe("fine_tune", {key: {"kind": word}})
    with pytest.raises(RecipeError, match=f"unknown {key}.kind 'nothing'"):
        load_recipe("fine_tune", {key: "nothing"})
