"""Commands of choosing."""

from __future__ import annotations

import click

from tlkeras.commands.options import print_result, takes_json, takes_overrides, takes_runs


@click.command()
@click.argument("recipe", metavar="RECIPE|report")
@click.argument("search", required=False)
@takes_overrides
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="Trials at the same time.")
@click.option("--train/--no-train", "train_best", default=True, help="Make an ordinary run of the best trial.")
@takes_runs
@takes_json
def tune(
    recipe: str,
    search: str | None,
    assignments: tuple[str, ...],
    workers: int,
    train_best: bool,
    runs: str,
    as_json: bool,
) -> None:
    """Search RECIPE's `tuning.space` for what is best on the validation side, never on the test side.

    What is frozen in all trials is computed once. After an interruption or kill -9 the same command goes on. The best
    trials are repeated with other seeds; the best becomes a recipe file and an ordinary run.

    \b
    Example: tlkeras tune mine.yaml --set tuning.max_trials=50
             tlkeras tune report latest                     table and pictures of a search
    """
    from tlkeras import api
    from tlkeras.recipe import parse_overrides

    if recipe == "report":
        result = api.report_tuning(search or "latest", runs=runs)
    elif search is not None:
        raise click.UsageError("Only `tlkeras tune report` takes a SEARCH.")
    else:
        result = api.tune(recipe, parse_overrides(assignments), workers=workers, train_best=train_best, runs=runs)
    print_result(result, as_json, "draw_tuning")
