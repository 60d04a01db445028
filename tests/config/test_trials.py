"""Recipes of trials: values by dotted key on top of a recipe, and shorter training."""

from tlkeras.config.recipe import validate_values
from tlkeras.config.trials import apply_values, chooses_stages, longest_training

BASE = {"name": "mine", "data": {"source": "photos"}, "backbone": {"name": "tiny", "weights": "none"}}
STAGES = ({"name": "head", "unfreeze": 0, "epochs": 2}, {"name": "top", "unfreeze": 1, "epochs": 9})


def make(space, **sections):
    return validate_values({**BASE, **sections, "tuning": {"space": space}}, "mine.yaml")


def test_values_are_set_by_dotted_key():
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


def test_a_new_kind_drops_keys_of_other_kinds():
    recipe = make({"head.kind": ("linear", "deep")}, head={"kind": "deep", "widths": (8,)})
    assert apply_values(recipe, {"head.kind": "linear", "head.dropout": 0.1}).head.kind == "linear"
    assert apply_values(recipe, {"head.kind": "deep", "head.dropout": 0.1}).head.dropout == 0.1


def test_hyperband_shortens_every_training_in_the_same_proportion():
    recipe = make({"training.epochs": (3, 4)}, training={"epochs": 30}, finetuning={"stages": STAGES})
    assert longest_training(recipe) == 9 and not chooses_stages(recipe)
    short = apply_values(recipe, {"tuner/epochs": 3})
    assert [stage.epochs for stage in short.finetuning.stages] == [1, 3] and short.training.epochs == 10
    chosen = make({"training.epochs": (3, 4)}, finetuning={"stages": "auto"})
    assert chooses_stages(chosen) and longest_training(chosen) == chosen.training.epochs
