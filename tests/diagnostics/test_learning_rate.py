"""`tlkeras find-lr`: the range test of a recipe's stage."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

import tlkeras
from tlkeras.cli.main import main
from tlkeras.cli.tables.diagnostics import print_learning_rate
from tlkeras.errors import RecipeError, ResourceError


@pytest.mark.parametrize("stage", ["head", *(pytest.param(name, marks=pytest.mark.slow) for name in ("top", "all"))])
def test_rates_are_tried_in_any_stage(staged, tmp_path, stage, capsys):
    stages = [{"name": "head", "unfreeze": 0, "epochs": 1}, {"name": "top", "unfreeze": 1, "epochs": 1}]
    stages += [{"name": "all", "unfreeze": "all", "epochs": 1, "learning_rate": 2e-4}]
    change = {"head.C": 1e-4, "finetuning.stages": stages, "finetuning.ema": 0.0}
    image = tmp_path / "rates.png"
    found = tlkeras.find_learning_rate(staged, change, stage=stage, steps=20, to=image)
    assert found.stage == stage and found.image == str(image)
    assert len(found.rates) == len(found.losses) > 5
    assert min(found.losses) < found.losses[0]
    assert image.stat().st_size > 5_000
    print_learning_rate(found)
    assert f"learning rates in stage '{stage}'" in capsys.readouterr().out


def test_the_stage_must_exist(staged):
    with pytest.raises(RecipeError, match="no stage of this name. Received: 'tip'. Did you mean 'top'"):
        tlkeras.find_learning_rate(staged, stage="tip")
    done = CliRunner().invoke(main, ["--quiet", "find-lr", staged, "--to", "nowhere/rates.png"])
    assert done.exit_code == 6 and "The folder nowhere does not exist." in done.stderr


def test_no_file_of_the_user_is_replaced(staged, tmp_path):
    mine = tmp_path / "mine.png"
    mine.write_bytes(b"mine")
    with pytest.raises(ResourceError, match="mine.png exists and was not drawn by tlkeras, so it is not replaced"):
        tlkeras.find_learning_rate(staged, to=mine)
    assert mine.read_bytes() == b"mine"
