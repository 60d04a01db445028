"""Commands on recipes."""

from __future__ import annotations

import click

import tlkeras
from tlkeras.cli.options import json_option, render, runs_option


@click.command()
@runs_option
@json_option
def ls(runs: str, as_json: bool) -> None:
    """List the shipped recipes and the runs made so far."""
    from tlkeras.cli.tables.recipes import print_list
    from tlkeras.config.recipe import read_header

    shipped = [{"name": name, "about": (read_header(path) or [""])[0]} for name, path in tlkeras.list_recipes().items()]
    made = [run.summarize() for run in tlkeras.list_runs(runs)]
    render({"recipes": shipped, "runs": made}, as_json, print_list)


@click.command()
@click.argument("recipe")
@click.argument("target", type=click.Path())
def cp(recipe: str, target: str) -> None:
    """Copy RECIPE, as installed, to the file TARGET; nothing is overwritten.

    \b
    Example: tlkeras cp quickstart mine.yaml
    """
    path = tlkeras.copy_recipe(recipe, target)
    click.echo(f"Copied to {path}. Next: tlkeras check {path}")
