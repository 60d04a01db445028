"""What a search varies: any recipe key, checked before work starts."""

import pytest

from tlkeras.config.recipe import validate_values
from tlkeras.errors import RecipeError
from tlkeras.tuning.search import check_space
from tlkeras.tuning.space import apply_values, boundary_recipes, make_hyperparameters, read_values

BASE = {"name": "mine", "data": {"source": "photos"}, "backbone": {"name": "tiny", "weights": "none"}}
STAGES = ({"name": "head", "unfreeze": 0, "epochs": 2}, {"name": "top", "unfreeze": 1, "epochs": 9})


def make(space, **sections):
    return validate_values({**BASE, **sections, "tuning": {"space": space}}, "mine.yaml")


def test_values_are_put_under_dotted_keys():
    recipe = make({"training.epochs": (3, 4)}, finetuning={"stages": STAGES})
    found = apply_values(
        recipe,
        {
            "training.learning_rate": 0.5,
            "finetuning.stages.top.layer_decay": 0.5,
            "finetuning.stages.0.learning_rate": 0.25,
            "augmentation.policy": "flip",
        },
    )
    assert found.training.learning_rate == 0.5
    assert [stage.layer_decay for stage in found.finetuning.stages] == [1.0, 0.5]
    assert found.finetuning.stages[0].learning_rate == 0.25
    assert found.augmentation.policy == "flip"
    assert found.tuning is None
    assert found.data.validation == 0.2  # a search measures on a validation split, also where the recipe has none


def test_a_kind_takes_only_its_own_keys_along():
    recipe = make({"head.kind": ("linear", "deep")}, mapping={"kind": "deep", "widths": (8,)})
    assert apply_values(recipe, {"head.kind": "linear", "head.dropout": 0.1}).mapping.kind == "linear"
    assert apply_values(recipe, {"head.kind": "deep", "head.dropout": 0.1}).mapping.dropout == 0.1


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ({"training.learing_rate": (0.1, 0.2)}, "Did you mean 'learning_rate'"),
        ({"training.epochs": (0, 4)}, "training.epochs = 0"),
        ({"head.dropout": {"min": 0.0, "max": 1.0}}, "head.dropout = 1.0"),
        ({"finetuning.stages.1.layer_decay": (0.5,)}, "One of stages is named by its number or name: 0 (head)"),
        ({"head.kind": ("linear",), "head.widths": ((4,),)}, "no kind that the space chooses has this key"),
    ],
)
def test_an_impossible_space_is_said_before_work_starts(space, sentence):
    recipe = make(space, finetuning={"stages": STAGES[:1]}, mapping={"kind": "deep"})
    with pytest.raises(RecipeError) as error:
        check_space(recipe)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("dimension", "sentence"),
    [
        ({}, "either a list of values, or min and max"),
        ((), "at least 1"),
        ({"min": 2, "max": 1}, "min must be below max. Received: 2 and 1"),
        ({"min": 0.0, "max": 1.0, "sampling": "log"}, "begins above 0"),
        ({"min": 1, "max": 9, "step": 0.5}, "a whole step"),
        ({"min": 1.0, "max": 9.0, "step": 0.5, "sampling": "log"}, "a factor above 1"),
    ],
)
def test_a_dimension_says_what_it_takes(dimension, sentence):
    with pytest.raises(RecipeError) as error:
        make({"training.epochs": dimension})
    assert sentence in str(error.value)


def test_an_empty_space_and_a_missing_section_are_refused():
    with pytest.raises(RecipeError, match="tuning.space"):
        make({})
    with pytest.raises(RecipeError, match="must have a section `tuning` with a `space`"):
        check_space(validate_values(BASE, "mine.yaml"))


def test_keras_tuner_and_the_recipe_mean_the_same_values():
    recipe = make(
        {
            "head.widths": ((8,), (16, 8)),
            "training.batch_size": (16, 32),
            "training.epochs": {"min": 1, "max": 9},
            "training.learning_rate": {"min": 1e-4, "max": 1e-2, "sampling": "log"},
        },
        mapping={"kind": "deep"},
    )
    space = make_hyperparameters(recipe.tuning)
    kinds = {hp.name: type(hp).__name__ for hp in space.space}
    assert list(kinds.values()) == ["Choice", "Choice", "Int", "Float"]
    values = read_values(recipe.tuning, space.values)
    assert apply_values(recipe, values).mapping.widths == (8,)
    assert type(values["training.epochs"]) is int


def test_corners_need_all_frozen_work_and_no_more():
    space = {
        "finetuning.stages.top.unfreeze": {"min": 0, "max": 3},
        "training.learning_rate": (0.1, 0.2),
    }
    depths = [
        corner.finetuning.stages[1].unfreeze for corner in boundary_recipes(make(space, finetuning={"stages": STAGES}))
    ]
    assert depths == [0, 1, 2, 3]
