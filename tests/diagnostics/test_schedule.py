"""`tlkeras show schedule`: stages, blocks and their learning rates."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

import tlkeras
from tlkeras.cli.main import main
from tlkeras.errors import RecipeError


def test_stages_chosen_from_the_data_have_reasons(staged):
    shown = tlkeras.show_schedule(staged, {"finetuning.stages": "auto"})
    assert [choice.key for choice in shown.reasons][:2] == ["head", "top.unfreeze"]
    assert shown.to_dict()["reasons"][0].keys() == {"key", "value", "reason"}
    assert shown.stages[0].parameters > 0


def test_the_command_prints_blocks_and_json(staged):
    printed = CliRunner().invoke(main, ["show", "schedule", staged])
    assert printed.exit_code == 0, printed.output
    assert (
        "staged: 2 stages, 2 views of each image in float16" in printed.stdout and "top starts from" in printed.stdout
    )
    shown = json.loads(CliRunner().invoke(main, ["show", "schedule", staged, "--json"]).stdout)
    head, top = shown["stages"]
    assert head["blocks"] == [] and len(top["blocks"]) == 1
    assert top["parameters"] == top["blocks"][0]["parameters"] > 0
    assert top["blocks"][0]["learning_rate"] == top["learning_rate"]


def test_a_recipe_without_fine_tuning_has_no_schedule(workplace):
    with pytest.raises(RecipeError, match="finetuning"):
        tlkeras.show_schedule("mine.yaml")
