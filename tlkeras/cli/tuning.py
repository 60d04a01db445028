"""The commands `tune` and `tune report`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

import tlkeras
from tlkeras.cli.options import COUNT, json_option, recipe_argument, render, runs_option

if TYPE_CHECKING:
    from tlkeras.config.recipe import Recipe


class _CommandWithSubcommands(click.Command):
    """A command whose first argument may also name a command below it, such as `tlkeras tune report`."""

    def __init__(self, *arguments: Any, subcommands: Sequence[click.Command], **options: Any):
        super().__init__(*arguments, **options)
        self.subcommands = {command.name: command for command in subcommands}

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """The context of this command, or of the one below it that the first argument names."""
        if args and args[0] in self.subcommands:
            name = f"{info_name} {args[0]}"
            return self.subcommands[args[0]].make_context(name, args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name or "", one.get_short_help_str()) for name, one in self.subcommands.items()])


@click.command()
@click.argument("search", default="latest")
@runs_option
@json_option
def report(search: str, runs: str, as_json: bool) -> None:
    """Show the trials of SEARCH (a name, a path or `latest`), best first, with charts in its folder.

    \b
    Example: tlkeras tune report latest
    """
    render(tlkeras.report_tuning(search, runs=runs), as_json, "tuning.print_tuning")


@click.command(cls=_CommandWithSubcommands, subcommands=[report])
@recipe_argument
@click.option("--workers", default=1, type=COUNT, help="Trials at the same time.")
@click.option("--engine", default="local", help="local (processes) or ray (a Ray cluster).")
@click.option("--train/--no-train", "train_best", default=True, help="Train the best trial as an ordinary run.")
@runs_option
@json_option
def tune(recipe: Recipe, runs: str, as_json: bool, **options: Any) -> None:
    """Search RECIPE's `tuning.space` for the best values on the validation split, never on the test split.

    Frozen features are computed once for all trials. After an interruption or kill -9 the same command resumes. The
    best trials are repeated with other seeds; the best becomes a recipe file and an ordinary run.

    \b
    Example: tlkeras tune mine.yaml --set tuning.max_trials=50
             tlkeras tune report latest
    """
    result = tlkeras.tune(recipe, runs=runs, **options)
    if result.run is None or not as_json:
        render(result, as_json, "tuning.print_tuning")
    if result.run is not None:
        best = tlkeras.evaluate(result.run, runs=runs)
        render({**result.to_dict(), "run": best} if as_json else best, as_json, "runs.print_training")
