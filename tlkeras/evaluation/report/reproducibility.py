"""What is needed to make a run again."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tlkeras.config.recipe import recipe_to_yaml
from tlkeras.errors import RunError
from tlkeras.evaluation.run_data import RunData, read_csv
from tlkeras.results import Result
from tlkeras.training import builders


@dataclass(frozen=True)
class Reproducibility(Result):
    """The recipe, command, data, environment and cost of a run."""

    created: str  # UTC
    finished: str
    resumed: int
    command: str
    recipe: str
    source: str
    examples: dict[str, int]
    rejected: int
    fingerprint: str  # SHA-256 of contents, labels and splits
    parameters: int | None
    phases: dict[str, float]  # seconds
    memory: dict[str, int]  # its peak by phase, MiB
    features: dict[str, Any]
    head: dict[str, Any]
    finetuning: dict[str, Any] | None
    history: list[dict[str, float | int | str]]  # a row per epoch, or per strength of regularization
    environment: dict[str, Any]
    data: dict[str, str]
    licences: dict[str, str]


def read_reproducibility(data: RunData) -> Reproducibility:
    """What is needed to make a run again, from its manifest and files."""
    run, recipe, manifest = data.run, data.recipe, data.run.manifest
    facts = {name: manifest.get(name, {}) for name in ("examples", "phases", "memory", "features", "head", "data")}
    return Reproducibility(
        created=manifest.get("created", ""),
        finished=manifest.get("finished", ""),
        resumed=len(manifest.get("resumed", [])),
        command=f"tlkeras train {run.path / 'recipe.yaml'}",
        recipe=recipe_to_yaml(recipe),
        source=builders.data_source(recipe),
        rejected=manifest.get("rejected", 0),
        fingerprint=manifest.get("fingerprint", ""),
        parameters=manifest.get("parameters"),
        finetuning=manifest.get("finetuning"),
        history=_read_history(data),
        environment=run.read_json("environment.json"),
        licences=builders.list_licences(recipe, facts["data"]),
        **facts,
    )


def _read_history(data: RunData) -> list[dict[str, float | int | str]]:
    try:
        rows = read_csv(data.run, "history.csv")
    except RunError:
        return []
    return [{name: _parse(text) for name, text in row.items()} for row in rows]


def _parse(text: str) -> float | int | str:
    """The number that a text is, unless it is no finite one."""
    for kind in (int, float):
        with suppress(ValueError):
            number = kind(text)
            return number if math.isfinite(number) else text
    return text
