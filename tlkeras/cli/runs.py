"""Commands on runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

import tlkeras
from tlkeras.cli.options import COUNT, json_option, render, runs_option, set_option


@click.command()
@click.argument("recipe", required=False)
@set_option
@click.option("--quick", is_flag=True, help="Shrink the run to seconds, to try it out; its metrics mean nothing.")
@click.option("--resume", metavar="RUN", help="Resume a run that stopped: a name, a path or `latest`.")
@runs_option
@json_option
def train(
    recipe: str | None, assignments: tuple[str, ...], quick: bool, resume: str | None, runs: str, as_json: bool
) -> None:
    """Train RECIPE (a shipped name or a .yaml file) and evaluate it on held-out images.

    \b
    Example: tlkeras train quickstart --set data.seed=1
    """
    from tlkeras.config.recipe import load_recipe, parse_overrides
    from tlkeras.runs.directory import find_resumable_run

    if (recipe is None) == (resume is None):
        raise click.UsageError("Give either a RECIPE to train or --resume RUN.")
    if resume is not None and (assignments or quick):
        raise click.UsageError("--resume uses the original recipe: remove --set and --quick.")
    if recipe is None:
        run = tlkeras.resume(find_resumable_run(resume or "latest", Path(runs)), runs=runs)
    else:
        run = tlkeras.train(load_recipe(recipe, parse_overrides(assignments), quick=quick), runs=runs)
    if worker := run.take_worker_result():
        render(worker, as_json, "runs.print_worker")
    else:
        render(tlkeras.evaluate(run), as_json, "runs.print_training")


@click.command()
@click.argument("run", default="latest")
@click.option("--on", metavar="DATA", help="Labelled images from another source, as in data.source.")
@runs_option
@json_option
def evaluate(run: str, on: str | None, runs: str, as_json: bool) -> None:
    """Evaluate RUN (a name, a path or `latest`) on its held-out images; metrics.json and metrics.csv keep the metrics.

    \b
    Example: tlkeras evaluate latest --on other_photos/
    """
    result = tlkeras.evaluate(run, runs=runs) if on is None else tlkeras.evaluate_on(run, on, runs=runs)
    render(result, as_json, "runs.print_evaluation")


@click.command()
@click.argument("run", metavar="[RUN]")
@click.argument("images", nargs=-1, metavar="IMAGE...")
@click.option("--url", help="Ask a served model instead of a run, such as http://localhost:8501/v1/models/NAME.")
@click.option("--out", metavar="TABLE", help="Write a .csv or .parquet of any number of images; resumes after a kill.")
@click.option(
    "--engine", metavar="local|ray", help="Write shards into the folder --out, by processes or a Ray cluster."
)
@click.option("--workers", type=COUNT, help="Processes or actors  [default: one for every 8 cores]")
@click.option("--top", default=3, type=COUNT, help="Classes shown per image.")
@runs_option
@json_option
def predict(run: str, images: tuple[str, ...], runs: str, as_json: bool, **options: Any) -> None:
    """Classify IMAGES (files or folders) with RUN's model; unreadable ones are listed and end in exit code 3.

    \b
    Example: tlkeras predict latest photo.jpg
             tlkeras predict latest photos/ --out predictions.parquet
             tlkeras predict latest photos/ --out predictions/ --engine local --workers 2
             tlkeras predict --url http://localhost:8501/v1/models/solar_cells photo.jpg
    """
    from tlkeras.errors import DataError, RunError
    from tlkeras.runs.directory import open_run

    url, out, engine, workers = (options[name] for name in ("url", "out", "engine", "workers"))
    if (workers and not engine) or (engine and (url or not out)):
        raise click.UsageError("Shards need a folder and an engine: --out FOLDER --engine local --workers 2")
    if url and out:
        raise click.UsageError("A table is made with a run: leave out --url or --out.")
    if not url and not images:
        raise click.UsageError("Give a RUN and at least one IMAGE, or --url and at least one IMAGE.")
    if engine:
        shards = tlkeras.predict_in_shards(open_run(run, runs), images, out, engine=engine, workers=workers)
        render(shards, as_json, "data.print_job")
        if shards.failed or shards.unreadable:
            sys.exit(RunError.exit_code if shards.failed else DataError.exit_code)
        return
    if out:
        result = tlkeras.predict_to_file(open_run(run, runs), images, out)
    elif url:
        result = tlkeras.predict_remotely(url, [run, *images])
    else:
        result = tlkeras.predict(open_run(run, runs), images, top=options["top"])
    render(result, as_json, "runs.print_prediction_file" if out else "runs.print_predictions")
    if result.unreadable:
        sys.exit(DataError.exit_code)
