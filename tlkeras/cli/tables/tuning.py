"""Searches as tables."""

from __future__ import annotations

import json
from typing import Any

from rich.markup import escape

from tlkeras.cli.tables.runs import print_training
from tlkeras.cli.tables.style import format_number, make_table, open_console

_MOST_ROWS = 20


def print_tuning(result: dict[str, Any]) -> None:
    """Print trials, best first, what mattered, why trials failed, and where the best recipe is."""
    console = open_console()
    if "worker" in result:
        console.print(f"{escape(result['worker'])}: {result['trials']} trials, {result['failed']} of them failed")
        return
    objective = result["objective"]
    trials, keys = result["trials"], result["space"]
    columns = [("trial", "right"), *((key, "right") for key in keys), (f"validation {objective}", "right")]
    columns += [("over seeds", "right"), ("seconds", "right")]
    shown = f", the best {_MOST_ROWS}" if len(trials) > _MOST_ROWS else ""
    table = make_table(f"{result['path']}: {len(trials)} trials{shown}", columns)
    for trial in trials[:_MOST_ROWS]:
        over = trial["over_seeds"]
        seeds = f"{over['mean']:.4f} ± {over['spread']:.4f} ({over['seeds']})" if over["seeds"] > 1 else ""
        cells = [_tell(trial["values"].get(key)) for key in keys]
        figures = trial["figures"]
        table.add_row(trial["name"], *cells, format_number(figures[objective]), seeds, f"{figures['seconds']:.1f}")
    console.print(table)
    if result["importance"]:
        mattered = sorted(result["importance"].items(), key=lambda item: -item[1])
        console.print("What mattered: " + escape(", ".join(f"{key} {share:.0%}" for key, share in mattered)))
    if result["failed"]:
        failed = make_table(f"{len(result['failed'])} trials failed", [("trial", "right"), ("reason", "left")])
        for trial in result["failed"][:_MOST_ROWS]:
            failed.add_row(trial["name"], escape(trial["error"]))
        console.print(failed)
    for name, seconds in result["phases"].items():
        console.print(f"{name}: {seconds:.1f} s")
    for path in result["images"]:
        console.print(f"Image: {escape(path)}", soft_wrap=True)
    if result["best"]:
        console.print(f"Best recipe: {escape(result['best'])}", soft_wrap=True)
    if "run" in result:
        print_training(result["run"])


def _tell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return escape(value if isinstance(value, str) else json.dumps(value))
