"""Commands on recipes."""

from __future__ import annotations

import sys
from typing import Any

import click

from tlkeras.cli.options import json_option, render, runs_option, set_option
from tlkeras.errors import TlkerasError


@click.command()
@runs_option
@json_option
def ls(runs: str, as_json: bool) -> None:
    """List the shipped recipes and the runs made so far."""
    import tlkeras
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
    import tlkeras

    path = tlkeras.copy_recipe(recipe, target)
    click.echo(f"Copied to {path}. Next: tlkeras check {path}")


@click.command()
@click.argument("recipe", metavar="DATA|RECIPE")
@set_option
@click.option("--deep", is_flag=True, help="Look for wrong labels and outliers whatever it takes to compute features.")
@click.option("--html", type=click.Path(), metavar="FILE", help="Write a page with the images in question.")
@click.option("--fix", type=click.Path(), metavar="FILE", help="Write a cleaned manifest; images are not touched.")
@json_option
def check(
    recipe: str, assignments: tuple[str, ...], deep: bool, html: str | None, fix: str | None, as_json: bool
) -> None:
    """Look through images and labels (a folder, a .csv, a set's name) or all that a RECIPE would train on.

    Unreadable and odd files, the balance of classes, copies with different labels or on different splits, labels that
    look wrong, outliers; of a recipe, also what training it would do. Exit code 1 where it is not advisable.

    \b
    Example: tlkeras check photos/ --html check.html
    """
    import tlkeras
    from tlkeras.cli.tables.check import print_check
    from tlkeras.config.recipe import parse_overrides
    from tlkeras.data.sources.references import load_recipe_or_source

    overrides = parse_overrides(assignments)
    load_recipe_or_source(recipe, overrides)  # what is wrong with it is told before TensorFlow is imported
    result = tlkeras.check(recipe, overrides, deep=deep, html=html, fix=fix)
    render(result, as_json, print_check)
    if result["problems"]:
        sys.exit(TlkerasError.exit_code)


@click.group()
def show() -> None:
    """Look at what a recipe would do, before it does it."""


@show.command()
@click.argument("recipe")
@set_option
@json_option
def schedule(recipe: str, assignments: tuple[str, ...], as_json: bool) -> None:
    """Show which blocks train in each stage of RECIPE, at which rate, with how many parameters, and why.

    \b
    Example: tlkeras show schedule fine_tune
    """
    import tlkeras
    from tlkeras.cli.tables.recipes import print_schedule
    from tlkeras.config.recipe import load_recipe, parse_overrides

    render(tlkeras.show_schedule(load_recipe(recipe, parse_overrides(assignments))), as_json, print_schedule)


@show.command()
@click.argument("recipe")
@set_option
@click.option("--to", type=click.Path(), metavar="FILE", help="The PNG file  [default: RECIPE-augmentation.png]")
@click.option("--images", type=click.IntRange(1, 64), default=6, show_default=True, help="Rows of the sheet.")
@click.option("--views", type=click.IntRange(1, 64), default=8, show_default=True, help="Columns of the sheet.")
@json_option
def augmentation(
    recipe: str, assignments: tuple[str, ...], to: str | None, images: int, views: int, as_json: bool
) -> None:
    """Draw what the augmentation of RECIPE does to some of its images, side by side on one sheet.

    \b
    Example: tlkeras show augmentation fine_tune --set augmentation.policy=rand_augment
    """
    import tlkeras
    from tlkeras.cli.tables.recipes import print_augmentation
    from tlkeras.config.recipe import load_recipe, parse_overrides

    loaded = load_recipe(recipe, parse_overrides(assignments))
    result = tlkeras.show_augmentation(loaded, to=to, images=images, views=views)
    render(result, as_json, print_augmentation)


@click.command(name="find-lr")
@click.argument("recipe")
@set_option
@click.option("--stage", metavar="NAME", help="The stage to search in; the first where it is left out.")
@click.option("--steps", default=100, show_default=True, type=click.IntRange(20), help="Rates to try, 1e-6 to 1.")
@click.option("--to", type=click.Path(), metavar="FILE", help="The PNG file of the curve  [default: RECIPE-rates.png]")
@json_option
def find_lr(
    recipe: str, assignments: tuple[str, ...], stage: str | None, steps: int, to: str | None, as_json: bool
) -> None:
    """Try rising learning rates in a stage of RECIPE, from the fitted head on, and suggest one; nothing is trained.

    \b
    Example: tlkeras find-lr fine_tune --stage top
    """
    import tlkeras
    from tlkeras.cli.tables.recipes import print_rates
    from tlkeras.config.recipe import load_recipe, parse_overrides

    result = tlkeras.find_learning_rate(
        load_recipe(recipe, parse_overrides(assignments)), stage=stage, steps=steps, to=to
    )
    render(result, as_json, print_rates)


@show.command()
@click.argument("recipe")
@set_option
@click.option("--method", default="tsne", show_default=True, help="Of the second projection: tsne, or umap (an extra).")
@click.option("--layer", metavar="NAME", help="Also draw the maps of this block or cut of the backbone.")
@click.option("--images", type=click.IntRange(8), default=2000, show_default=True, help="How many, at most.")
@click.option("--to", type=click.Path(), metavar="FILE", help="The PNG file  [default: RECIPE-features.png]")
@json_option
def features(recipe: str, assignments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Draw what the features of RECIPE separate: PCA and t-SNE, coloured by class and domain; neighbours per depth.

    Images of the test split are left out. The bars say at each depth how many images have the class of their
    nearest neighbours: where to cut the backbone, and whether to fuse depths.

    \b
    Example: tlkeras show features quickstart --layer block3b
    """
    import tlkeras
    from tlkeras.cli.tables.recipes import print_features
    from tlkeras.config.recipe import load_recipe, parse_overrides

    render(tlkeras.show_features(load_recipe(recipe, parse_overrides(assignments)), **options), as_json, print_features)
