"""Measured backbones and recommendations as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.markup import escape

from tlkeras.cli.tables.style import left, open_console, print_table, right
from tlkeras.diagnostics.recommend.candidates import group_by_reason

if TYPE_CHECKING:
    from tlkeras.diagnostics.recommend.measurements import CandidateResult
    from tlkeras.diagnostics.recommend.recommend import RecommendResult
    from tlkeras.diagnostics.recommend.scores import FoldScore

_NAMED = 3


def print_recommendation(result: RecommendResult) -> None:
    """Print facts, candidates, backbones left out, recommendations with their reasons, and the recipe."""
    console = open_console()
    facts = {**result.facts, "target": f"{result.target.name}: {result.target.reason}"}
    print_table(result.name, left("", ""), [(name, escape(text)) for name, text in facts.items()])
    _print_dropped(result.dropped)
    _print_scores(result.candidates)
    _print_costs(result.candidates)
    advice = ((one.question, escape(one.answer), escape(one.reason)) for one in result.recommendations)
    print_table("Recommendations", left("question", "answer", "reason"), advice)
    console.print(f"Image: {escape(result.image)}", soft_wrap=True)
    if result.path:
        console.print(f"Run it with: tlkeras train {escape(result.path)}", soft_wrap=True)
        return
    console.print("The recipe to run (--to FILE writes it):\n", soft_wrap=True)
    console.print(escape(result.recipe), soft_wrap=True, highlight=False)


def _print_dropped(dropped: Mapping[str, str]) -> None:
    if not dropped:
        return
    rows = ((str(len(names)), escape(reason), ", ".join(names[:_NAMED])) for reason, names in group_by_reason(dropped))
    print_table("Left out", right("backbones") + left("reason", "such as"), rows)


def _print_scores(rows: Sequence[CandidateResult]) -> None:
    columns = left("backbone") + right("score") + left("")
    columns += right("5 neighbours", "linear head", "LogME", "H-score", "LEEP", "NCE", "ImageNet")
    cells = []
    for row in rows:
        scores = row.scores
        others = (_format(value, "{:.3f}") for value in (scores.logme, scores.h_score, scores.leep, scores.nce))
        classifiers = (_format_score(scores.neighbours), _format_score(scores.probe))
        best, top1 = "≈ best" if row.noise else "", _format(row.candidate.entry.top1, "{:.1f} %")
        cells.append((row.name, _format_score(scores.ranking), best, *classifiers, *others, top1))
    print_table("Balanced accuracy over folds, best first; the score is the mean of both", columns, cells)


def _print_costs(rows: Sequence[CandidateResult]) -> None:
    numbers = right("one image", "images/s", "memory", "weights", "fine-tuning", "its memory")
    cells = (
        (
            row.name,
            f"{row.costs.milliseconds:.1f} ms",
            f"{row.costs.images_per_second:,.0f}",
            _format(row.costs.megabytes, "{:,.0f} MB"),
            f"{row.candidate.megabytes:,.1f} MB",
            f"{row.minutes:,.1f} min",
            _format(row.costs.step_megabytes, "{:,.0f} MB"),
            row.candidate.entry.licence,
            "yes" if row.front else "",
        )
        for row in rows
    )
    print_table("On this machine", left("backbone") + numbers + left("licence", "Pareto front"), cells)


def _format_score(score: FoldScore) -> str:
    return f"{score.mean:.3f} ± {score.spread:.3f}"


def _format(value: float | None, template: str) -> str:
    return "-" if value is None else template.format(value)
