"""Backbones beside each other as tables."""

from __future__ import annotations

from typing import Any

from rich.markup import escape

from tlkeras.cli.tables.style import make_table, open_console

_NAMED = 3


def print_recommendation(result: dict[str, Any]) -> None:
    """Print what was looked at, the candidates, what was left out, the answers with their reasons, and the recipe."""
    console = open_console()
    facts = make_table(result["name"], [("", "left"), ("", "left")], header=False)
    for name, text in result["facts"].items():
        facts.add_row(name, escape(text))
    facts.add_row("target", f"{result['target']['name']}: {escape(result['target']['reason'])}")
    console.print(facts)
    _draw_dropped(result["dropped"])
    _draw_candidates(result["candidates"])
    _draw_costs(result["candidates"])
    answers = make_table("What this means", [("question", "left"), ("answer", "left"), ("reason", "left")])
    for answer in result["answers"]:
        answers.add_row(answer["question"], escape(answer["answer"]), escape(answer["reason"]))
    console.print(answers)
    console.print(f"Image: {escape(result['image'])}", soft_wrap=True)
    if result["path"]:
        console.print(f"Run it with: tlkeras train {escape(result['path'])}", soft_wrap=True)
        return
    console.print("The recipe to run (--to FILE writes it):\n", soft_wrap=True)
    console.print(escape(result["recipe"]), soft_wrap=True, highlight=False)


def _draw_dropped(dropped: dict[str, str]) -> None:
    """Print how many backbones each reason left out."""
    if not dropped:
        return
    reasons: dict[str, list[str]] = {}
    for name, reason in dropped.items():
        reasons.setdefault(reason, []).append(name)
    table = make_table("Left out", [("backbones", "right"), ("reason", "left"), ("such as", "left")])
    for reason, names in sorted(reasons.items(), key=lambda item: -len(item[1])):
        table.add_row(str(len(names)), escape(reason), ", ".join(names[:_NAMED]))
    open_console().print(table)


def _draw_candidates(rows: list[dict[str, Any]]) -> None:
    columns = [
        ("backbone", "left"),
        ("score", "right"),
        ("", "left"),
        ("5 neighbours", "right"),
        ("linear head", "right"),
    ]
    columns += [("LogME", "right"), ("H-score", "right"), ("LEEP", "right"), ("NCE", "right"), ("ImageNet", "right")]
    table = make_table("Balanced accuracy over folds, best first; the score is the mean of both", columns)
    for row in rows:
        table.add_row(
            row["name"],
            _tell_spread(row["score"]),
            "≈ best" if row["noise"] else "",
            _tell_spread(row["neighbours"]),
            _tell_spread(row["probe"]),
            *(_tell(row[key], "{:.3f}") for key in ("logme", "h_score", "leep", "nce")),
            _tell(row["top1"], "{:.1f} %"),
        )
    open_console().print(table)


def _draw_costs(rows: list[dict[str, Any]]) -> None:
    columns = [("backbone", "left"), ("one image", "right"), ("images/s", "right"), ("memory", "right")]
    columns += [("weights", "right"), ("fine-tuning", "right"), ("its memory", "right"), ("licence", "left")]
    columns += [("Pareto front", "left")]
    table = make_table("On this machine", columns)
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['milliseconds']:.1f} ms",
            f"{row['images_per_second']:,.0f}",
            _tell(row["memory"], "{:,.0f} MB"),
            f"{row['megabytes']:,.1f} MB",
            f"{row['minutes']:,.1f} min",
            _tell(row["finetuning_memory"], "{:,.0f} MB"),
            row["licence"],
            "yes" if row["front"] else "",
        )
    open_console().print(table)


def _tell_spread(figure: dict[str, float]) -> str:
    return f"{figure['mean']:.3f} ± {figure['spread']:.3f}"


def _tell(value: float | None, how: str) -> str:
    return "-" if value is None else how.format(value)
