"""Commands on what there is: recipes and runs, and pretrained networks."""

from __future__ import annotations

from typing import Any

import click

import tlkeras
from tlkeras.cli.options import COUNT, POSITIVE, json_option, render, runs_option


@click.command()
@runs_option
@json_option
def ls(runs: str, as_json: bool) -> None:
    """List the shipped recipes and the runs made so far."""
    from tlkeras.config.recipe import read_header

    shipped = [{"name": name, "about": (read_header(path) or [""])[0]} for name, path in tlkeras.list_recipes().items()]
    made = [run.summarize() for run in tlkeras.list_runs(runs)]
    render({"recipes": shipped, "runs": made}, as_json, "catalog.print_list")


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


@click.group(invoke_without_command=True)
@click.option("--like", default="*", metavar="PATTERN", help="Names that match, such as 'efficientnet*'.")
@click.option("--weights", metavar="SOURCE", help="With weights from imagenet, packaged, preset (of KerasHub) or none.")
@click.option("--max-parameters", type=POSITIVE, metavar="MILLIONS", help="At most so many parameters.")
@click.option("--max-multiply-adds", type=POSITIVE, metavar="MILLIONS", help="At most so many per image.")
@json_option
@click.pass_context
def backbones(context: click.Context, as_json: bool, **limits: Any) -> None:
    """List the pretrained networks, or look into one with `show`.

    \b
    Example: tlkeras backbones --like 'efficientnet*' --max-parameters 10
    """
    if context.invoked_subcommand:
        return
    render(tlkeras.list_backbones(limits.pop("like"), **limits), as_json, "catalog.print_backbones")


@backbones.command(name="show")
@click.argument("name")
@click.option("--size", type=COUNT, help="Side of the images  [default: the backbone's own]")
@json_option
def show_backbone(name: str, size: int | None, as_json: bool) -> None:
    """Show the blocks of a backbone and where it can be cut.

    \b
    Example: tlkeras backbones show efficientnet_lite0
    """
    render(tlkeras.show_backbone(name, size=size), as_json, "catalog.print_backbone")
