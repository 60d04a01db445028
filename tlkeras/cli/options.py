"""Arguments and options that several commands take, and how all of them print."""

import functools
import json
from collections.abc import Callable
from importlib import import_module
from typing import Any

import click

from tlkeras.config.image_size import read_size
from tlkeras.results import to_plain


class _SizeType(click.ParamType):
    name = "size"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        """The size in a text such as 224 or 224x320."""
        try:
            return read_size(int(value) if str(value).isdecimal() else value)
        except ValueError as error:
            self.fail(str(error), parameter, context)


SIZE = _SizeType()
COUNT, POSITIVE = click.IntRange(1), click.FloatRange(0, 1e6)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
runs_option = click.option("--runs", default="runs", metavar="FOLDER", help="Where run directories are.")
set_option = click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override a value of the recipe; repeatable."
)


def recipe_argument(command: Callable) -> Callable:
    """Add RECIPE and `--set`; the command gets the recipe, whose errors are shown before TensorFlow is imported."""

    @functools.wraps(command)
    def load(recipe: str, assignments: tuple[str, ...], **options: Any) -> None:
        from tlkeras.config.recipe import parse_overrides
        from tlkeras.data.sources.folders import load_recipe_or_source

        command(load_recipe_or_source(recipe, parse_overrides(assignments))[0], **options)

    return click.argument("recipe", metavar="RECIPE|DATA")(set_option(load))


def source_argument(command: Callable) -> Callable:
    """Add DATA|RECIPE and `--set`; the command gets a text and values by key, known to make a recipe."""

    @functools.wraps(command)
    def check(recipe: str, assignments: tuple[str, ...], **options: Any) -> None:
        from tlkeras.config.recipe import parse_overrides
        from tlkeras.data.sources.folders import load_recipe_or_source

        overrides = parse_overrides(assignments)
        load_recipe_or_source(recipe, overrides)
        command(recipe, overrides, **options)

    return click.argument("recipe", metavar="DATA|RECIPE")(set_option(check))


def render(result: Any, as_json: bool, table: str) -> None:
    """Print a result as JSON, or by a function of `tlkeras.cli.tables`, MODULE.NAME, which is only then imported."""
    if as_json:
        click.echo(json.dumps(to_plain(result), indent=2, default=str))
    else:
        module, name = table.split(".")
        getattr(import_module(f"tlkeras.cli.tables.{module}"), name)(result)
