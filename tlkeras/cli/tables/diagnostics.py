"""What is known before a training as tables: checks, schedules, augmentation, features, rates, recommendations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape

from tlkeras.cli.tables.style import Row, bar, left, open_console, paths, print_issues, print_notes, print_table, right
from tlkeras.diagnostics.recommend.candidates import group_by_reason

if TYPE_CHECKING:
    from tlkeras.diagnostics.augmentation import AugmentationResult
    from tlkeras.diagnostics.data_quality import CheckResult, ClassCount, DuplicateImages
    from tlkeras.diagnostics.features import FeaturePlotResult
    from tlkeras.diagnostics.recommend.measurements import CandidateResult, FoldScore
    from tlkeras.diagnostics.recommend.recommend import RecommendResult
    from tlkeras.diagnostics.schedule import LearningRateResult, ScheduleResult

_MOST_CLASSES, _MOST_GROUPS, _MOST_IN_GROUP, _MOST_IMAGES = 30, 10, 4, 15
_BAR = 24
_BARS, _BAR_WIDTH = 20, 40
_NAMED = 3


def print_check(result: CheckResult) -> None:
    console = open_console()
    facts = [(name, escape(fact)) for name, fact in result.facts.items() if name != "classes"]  # they have a table
    if facts:
        print_table(f"Check of {result.name}", left("", ""), facts)
    if result.classes:
        _print_classes(result.classes)
    if result.rejected:
        print_issues("Files that cannot be used", result.rejected)
    if copies := [group for group in result.copies if group.conflicting or group.leaking]:
        _print_copies(copies)
    wrong = [(image.key, image.label, image.suggested, f"{image.score:.2f}") for image in result.mislabelled or ()]
    odd = [(image.key, image.label) for image in result.outliers or ()]
    columns = paths("image") + left("label")
    for title, more, rows in (
        ("Labels that look wrong", left("model says") + right("score"), wrong),
        ("Images unlike all others", [], odd),
    ):
        if rows:
            cells = [tuple(map(escape, row)) for row in rows]
            print_table(f"{title} ({len(rows):,})", columns + more, cells, _MOST_IMAGES)
    print_notes(result.notes)
    for problem in result.problems:
        console.print(f"[red]problem:[/red] {escape(problem)}")
    if manifest := result.manifest:
        left_out = "; ".join(f"{count:,}: {reason}" for reason, count in manifest.left_out.items()) or "none"
        written = f"{escape(manifest.path)}, {manifest.images:,} images. Left out: {left_out}."
        console.print(f"Manifest: {written}", soft_wrap=True)
        if manifest.merged:
            merged = ", ".join(f"{old!r} is {new!r}" for old, new in manifest.merged.items())
            console.print(f"Merged labels: {escape(merged)}.")
    if result.page:
        console.print(f"Page: {escape(result.page)}", soft_wrap=True)
    console.print("Training is not advisable yet." if result.problems else "No problems found: ready to train.")


def _print_classes(rows: Sequence[ClassCount]) -> None:
    several = len({row.task for row in rows}) > 1
    largest = max(row.share for row in rows) or 1
    cells = [
        (
            escape(f"{row.task}: {row.class_name}" if several else row.class_name),
            f"{row.images:,}",
            "█" * max(1, round(_BAR * row.share / largest)) if row.images else "",
            *(f"{count:,}" for count in row.splits.values()),
        )
        for row in rows
    ]
    print_table("Classes", left("class") + right("images") + bar() + right(*rows[0].splits), cells, _MOST_CLASSES)


def _print_copies(groups: Sequence[DuplicateImages]) -> None:
    rows: list[Row] = []
    for group in groups[:_MOST_GROUPS]:
        kind = "same bytes" if group.kind == "exact" else f"alike, {group.similarity:.3f}"
        for number, image in enumerate(group.images[:_MOST_IN_GROUP]):
            rows.append(("" if number else kind, escape(image.label), image.split, escape(image.key)))
        if len(group.images) > _MOST_IN_GROUP:
            rows.append(("", "", "", f"and {len(group.images) - _MOST_IN_GROUP:,} more"))
        rows.append(None)
    print_table("Copies that mislead", left("", "label", "split") + paths("image"), rows)
    if len(groups) > _MOST_GROUPS:
        open_console().print(f"and {len(groups) - _MOST_GROUPS:,} more groups")


def print_schedule(result: ScheduleResult) -> None:
    columns = left("stage") + right("epochs") + left("trains") + right("learning rate", "parameters")
    columns += left("starts from") + right("cached", "work saved")
    views = f", {result.views} views of each image in {result.precision}" if result.views else ""
    count = len(result.stages)
    rows: list[Row] = []
    for stage in result.stages:
        cached = f"{stage.megabytes:,.0f} MB" if stage.megabytes else "-"
        head = ("head", f"{stage.learning_rate:.1e}", "")
        rows.append((stage.name, str(stage.epochs), *head, stage.cut, cached, f"{stage.saved:.0%}"))
        blocks = ((block.name, f"{block.learning_rate:.1e}", f"{block.parameters:,}") for block in stage.blocks)
        rows += [("", "", *block, "", "", "") for block in blocks] + [None]
    print_table(f"{result.name}: {count} stage{'s' if count > 1 else ''}{views}", columns, rows)
    console = open_console()
    for stage in result.stages:
        console.print(f"{escape(stage.name)} starts from {escape(stage.cut)}: {stage.reason}.")
    if result.reasons:
        chosen_rows = [(chosen.key, str(chosen.value), chosen.reason) for chosen in result.reasons]
        columns = left("value") + right("") + left("because")
        print_table("Chosen from the size of the data", columns, chosen_rows)


def print_augmentation(result: AugmentationResult) -> None:
    rounds = f", {result.rounds} rounds" if result.rounds > 1 else ""
    count = "unlimited views" if result.views is None else f"{result.views} view(s)"
    rows = [(escape(operations),) for operations in result.operations]
    print_table(f"{result.name}: {result.policy}{rounds}, {count}", left("one of these at a time"), rows)
    console = open_console()
    mixed = [f"{name} {alpha:g}" for name, alpha in (("MixUp", result.mixup), ("CutMix", result.cutmix)) if alpha]
    if mixed:
        console.print(f"Images of a batch are mixed: {', '.join(mixed)}.")
    console.print(f"{result.images} images in {result.shown} views: {escape(result.path)}")


def print_learning_rate(result: LearningRateResult) -> None:
    console = open_console()
    pairs = list(zip(result.rates, result.smoothed, strict=True))
    highest = 1.5 * pairs[0][1] if pairs else 1.0  # a diverging loss would flatten all others
    rows = [
        (f"{rate:.1e}", f"{loss:.3f}", _draw_bar(min(loss / highest, 1.0)))
        for rate, loss in pairs[:: max(1, len(pairs) // _BARS)]
    ]
    columns = right("learning rate", "loss") + bar()
    print_table(f"{result.name}: learning rates in stage {result.stage!r}", columns, rows)
    if result.suggestion is None:
        console.print(f"No rate is suggested. {result.reason}")
    else:
        own = f"the recipe has {result.learning_rate:.1e}"
        console.print(f"Suggested: {result.suggestion:.1e} ({own}). {result.reason}")
    if result.image:
        console.print(f"Curve: {escape(result.image)}", soft_wrap=True)


def print_features(result: FeaturePlotResult) -> None:
    console = open_console()
    shares = {**result.separations, "the most common class alone": result.chance}
    rows = [(escape(name), f"{share:.3f}", _draw_bar(share)) for name, share in shares.items()]
    title = f"{result.name}: images with the class of their nearest neighbours"
    print_table(title, left("depth") + right("share") + bar(), rows)
    console.print(f"{result.images:,} images, none of the test split: {escape(result.path)}")
    if result.maps:
        console.print(f"Maps of {escape(result.layer or '')}: {escape(result.maps)}", soft_wrap=True)


def _draw_bar(share: float) -> str:
    return "█" * round(_BAR_WIDTH * share)


def print_recommendation(result: RecommendResult) -> None:
    console = open_console()
    facts = {**result.facts, "target": f"{result.target.name}: {result.target.reason}"}
    print_table(result.name, left("", ""), [(name, escape(text)) for name, text in facts.items()])
    if result.dropped:
        rows = [
            (str(len(names)), escape(reason), ", ".join(names[:_NAMED]))
            for reason, names in group_by_reason(result.dropped)
        ]
        print_table("Left out", right("backbones") + left("reason", "such as"), rows)
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
