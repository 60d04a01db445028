"""The verbs that judge runs: against each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tlkeras.api.running import RUNS
from tlkeras.recipe import load_recipe
from tlkeras.runs import open_run


def compare(references: Sequence[str], *, runs: str | Path = RUNS) -> dict[str, Any]:
    """Compare finished runs with the first of them; see `tlkeras.evaluation.comparison.compare`.

    Args:
        references: Names, paths or `latest`; two or more.
        runs: Folder of the run directories.
    """
    from tlkeras.evaluation import comparison

    opened = [open_run(reference, Path(runs)) for reference in references]
    options = load_recipe(str(opened[0].path / "recipe.yaml")).evaluation
    return comparison.compare(opened, resamples=options.bootstrap, seed=options.seed)
