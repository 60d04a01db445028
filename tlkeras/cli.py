"""The command line: options, one library call, print."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

import click

from tlkeras.errors import TlkerasError

INTERRUPTED = 130
UNEXPECTED = 70


class Commands(click.Group):
    """A group that says errors in one place: a sentence and a stable exit code, a traceback only with --debug."""

    def invoke(self, context: click.Context) -> Any:
        """Run a command; see `tlkeras.errors` for the exit codes."""
        try:
            return super().invoke(context)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except TlkerasError as error:
            self._leave(context, f"Error: {error}", error.exit_code)
        except KeyboardInterrupt:
            self._leave(
                context,
                "Interrupted. Features that were computed are kept; go on with: tlkeras train --resume latest",
                INTERRUPTED,
            )
        except Exception as error:
            message = f"Unexpected error: {type(error).__name__}: {error}\nRun `tlkeras --debug ...` to see where."
            self._leave(context, message, UNEXPECTED)

    def _leave(self, context: click.Context, message: str, code: int) -> None:
        if context.params.get("debug"):
            traceback.print_exc()
        click.echo(message, err=True)
        context.exit(code)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="tlkeras")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--quiet", is_flag=True, help="No progress bars and no warnings.")
def main(debug: bool, quiet: bool) -> None:
    """From a folder of pictures to a served classifier, by transfer learning.

    \b
    tlkeras train quickstart                      train the shipped example
    tlkeras cp quickstart mine.yaml               make a recipe of your own
    tlkeras train mine.yaml --set data.source=photos/
    """
    import logging

    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.ERROR if quiet else logging.WARNING)
    logging.captureWarnings(True)
    from tlkeras import progress

    progress.show(not quiet)


def _overrides(command: Callable) -> Callable:
    return click.option(
        "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override a value of the recipe; repeatable."
    )(command)


def _runs(command: Callable) -> Callable:
    return click.option(
        "--runs", default="runs", show_default=True, metavar="FOLDER", help="Where run directories are."
    )(command)


def _json(command: Callable) -> Callable:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")(command)


def _print(result: Any, as_json: bool, draw: str) -> None:
    """Print a result as JSON, or with the function of that name in `tlkeras.tables`."""
    if as_json:
        click.echo(json.dumps(result, indent=2, default=str))
        return
    from tlkeras import tables

    getattr(tables, draw)(result)


@main.command()
@click.argument("recipe", required=False)
@_overrides
@click.option("--quick", is_flag=True, help="Shrink the run to seconds; its figures mean nothing.")
@click.option("--resume", metavar="RUN", help="Go on with a run that stopped: a name, a path or `latest`.")
@_runs
@_json
def train(
    recipe: str | None, assignments: tuple[str, ...], quick: bool, resume: str | None, runs: str, as_json: bool
) -> None:
    """Train RECIPE (a shipped name or a .yaml file) and measure it on held-out pictures.

    \b
    Example: tlkeras train quickstart --set data.seed=1
    """
    from tlkeras import api
    from tlkeras.recipe import parse_overrides

    if (recipe is None) == (resume is None):
        raise click.UsageError("Give either a RECIPE to train or --resume RUN to go on with.")
    if resume is not None and (assignments or quick):
        raise click.UsageError("A run goes on with the recipe that it was started with: leave out --set and --quick.")
    if recipe is None:
        result = api.resume(resume or "latest", runs=runs)
    else:
        result = api.train(recipe, parse_overrides(assignments), quick=quick, runs=runs)
    _print(result, as_json, "draw_training")


@main.command()
@click.argument("run", default="latest")
@_runs
@_json
def evaluate(run: str, runs: str, as_json: bool) -> None:
    """Measure RUN (a name, a path or `latest`) on its held-out pictures.

    \b
    Example: tlkeras evaluate latest --json
    """
    from tlkeras import api

    _print(api.evaluate(run, runs=runs), as_json, "draw_evaluation")


@main.command()
@click.argument("run")
@click.argument("pictures", nargs=-1, required=True, metavar="PICTURE...")
@click.option("--top", default=3, show_default=True, type=click.IntRange(1), help="Classes shown per picture.")
@_runs
@_json
def predict(run: str, pictures: tuple[str, ...], top: int, runs: str, as_json: bool) -> None:
    """Classify PICTURES (files or folders) with RUN's model; unreadable ones are listed and end in exit code 3.

    \b
    Example: tlkeras predict latest photo.jpg
    """
    from tlkeras import api
    from tlkeras.errors import DataError

    result = api.predict(run, pictures, top=top, runs=runs)
    _print(result, as_json, "draw_predictions")
    if result["unreadable"]:
        sys.exit(DataError.exit_code)


@main.command()
@click.argument("run", default="latest")
@click.option("--to", metavar="FOLDER", help="Folder of the versions  [default: saved_models/RECIPE]")
@_runs
@_json
def export(run: str, to: str | None, runs: str, as_json: bool) -> None:
    """Write RUN as the next SavedModel version, proved against the run's own answers.

    \b
    Example: tlkeras export latest --to saved_models/solar_cells
    """
    from tlkeras import api

    _print(api.export(run, to, runs=runs), as_json, "draw_export")


@main.command()
@click.argument("recipe")
@_overrides
@_json
def check(recipe: str, assignments: tuple[str, ...], as_json: bool) -> None:
    """Say what training RECIPE would do and what is in its way, all at once; exit code 1 if something is.

    \b
    Example: tlkeras check mine.yaml
    """
    from tlkeras import api
    from tlkeras.recipe import parse_overrides

    result = api.check(recipe, parse_overrides(assignments))
    _print(result, as_json, "draw_check")
    if result["problems"]:
        sys.exit(TlkerasError.exit_code)


@main.command()
@_runs
@_json
def ls(runs: str, as_json: bool) -> None:
    """List the shipped recipes and the runs made so far."""
    from tlkeras import api

    _print(api.list_recipes(runs=runs), as_json, "draw_list")


@main.command()
@click.argument("recipe")
@click.argument("target", type=click.Path())
def cp(recipe: str, target: str) -> None:
    """Copy RECIPE, as installed, to the file TARGET; nothing is overwritten.

    \b
    Example: tlkeras cp quickstart mine.yaml
    """
    from tlkeras import api

    path = api.copy_recipe(recipe, target)
    click.echo(f"Copied to {path}. Next: tlkeras check {path}")


@main.group(invoke_without_command=True)
@click.option("--like", default="*", metavar="PATTERN", help="Names that match, such as 'efficientnet*'.")
@click.option("--weights", metavar="SOURCE", help="With weights from imagenet, packaged or none.")
@click.option("--max-parameters", type=click.FloatRange(0, 1e6), metavar="MILLIONS", help="At most so many parameters.")
@click.option(
    "--max-multiply-adds", type=click.FloatRange(0, 1e6), metavar="MILLIONS", help="At most so many per picture."
)
@_json
@click.pass_context
def backbones(context: click.Context, as_json: bool, **limits: Any) -> None:
    """List the pretrained networks, or look into one with `show`.

    \b
    Example: tlkeras backbones --like 'efficientnet*' --max-parameters 10
    """
    if context.invoked_subcommand:
        return
    from tlkeras import api

    _print(api.backbones(limits.pop("like"), **limits), as_json, "draw_backbones")


@backbones.command(name="show")
@click.argument("name")
@click.option("--size", type=click.IntRange(1), help="Side of the pictures  [default: the backbone's own]")
@_json
def show_backbone(name: str, size: int | None, as_json: bool) -> None:
    """Show the blocks of a backbone and where it can be cut.

    \b
    Example: tlkeras backbones show efficientnet_lite0
    """
    from tlkeras import api

    _print(api.show_backbone(name, size=size), as_json, "draw_backbone")


@main.group()
def show() -> None:
    """Look at what a recipe would do, before it does it."""


@show.command()
@click.argument("recipe")
@_overrides
@_json
def schedule(recipe: str, assignments: tuple[str, ...], as_json: bool) -> None:
    """Show which blocks train in each stage of RECIPE, at which rate, with how many parameters, and why.

    \b
    Example: tlkeras show schedule fine_tune
    """
    from tlkeras import api
    from tlkeras.recipe import parse_overrides

    _print(api.show_schedule(recipe, parse_overrides(assignments)), as_json, "draw_schedule")


@main.group()
def cache() -> None:
    """The store of frozen activations that all commands share."""


@cache.command(name="ls")
@_json
def list_cache(as_json: bool) -> None:
    """List what the cache holds, the most recently used first."""
    from tlkeras import api

    _print(api.list_cache(), as_json, "draw_cache")


@cache.command()
@click.option("--max-gb", type=click.FloatRange(0, 1e6), help="Remove the least recently used until so much is left.")
@click.option("--unused-days", type=click.FloatRange(0, 1e6), help="Remove what was not used for so long.")
@_json
def prune(max_gb: float | None, unused_days: float | None, as_json: bool) -> None:
    """Remove activations; what a running program uses, and the pictures, are never touched.

    \b
    Example: tlkeras cache prune --unused-days 30
    """
    from tlkeras import api

    if max_gb is None and unused_days is None:
        raise click.UsageError("Say what may go: --max-gb 0 for everything, or --unused-days 30.")
    _print(api.prune_cache(max_gb=max_gb, unused_days=unused_days), as_json, "draw_pruned")
