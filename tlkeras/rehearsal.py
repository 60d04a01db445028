"""A training without the training: everything that can be known before the first batch, said at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tlkeras import assembly
from tlkeras.data.checks import Inspection, inspect
from tlkeras.data.headers import printable
from tlkeras.data.splits import list_unmeasured
from tlkeras.errors import TlkerasError, list_some
from tlkeras.recipe import Recipe


def check(recipe: Recipe) -> dict[str, Any]:
    """Go through a recipe's stages and collect what is in the way.

    Returns:
        `name`; `problems`, sentences, empty where training can start; `notes`, sentences worth reading; `facts`,
        name -> text on pictures, sides, backbone and cost; `rejected`, path and reason of unreadable pictures.
    """
    report: dict[str, Any] = {"name": recipe.name, "problems": [], "notes": [], "facts": {}, "rejected": []}
    inspection = _attempt(report, lambda: _look_at_pictures(recipe, report))
    _attempt(report, lambda: _look_at_backbone(recipe, report, inspection))
    return report


def show_schedule(recipe: Recipe) -> dict[str, Any]:
    """Return what a recipe's fine-tuning would do.

    Returns:
        `name`; `stages`, each with `name`, `epochs` (at most), `cut`, `megabytes` (kept for it, in all views), `saved`
        (share of the work), `reason`, `parameters` that train, and `blocks`: name, learning rate and parameters of
        each that trains, from the head down; `views`; `reasons`: value and why, for stages chosen from the data.

    Raises:
        TlkerasError: The recipe does not fine-tune, or a stage does not suit the backbone or the data.
    """
    examples = assembly.read_examples(recipe)
    sides = assembly.divide(recipe, examples)
    prefix = assembly.build_prefix(recipe)
    schedule, plan, choices = assembly.plan_recipe(recipe, prefix, examples, sides)
    pictures = int((sides == "train").sum())
    stages = []
    for stage, planned in zip(schedule.stages, plan.stages, strict=True):
        rates = list(zip(prefix.blocks, stage.multipliers(len(prefix.blocks)), strict=True))
        blocks = [
            {"name": block.name, "learning_rate": stage.learning_rate * rate, "parameters": block.parameters}
            for block, rate in rates
            if rate
        ]
        stages.append(
            {
                "name": stage.name,
                "epochs": stage.length,
                "learning_rate": stage.learning_rate,
                "cut": planned.cut,
                "megabytes": planned.bytes * pictures * (plan.views or 0) / 1e6,
                "saved": planned.saved,
                "reason": planned.reason,
                "parameters": sum(block.parameters for block, rate in rates if rate),
                "blocks": blocks[::-1],
            }
        )
    reasons = [{"key": choice.key, "value": choice.value, "reason": choice.reason} for choice in choices]
    return {"name": recipe.name, "stages": stages, "views": plan.views, "reasons": reasons}


def _attempt(report: dict[str, Any], stage: Callable[[], Any]) -> Any:
    try:
        return stage()
    except TlkerasError as error:
        report["problems"].append(str(error))
        return None


def _look_at_pictures(recipe: Recipe, report: dict[str, Any]) -> Inspection:
    inspection = inspect(assembly.read_examples(recipe))
    examples = inspection.examples
    (task,) = examples.tasks
    report["rejected"] = [
        {"path": printable(bad.path), "code": bad.code, "reason": bad.reason} for bad in inspection.rejected
    ]
    report["notes"] += list_some([str(note) for note in inspection.notes])
    if inspection.rejected:
        report["notes"].append(f"{len(inspection.rejected):,} of the files cannot be used and will be left out:")
        report["notes"] += list_some([str(bad) for bad in inspection.rejected])
    counts = task.members(examples.targets[task.name]).sum(axis=0)
    report["facts"]["pictures"] = f"{len(examples):,} from {examples.source}"
    report["facts"]["classes"] = ", ".join(
        f"{name} {count:,}" for name, count in zip(task.class_names, counts, strict=True)
    )
    sides = assembly.divide(recipe, examples)
    report["facts"]["sides"] = ", ".join(f"{side} {(sides == side).sum():,}" for side in dict.fromkeys(sides))
    report["notes"] += list_unmeasured(examples, sides)
    if licence := examples.facts.get("licence"):
        report["facts"]["licence of the pictures"] = licence
    return inspection


def _look_at_backbone(recipe: Recipe, report: dict[str, Any], inspection: Inspection | None) -> None:
    prefix = assembly.build_prefix(recipe)
    size = assembly.picture_size(recipe)
    report["facts"]["backbone"] = f"{recipe.backbone.name} at {size} px, weights {recipe.backbone.weights}"
    report["facts"]["features"] = " x ".join(map(str, prefix.pooled.output_shape[1:])) + f" {recipe.features.precision}"
    if recipe.finetuning and inspection is not None:
        examples = inspection.examples
        _, plan, _ = assembly.plan_recipe(recipe, prefix, examples, assembly.divide(recipe, examples))
        for stage in plan.stages:
            report["facts"][f"stage {stage.stage}"] = f"from {stage.cut}: {stage.reason}"
    if inspection is not None:
        sides = assembly.divide(recipe, inspection.examples)
        lacking, needed = assembly.count_lacking(recipe, prefix, inspection, sides)
        report["facts"]["to compute"] = f"{lacking:,} of {needed:,} pictures, each view counted; the rest is cached"
