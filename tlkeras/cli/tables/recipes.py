"""Recipes, runs and what `check` and `show` found, as tables."""

from __future__ import annotations

from typing import Any

from rich.markup import escape

from tlkeras.cli.tables.style import format_number, make_table, open_console

_BARS, _BAR_WIDTH = 20, 40


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


def print_schedule(result: dict[str, Any]) -> None:
    """Print what trains in each stage, at which rate, and why."""
    columns = [("stage", "left"), ("epochs", "right"), ("trains", "left"), ("learning rate", "right")]
    columns += [("parameters", "right"), ("starts from", "left"), ("kept", "right"), ("work saved", "right")]
    views = f", {result['views']} views of each image in {result['precision']}" if result["views"] else ""
    count = len(result["stages"])
    table = make_table(f"{result['name']}: {count} stage{'s' if count > 1 else ''}{views}", columns)
    for stage in result["stages"]:
        kept = f"{stage['megabytes']:,.0f} MB" if stage["megabytes"] else "-"
        table.add_row(
            stage["name"],
            str(stage["epochs"]),
            "head",
            f"{stage['learning_rate']:.1e}",
            "",
            stage["cut"],
            kept,
            f"{stage['saved']:.0%}",
        )
        for block in stage["blocks"]:
            table.add_row(
                "", "", block["name"], f"{block['learning_rate']:.1e}", f"{block['parameters']:,}", "", "", ""
            )
        table.add_section()
    console = open_console()
    console.print(table)
    for stage in result["stages"]:
        console.print(f"{escape(stage['name'])} starts from {escape(stage['cut'])}: {stage['reason']}.")
    if result["reasons"]:
        reasons = make_table(
            "Chosen from the size of the data", [("value", "left"), ("", "right"), ("because", "left")]
        )
        for choice in result["reasons"]:
            reasons.add_row(choice["key"], str(choice["value"]), choice["reason"])
        console.print(reasons)


def print_augmentation(result: dict[str, Any]) -> None:
    """Print what a policy may do, and where the sheet lies."""
    rounds = f", {result['rounds']} rounds" if result["rounds"] > 1 else ""
    count = "endlessly many views" if result["views"] is None else f"{result['views']} view(s)"
    table = make_table(f"{result['name']}: {result['policy']}{rounds}, {count}", [("one of these at a time", "left")])
    for operations in result["operations"]:
        table.add_row(escape(operations))
    open_console().print(table)
    mixed = [f"{name} {result[key]:g}" for name, key in (("MixUp", "mixup"), ("CutMix", "cutmix")) if result[key]]
    if mixed:
        open_console().print(f"Examples of a batch are mixed: {', '.join(mixed)}.")
    open_console().print(f"{result['images']} images in {result['shown']} views: {escape(result['path'])}")


def print_rates(result: dict[str, Any]) -> None:
    """Print the losses at some of the rates tried as bars, and the rate suggested."""
    console = open_console()
    table = make_table(
        f"{result['name']}: learning rates in stage {result['stage']!r}",
        [("learning rate", "right"), ("loss", "right"), ("", "left")],
    )
    pairs = list(zip(result["rates"], result["smoothed"], strict=True))
    if pairs:
        shown = pairs[:: max(1, len(pairs) // _BARS)]
        highest = 1.5 * shown[0][1]  # what diverges would flatten all else
        for rate, loss in shown:
            table.add_row(f"{rate:.1e}", f"{loss:.3f}", "█" * round(_BAR_WIDTH * min(loss / highest, 1.0)))
    console.print(table)
    if result["suggestion"] is None:
        console.print(f"No rate is suggested. {result['reason']}")
    else:
        console.print(
            f"Suggested: {result['suggestion']:.1e} (the recipe has {result['learning_rate']:.1e}). {result['reason']}"
        )
    if result["image"]:
        console.print(f"Curve: {escape(result['image'])}")


def print_features(result: dict[str, Any]) -> None:
    """Print how well each depth separates the classes, and where the images lie."""
    console = open_console()
    table = make_table(
        f"{result['name']}: images with the class of their nearest neighbours",
        [("depth", "left"), ("share", "right"), ("", "left")],
    )
    for name, share in result["separations"].items():
        table.add_row(escape(name), f"{share:.3f}", "█" * round(_BAR_WIDTH * share))
    table.add_row("the most common class alone", f"{result['chance']:.3f}", "█" * round(_BAR_WIDTH * result["chance"]))
    console.print(table)
    console.print(f"{result['images']:,} images, none of the test split: {escape(result['path'])}")
    if result["maps"]:
        console.print(f"Maps of {escape(result['layer'])}: {escape(result['maps'])}")
