"""Commands on what leaves a run: exported models."""

from __future__ import annotations

import click

from tlkeras.commands.options import print_result, takes_json, takes_runs

_SHARE = click.FloatRange(0, 1)


@click.command()
@click.argument("run", default="latest")
@click.option("--to", metavar="FOLDER", help="Folder of the versions  [default: saved_models/RECIPE]")
@click.option("--min-accuracy", type=_SHARE, help="Publish nothing whose accuracy is lower.")
@click.option("--max-drop", type=_SHARE, help="Publish nothing that loses more accuracy than this against the run.")
@takes_runs
@takes_json
def export(
    run: str, to: str | None, min_accuracy: float | None, max_drop: float | None, runs: str, as_json: bool
) -> None:
    """Write RUN as the next SavedModel version, proved against the run's own answers.

    \b
    Example: tlkeras export latest --to saved_models/solar_cells
    """
    from tlkeras import api

    result = api.export(run, to, min_accuracy=min_accuracy, max_drop=max_drop, runs=runs)
    print_result(result, as_json, "draw_export")
