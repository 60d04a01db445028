"""Results as tables that a person would want to look at; each function prints what the verb of its name returns."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_NAMES = {
    "accuracy": "accuracy",
    "exact_match": "exact match",
    "hamming_loss": "Hamming loss",
    "micro_f1": "micro F1",
    "micro_roc_auc": "micro ROC AUC",
    "mean_average_precision": "mean average precision",
    "micro_average_precision": "micro average precision",
    "average_precision": "average precision",
    "f1": "F1",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "roc_auc": "ROC AUC",
    "log_loss": "log loss",
}
_ROWS = 40


def draw_training(result: dict[str, Any]) -> None:
    """Print figures, the time of each phase, where the run lies, and what to do next."""
    draw_evaluation(result)
    console = _console()
    phases = result["phases"]
    table = _table("Time", [("phase", "left"), ("seconds", "right")])
    for name, seconds in phases.items():
        table.add_row(name, f"{seconds:,.1f}")
    table.add_row("[bold]in all[/bold]", f"[bold]{sum(phases.values()):,.1f}[/bold]")
    console.print(table)
    features, run = result["features"], result["run"]
    engine = f" with {features['engine']}" if features["engine"] else ""
    console.print(f"Features: {features['computed']:,} computed{engine}, {features['reused']:,} from the cache.")
    console.print(f"Run: {escape(result['path'])}")
    name = run if os.path.dirname(result["path"]) == "runs" else result["path"]
    console.print("\nNext:")
    for command, purpose in (
        (f"tlkeras predict {name} PICTURE...", "classify pictures"),
        (f"tlkeras export {name} --to saved_models/{run.rpartition('-')[0]}", "a SavedModel for TensorFlow Serving"),
        ("tlkeras cp quickstart mine.yaml", "a recipe of your own"),
    ):
        console.print(f"  {command:<60} # {purpose}", markup=False, highlight=False)


def draw_evaluation(result: dict[str, Any]) -> None:
    """Print each figure with its interval, beside the majority baseline."""
    counts = result["examples"]
    weighted = ", weighted" if result["weighted"] else ""
    classes = "labels" if "labels" in result else "classes"
    title = f"{result['run']}: {counts['test']:,} held-out pictures{weighted}, {len(result['classes'])} {classes}"
    table = _table(
        title, [("", "left"), ("value", "right"), ("95 % interval", "right"), ("majority baseline", "right")]
    )
    for name, figure in result["metrics"].items():
        table.add_row(
            _NAMES[name],
            f"[bold]{_number(figure['value'])}[/bold]",
            f"{_number(figure['low'])} to {_number(figure['high'])}",
            _number(result["baseline"][name]["value"]),
        )
    console = _console()
    console.print(table)
    if "labels" in result:
        console.print(_list_labels(result["labels"]))
    if result["rejected"]:
        console.print(f"[yellow]{result['rejected']:,} pictures were left out; see rejected.csv in the run.[/yellow]")


def draw_predictions(result: dict[str, Any]) -> None:
    """Print the best classes of each picture, and what could not be read."""
    console = _console()
    draw = _list_answers if result["threshold"] is None else _list_labels_found
    if result["predictions"]:
        console.print(draw(result))
    if result["unreadable"]:
        console.print(_list_findings(f"{len(result['unreadable'])} could not be read", result["unreadable"]))


def draw_export(result: dict[str, Any]) -> None:
    """Print where the version lies and how closely it agrees with the run."""
    console = _console()
    console.print(f"Exported version {result['version']} to {escape(result['path'])}")
    console.print(
        f"Proved on {result['pictures']} held-out pictures: largest difference in a probability "
        f"{result['difference']:.1g}."
    )
    console.print(f"Signatures: {', '.join(result['signatures'])}")


def draw_check(result: dict[str, Any]) -> None:
    """Print what a recipe would do, and what is in its way."""
    console = _console()
    table = _table(f"Check of {result['name']}", [("", "left"), ("", "left")], header=False)
    for name, fact in result["facts"].items():
        table.add_row(name, escape(str(fact)))
    if result["facts"]:
        console.print(table)
    for note in result["notes"]:
        console.print(f"[yellow]note:[/yellow] {escape(note)}")
    for problem in result["problems"]:
        console.print(f"[red]problem:[/red] {escape(problem)}")
    console.print("Nothing is in the way." if not result["problems"] else "Nothing was trained.")


def draw_list(result: dict[str, Any]) -> None:
    """Print recipes and runs."""
    console = _console()
    recipes = _table("Recipes", [("name", "left"), ("what it does", "left")])
    for recipe in result["recipes"]:
        recipes.add_row(recipe["name"], escape(recipe["about"]))
    console.print(recipes)
    if not result["runs"]:
        console.print("No runs yet. Make one with: tlkeras train quickstart")
        return
    columns = [("name", "left"), ("state", "left"), ("created", "left"), ("accuracy", "right"), ("ROC AUC", "right")]
    runs = _table("Runs", columns)
    for run in result["runs"]:
        runs.add_row(run["name"], run["state"], run["created"], _number(run["accuracy"]), _number(run["roc_auc"]))
    console.print(runs)


def draw_backbones(entries: Sequence[dict[str, Any]]) -> None:
    """Print the catalog."""
    columns = [("name", "left"), ("parameters", "right"), ("multiply-adds", "right"), ("size", "right")]
    columns += [("features", "right"), ("top-1", "right"), ("weights", "left"), ("licence", "left")]
    table = _table(f"{len(entries)} backbones", columns)
    for entry in entries:
        table.add_row(
            entry["name"],
            f"{entry['parameters'] / 1e6:,.2f} M",
            f"{entry['multiply_adds'] / 1e6:,.0f} M",
            str(entry["default_size"]),
            str(entry["feature_width"]),
            f"{entry['top1']:.1f} %" if entry["top1"] else "-",
            ", ".join(entry["weights"]),
            entry["licence"],
        )
    _console().print(table)


def draw_backbone(result: dict[str, Any]) -> None:
    """Print the blocks of one backbone."""
    columns = [("block", "right"), ("name", "left"), ("output", "right"), ("KB at float16", "right")]
    columns += [("parameters", "right"), ("multiply-adds", "right"), ("layers", "right")]
    table = _table(f"{result['name']} at {result['size']} px: {result['cuts']} cuts", columns)
    for block in result["blocks"]:
        table.add_row(
            str(block["index"]),
            block["name"],
            " x ".join(map(str, block["shape"])),
            f"{block['bytes'] / 1e3:,.1f}",
            f"{block['parameters']:,}",
            f"{block['multiply_adds'] / 1e6:,.1f} M",
            str(block["layers"]),
        )
    _console().print(table)


def draw_schedule(result: dict[str, Any]) -> None:
    """Print what trains in each stage, at which rate, and why."""
    columns = [("stage", "left"), ("epochs", "right"), ("trains", "left"), ("learning rate", "right")]
    columns += [("parameters", "right"), ("starts from", "left"), ("kept", "right"), ("work saved", "right")]
    views = f", {result['views']} views of each picture" if result["views"] else ""
    table = _table(f"{result['name']}: {len(result['stages'])} stages{views}", columns)
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
    _console().print(table)
    if result["reasons"]:
        reasons = _table("Chosen from the size of the data", [("value", "left"), ("", "right"), ("because", "left")])
        for choice in result["reasons"]:
            reasons.add_row(choice["key"], str(choice["value"]), choice["reason"])
        _console().print(reasons)


def draw_cache(result: dict[str, Any]) -> None:
    """Print what the cache holds."""
    columns = [
        ("key", "left"),
        ("backbone", "left"),
        ("row", "left"),
        ("rows", "right"),
        ("MB", "right"),
        ("last used", "left"),
    ]
    table = _table(f"{result['root']}: {result['bytes'] / 1e6:,.1f} MB", columns)
    for space in result["spaces"]:
        facts = space["facts"]
        row = " x ".join(map(str, facts.get("shape", []))) + f" {facts.get('dtype', '')}"
        used = datetime.fromtimestamp(space["last_used"], UTC).strftime("%Y-%m-%d %H:%M UTC")
        table.add_row(
            space["key"][:12],
            str(facts.get("backbone", "")),
            row,
            f"{space['rows']:,}",
            f"{space['bytes'] / 1e6:,.1f}",
            used,
        )
    _console().print(table)


def draw_pruned(result: dict[str, Any]) -> None:
    """Print what was removed."""
    _console().print(f"Removed {len(result['removed'])} spaces, {result['bytes'] / 1e6:,.1f} MB.")


def _list_answers(result: dict[str, Any]) -> Table:
    columns = [("picture", "left"), ("label", "left"), ("probability", "right"), ("then", "left")]
    table = _table(f"Predictions of {result['run']}", columns)
    for row in result["predictions"]:
        table.add_row(
            escape(row["path"]), escape(row["label"]), f"{row['probability']:.3f}", _list_best(row["top"][1:])
        )
    return table


def _list_labels_found(result: dict[str, Any]) -> Table:
    columns = [("picture", "left"), (f"labels, from {result['threshold']:g} on", "left"), ("probabilities", "left")]
    table = _table(f"Predictions of {result['run']}", columns)
    for row in result["predictions"]:
        table.add_row(escape(row["path"]), escape(", ".join(row["labels"])) or "-", _list_best(row["top"]))
    return table


def _list_best(top: Sequence[dict[str, Any]]) -> str:
    return escape(", ".join(f"{best['label']} {best['probability']:.3f}" for best in top))


def _list_labels(labels: dict[str, dict[str, Any]]) -> Table:
    """Return a table of each label's figures with their intervals."""
    names = [name for name in next(iter(labels.values())) if name != "examples"]
    columns = [("label", "left"), ("pictures", "right"), *((_NAMES[name], "right") for name in names)]
    table = _table("Labels, each figure with its 95 % interval", columns)
    for label, figures in labels.items():
        cells = [
            f"[bold]{_number(figures[name]['value'])}[/bold] "
            f"({_number(figures[name]['low'])} to {_number(figures[name]['high'])})"
            for name in names
        ]
        table.add_row(escape(label), f"{figures['examples']:,}", *cells)
    return table


def _list_findings(title: str, findings: Sequence[dict[str, str]]) -> Table:
    table = _table(title, [("path", "left"), ("reason", "left")])
    for finding in findings[:_ROWS]:
        table.add_row(escape(finding["path"]), escape(finding["reason"]))
    if len(findings) > _ROWS:
        table.add_row(f"and {len(findings) - _ROWS:,} more", "")
    return table


def _console() -> Console:
    """Return a console as wide as the terminal, and wide enough for all columns where there is none."""
    return Console() if sys.stdout.isatty() else Console(width=140)


def _table(title: str, columns: Sequence[tuple[str, str]], header: bool = True) -> Table:
    table = Table(title=escape(title), title_justify="left", title_style="bold", show_header=header)
    for number, (name, justify) in enumerate(columns):
        table.add_column(name, justify=justify, overflow="fold", no_wrap=number == 0)  # type: ignore[arg-type]
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
