"""Search spaces: any recipe key, checked before work starts."""

import keras_tuner
import pytest

from tlkeras.config.recipe import validate_values
from tlkeras.config.trials import apply_values
from tlkeras.errors import RecipeError
from tlkeras.tuning.space import boundary_recipes, check_space, declare, read_values

BASE = {"name": "mine", "data": {"source": "photos"}, "backbone": {"name": "tiny", "weights": "none"}}
STAGES = ({"name": "head", "unfreeze": 0, "epochs": 2}, {"name": "top", "unfreeze": 1, "epochs": 9})


def make(space, **sections):
    return validate_values({**BASE, **sections, "tuning": {"space": space}}, "mine.yaml")


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        ({"training.learing_rate": (0.1, 0.2)}, "Did you mean 'learning_rate'"),
        ({"training.epochs": (0, 4)}, "training.epochs = 0"),
        ({"head.dropout": {"min": 0.0, "max": 1.0}}, "head.dropout = 1.0"),
        (
            {"finetuning.stages.1.layer_decay": (0.5,)},
            "stages has no item '1'; name one by its number or name: 0 (head)",
        ),
        ({"head.kind": ("linear",), "head.widths": ((4,),)}, "no kind that the space chooses has this key"),
    ],
)
def test_an_impossible_space_is_refused_before_work_starts(space, sentence):
    recipe = make(space, finetuning={"stages": STAGES[:1]}, head={"kind": "deep"})
    with pytest.raises(RecipeError) as error:
        check_space(recipe)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("dimension", "sentence"),
    [
        ({}, "either a list of values, or min and max"),
        ((), "at least 1"),
        ({"min": 2, "max": 1}, "min is not below max. Received: 2 and 1"),
        ({"min": 0.0, "max": 1.0, "sampling": "log"}, "min is not above 0"),
        ({"min": 1, "max": 9, "step": 0.5}, "an integer step"),
        ({"min": 1.0, "max": 9.0, "step": 0.5, "sampling": "log"}, "a factor above 1"),
    ],
)
def test_wrong_dimensions_are_refused(dimension, sentence):
    with pytest.raises(RecipeError) as error:
        make({"training.epochs": dimension})
    assert sentence in str(error.value)


def test_an_empty_space_and_a_missing_section_are_refused():
    with pytest.raises(RecipeError, match="tuning.space"):
        make({})
    with pytest.raises(RecipeError, match="has no section `tuning` with a `space`"):
        check_space(validate_values(BASE, "mine.yaml"))


def test_values_of_keras_tuner_are_those_of_the_recipe():
    recipe = make(
        {
            "head.widths": ((8,), (16, 8)),
            "training.batch_size": (16, 32),
            "training.epochs": {"min": 1, "max": 9},
            "training.learning_rate": {"min": 1e-4, "max": 1e-2, "sampling": "log"},
        },
        head={"kind": "deep"},
    )
    space = declare(recipe.tuning, keras_tuner.HyperParameters())
    kinds = {hp.name: type(hp).__name__ for hp in space.space}
    assert list(kinds.values()) == ["Choice", "Choice", "Int", "Float"]
    values = read_values(recipe.tuning, space.values)
    assert apply_values(recipe, values).head.widths == (8,)
    assert type(values["training.epochs"]) is int


def test_boundary_recipes_need_all_frozen_work_and_no_more():
    space = {
        "finetuning.stages.top.unfreeze": {"min": 0, "max": 3},
        "training.learning_rate": (0.1, 0.2),
    }
    depths = [
        boundary.finetuning.stages[1].unfreeze
        for boundary in boundary_recipes(make(space, finetuning={"stages": STAGES}))
    ]
    assert depths == [0, 1, 2, 3]
