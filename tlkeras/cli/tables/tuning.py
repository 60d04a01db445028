"""Tables of searches."""

from __future__ import annotations

import json
from typing import Any

from rich.markup import escape

from tlkeras.cli.tables.style import fill_table, format_number, left, open_console, right
from tlkeras.tuning.report import TuningResult

_MOST_ROWS = 20


def print_tuning(result: TuningResult) -> None:
    """Print trials, best first, the importance of the keys, reasons of failures, and the path of the best recipe."""
    console = open_console()
    columns = right("trial", *result.space, f"validation {result.objective}", "over seeds", "seconds")
    shown = f", the best {_MOST_ROWS}" if len(result.trials) > _MOST_ROWS else ""
    rows = []
    for trial in result.trials[:_MOST_ROWS]:
        over, seconds = trial.over_seeds, trial.score("seconds")
        seeds = f"{over.mean:.4f} ± {over.spread:.4f} ({over.seeds})" if over.seeds > 1 else ""
        cells = [_format_value(trial.values.get(key)) for key in result.space]
        rows.append((trial.name, *cells, format_number(trial.score(result.objective)), seeds, f"{seconds:.1f}"))
    console.print(fill_table(f"{result.path}: {len(result.trials)} trials{shown}", columns, rows))
    if result.importance:
        ranked = sorted(result.importance.items(), key=lambda item: -item[1])
        console.print("Importance: " + escape(", ".join(f"{key} {share:.0%}" for key, share in ranked)))
    if result.failed:
        failed = [(one.name, escape(one.error or "")) for one in result.failed[:_MOST_ROWS]]
        console.print(fill_table(f"{len(result.failed)} trials failed", right("trial") + left("reason"), failed))
    for name, seconds in result.phases.items():
        console.print(f"{name}: {seconds:.1f} s")
    for path in result.images:
        console.print(f"Image: {escape(path)}", soft_wrap=True)
    if result.best:
        console.print(f"Best recipe: {escape(result.best)}", soft_wrap=True)


def _format_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return escape(value if isinstance(value, str) else json.dumps(value))
