"""Schedule, augmentation, features and learning rates of a recipe as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from tlkeras.cli.tables.style import make_table, open_console

if TYPE_CHECKING:
    from tlkeras.diagnostics.augmentation import AugmentationResult
    from tlkeras.diagnostics.features import FeaturePlotResult
    from tlkeras.diagnostics.learning_rate import LearningRateResult
    from tlkeras.diagnostics.schedule import ScheduleResult

_BARS, _BAR_WIDTH = 20, 40


def print_schedule(result: ScheduleResult) -> None:
    """Print which blocks train in each stage, at which learning rate, and why."""
    columns = [("stage", "left"), ("epochs", "right"), ("trains", "left"), ("learning rate", "right")]
    columns += [("parameters", "right"), ("starts from", "left"), ("cached", "right"), ("work saved", "right")]
    views = f", {result.views} views of each image in {result.precision}" if result.views else ""
    count = len(result.stages)
    table = make_table(f"{result.name}: {count} stage{'s' if count > 1 else ''}{views}", columns)
    for stage in result.stages:
        cached = f"{stage.megabytes:,.0f} MB" if stage.megabytes else "-"
        head = ("head", f"{stage.learning_rate:.1e}", "")
        table.add_row(stage.name, str(stage.epochs), *head, stage.cut, cached, f"{stage.saved:.0%}")
        for block in stage.blocks:
            table.add_row("", "", block.name, f"{block.learning_rate:.1e}", f"{block.parameters:,}", "", "", "")
        table.add_section()
    console = open_console()
    console.print(table)
    for stage in result.stages:
        console.print(f"{escape(stage.name)} starts from {escape(stage.cut)}: {stage.reason}.")
    if result.reasons:
        reasons = make_table(
            "Chosen from the size of the data", [("value", "left"), ("", "right"), ("because", "left")]
        )
        for chosen in result.reasons:
            reasons.add_row(chosen.key, str(chosen.value), chosen.reason)
        console.print(reasons)


def print_augmentation(result: AugmentationResult) -> None:
    """Print the operations of a policy and the path of the sheet."""
    rounds = f", {result.rounds} rounds" if result.rounds > 1 else ""
    count = "unlimited views" if result.views is None else f"{result.views} view(s)"
    table = make_table(f"{result.name}: {result.policy}{rounds}, {count}", [("one of these at a time", "left")])
    for operations in result.operations:
        table.add_row(escape(operations))
    console = open_console()
    console.print(table)
    mixed = [f"{name} {alpha:g}" for name, alpha in (("MixUp", result.mixup), ("CutMix", result.cutmix)) if alpha]
    if mixed:
        console.print(f"Images of a batch are mixed: {', '.join(mixed)}.")
    console.print(f"{result.images} images in {result.shown} views: {escape(result.path)}")


def print_learning_rate(result: LearningRateResult) -> None:
    """Print the losses at some of the rates as bars, and the suggested rate."""
    console = open_console()
    columns = [("learning rate", "right"), ("loss", "right"), ("", "left")]
    table = make_table(f"{result.name}: learning rates in stage {result.stage!r}", columns)
    pairs = list(zip(result.rates, result.smoothed, strict=True))
    if pairs:
        shown = pairs[:: max(1, len(pairs) // _BARS)]
        highest = 1.5 * shown[0][1]  # a diverging loss would flatten all others
        for rate, loss in shown:
            table.add_row(f"{rate:.1e}", f"{loss:.3f}", _draw_bar(min(loss / highest, 1.0)))
    console.print(table)
    if result.suggestion is None:
        console.print(f"No rate is suggested. {result.reason}")
    else:
        own = f"the recipe has {result.learning_rate:.1e}"
        console.print(f"Suggested: {result.suggestion:.1e} ({own}). {result.reason}")
    if result.image:
        console.print(f"Curve: {escape(result.image)}")


def print_features(result: FeaturePlotResult) -> None:
    """Print how well each depth separates the classes, and the paths of the plots."""
    console = open_console()
    columns = [("depth", "left"), ("share", "right"), ("", "left")]
    table = make_table(f"{result.name}: images with the class of their nearest neighbours", columns)
    for name, share in {**result.separations, "the most common class alone": result.chance}.items():
        table.add_row(escape(name), f"{share:.3f}", _draw_bar(share))
    console.print(table)
    console.print(f"{result.images:,} images, none of the test split: {escape(result.path)}")
    if result.maps:
        console.print(f"Maps of {escape(result.layer or '')}: {escape(result.maps)}")


def _draw_bar(share: float) -> str:
    return "█" * round(_BAR_WIDTH * share)
