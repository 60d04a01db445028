"""Recipes and runs as tables."""

from __future__ import annotations

from typing import Any

from rich.markup import escape

from tlkeras.cli.tables.style import format_number, make_table, open_console


def print_list(result: dict[str, Any]) -> None:
    """Print recipes and runs."""
    console = open_console()
    recipes = make_table("Recipes", [("name", "left"), ("what it does", "left")])
    for recipe in result["recipes"]:
        recipes.add_row(recipe["name"], escape(recipe["about"]))
    console.print(recipes)
    if not result["runs"]:
        console.print("No runs yet. Make one with: tlkeras train quickstart")
        return
    columns = [("name", "left"), ("state", "left"), ("created", "left"), ("accuracy", "right"), ("ROC AUC", "right")]
    runs = make_table("Runs", columns)
    for run in result["runs"]:
        runs.add_row(
            run["name"], run["state"], run["created"], format_number(run["accuracy"]), format_number(run["roc_auc"])
        )
    console.print(runs)
