"""Measured backbones and recommendations as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.markup import escape

from tlkeras.cli.tables.style import make_table, open_console

if TYPE_CHECKING:
    from tlkeras.diagnostics.recommend.measurements import CandidateResult
    from tlkeras.diagnostics.recommend.recommend import RecommendResult
    from tlkeras.diagnostics.recommend.scores import FoldScore

_NAMED = 3


def print_recommendation(result: RecommendResult) -> None:
    """Print facts, candidates, backbones left out, recommendations with their reasons, and the recipe."""
    console = open_console()
    facts = make_table(result.name, [("", "left"), ("", "left")], header=False)
    for name, text in result.facts.items():
        facts.add_row(name, escape(text))
    facts.add_row("target", f"{result.target.name}: {escape(result.target.reason)}")
    console.print(facts)
    _print_dropped(result.dropped)
    _print_scores(result.candidates)
    _print_costs(result.candidates)
    table = make_table("Recommendations", [("question", "left"), ("answer", "left"), ("reason", "left")])
    for one in result.recommendations:
        table.add_row(one.question, escape(one.answer), escape(one.reason))
    console.print(table)
    console.print(f"Image: {escape(result.image)}", soft_wrap=True)
    if result.path:
        console.print(f"Run it with: tlkeras train {escape(result.path)}", soft_wrap=True)
        return
    console.print("The recipe to run (--to FILE writes it):\n", soft_wrap=True)
    console.print(escape(result.recipe), soft_wrap=True, highlight=False)


def _print_dropped(dropped: Mapping[str, str]) -> None:
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


def _print_scores(rows: Sequence[CandidateResult]) -> None:
    columns = [("backbone", "left"), ("score", "right"), ("", "left"), ("5 neighbours", "right")]
    columns += [("linear head", "right"), ("LogME", "right"), ("H-score", "right"), ("LEEP", "right")]
    columns += [("NCE", "right"), ("ImageNet", "right")]
    table = make_table("Balanced accuracy over folds, best first; the score is the mean of both", columns)
    for row in rows:
        scores = row.scores
        others = (_format(value, "{:.3f}") for value in (scores.logme, scores.h_score, scores.leep, scores.nce))
        classifiers = (_format_score(scores.neighbours), _format_score(scores.probe))
        top1 = _format(row.candidate.entry.top1, "{:.1f} %")
        best = "≈ best" if row.noise else ""
        table.add_row(row.name, _format_score(scores.ranking), best, *classifiers, *others, top1)
    open_console().print(table)


def _print_costs(rows: Sequence[CandidateResult]) -> None:
    columns = [("backbone", "left"), ("one image", "right"), ("images/s", "right"), ("memory", "right")]
    columns += [("weights", "right"), ("fine-tuning", "right"), ("its memory", "right"), ("licence", "left")]
    columns += [("Pareto front", "left")]
    table = make_table("On this machine", columns)
    for row in rows:
        costs = row.costs
        table.add_row(
            row.name,
            f"{costs.milliseconds:.1f} ms",
            f"{costs.images_per_second:,.0f}",
            _format(costs.megabytes, "{:,.0f} MB"),
            f"{row.candidate.megabytes:,.1f} MB",
            f"{row.minutes:,.1f} min",
            _format(costs.step_megabytes, "{:,.0f} MB"),
            row.candidate.entry.licence,
            "yes" if row.front else "",
        )
    open_console().print(table)


def _format_score(score: FoldScore) -> str:
    return f"{score.mean:.3f} ± {score.spread:.3f}"


def _format(value: float | None, template: str) -> str:
    return "-" if value is None else template.format(value)
