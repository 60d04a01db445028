"""Schedule, augmentation, features and learning rates of a recipe as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.markup import escape

from tlkeras.cli.tables.style import fill_table, left, make_table, open_console, print_table, right

if TYPE_CHECKING:
    from tlkeras.diagnostics.augmentation import AugmentationResult
    from tlkeras.diagnostics.features import FeaturePlotResult
    from tlkeras.diagnostics.learning_rate import LearningRateResult
    from tlkeras.diagnostics.schedule import ScheduleResult

_BARS, _BAR_WIDTH = 20, 40


def print_schedule(result: ScheduleResult) -> None:
    """Print which blocks train in each stage, at which learning rate, and why."""
    columns = left("stage") + right("epochs") + left("trains") + right("learning rate", "parameters")
    columns += left("starts from") + right("cached", "work saved")
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
        rows = [(chosen.key, str(chosen.value), chosen.reason) for chosen in result.reasons]
        columns = left("value") + right("") + left("because")
        console.print(fill_table("Chosen from the size of the data", columns, rows))


def print_augmentation(result: AugmentationResult) -> None:
    """Print the operations of a policy and the path of the sheet."""
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
    """Print the losses at some of the rates as bars, and the suggested rate."""
    console = open_console()
    pairs = list(zip(result.rates, result.smoothed, strict=True))
    highest = 1.5 * pairs[0][1] if pairs else 1.0  # a diverging loss would flatten all others
    rows = [
        (f"{rate:.1e}", f"{loss:.3f}", _draw_bar(min(loss / highest, 1.0)))
        for rate, loss in pairs[:: max(1, len(pairs) // _BARS)]
    ]
    columns = right("learning rate", "loss") + left("")
    console.print(fill_table(f"{result.name}: learning rates in stage {result.stage!r}", columns, rows))
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
    shares = {**result.separations, "the most common class alone": result.chance}
    rows = [(escape(name), f"{share:.3f}", _draw_bar(share)) for name, share in shares.items()]
    title = f"{result.name}: images with the class of their nearest neighbours"
    console.print(fill_table(title, left("depth") + right("share") + left(""), rows))
    console.print(f"{result.images:,} images, none of the test split: {escape(result.path)}")
    if result.maps:
        console.print(f"Maps of {escape(result.layer or '')}: {escape(result.maps)}")


def _draw_bar(share: float) -> str:
    return "█" * round(_BAR_WIDTH * share)
