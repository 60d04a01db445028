"""Recipes and runs as tables."""

from __future__ import annotations

from typing import Any

from rich.markup import escape

from tlkeras.cli.tables.style import format_number, left, open_console, print_table, right


def print_list(result: dict[str, Any]) -> None:
    """Print recipes and runs."""
    recipes = [(recipe["name"], escape(recipe["about"])) for recipe in result["recipes"]]
    print_table("Recipes", left("name", "what it does"), recipes)
    if not result["runs"]:
        open_console().print("No runs yet. Make one with: tlkeras train quickstart")
        return
    runs = (
        (run["name"], run["state"], run["created"], format_number(run["accuracy"]), format_number(run["roc_auc"]))
        for run in result["runs"]
    )
    print_table("Runs", left("name", "state", "created") + right("accuracy", "ROC AUC"), runs)
