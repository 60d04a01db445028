"""Commands before a training: check, show, find-lr, recommend."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

import tlkeras
from tlkeras.cli.options import COUNT, POSITIVE, json_option, recipe_argument, render, source_argument
from tlkeras.errors import TlkerasError

if TYPE_CHECKING:
    from tlkeras.config.recipe import Recipe

_LIMITS = ("target", "patterns", "licences", "parameters", "multiply_adds", "megabytes", "milliseconds", "most")
"""Options of `recommend` that are fields of `BackboneLimits`."""


@click.command()
@source_argument
@click.option("--deep", is_flag=True, help="Compute features of any number of images to find wrong labels.")
@click.option("--html", type=click.Path(), metavar="FILE", help="Write a page with the images in question.")
@click.option("--fix", type=click.Path(), metavar="FILE", help="Write a cleaned manifest; images are not touched.")
@json_option
def check(recipe: str, overrides: dict[str, Any], as_json: bool, **options: Any) -> None:
    """Check images and labels (a folder, a .csv, a data set's name), or all that a RECIPE would train on.

    Finds unreadable and odd files, imbalanced classes, copies with different labels or in different splits, labels
    that look wrong, and outliers; for a recipe, also what training would compute. Exit code 1 if there is a problem.

    \b
    Example: tlkeras check photos/ --html check.html
    """
    result = tlkeras.check(recipe, overrides, **options)
    render(result, as_json, "diagnostics.print_check")
    if result.problems:
        sys.exit(TlkerasError.exit_code)


@click.group()
def show() -> None:
    """Show the schedule, the augmentation or the features of a recipe before it is trained."""


@show.command()
@recipe_argument
@json_option
def schedule(recipe: Recipe, as_json: bool) -> None:
    """Show which blocks train in each stage of RECIPE, at which learning rate, and why.

    \b
    Example: tlkeras show schedule fine_tune
    """
    render(tlkeras.show_schedule(recipe), as_json, "diagnostics.print_schedule")


@show.command()
@recipe_argument
@click.option("--to", type=click.Path(), metavar="FILE", help="The PNG file  [default: RECIPE-augmentation.png]")
@click.option("--images", type=click.IntRange(1, 64), default=6, help="Rows of the sheet.")
@click.option("--views", type=click.IntRange(1, 64), default=8, help="Columns of the sheet.")
@json_option
def augmentation(recipe: Recipe, as_json: bool, **options: Any) -> None:
    """Draw augmented views of some images of RECIPE, side by side on one sheet.

    \b
    Example: tlkeras show augmentation fine_tune --set augmentation.policy=rand_augment
    """
    render(tlkeras.show_augmentation(recipe, **options), as_json, "diagnostics.print_augmentation")


@show.command()
@recipe_argument
@click.option("--method", default="tsne", help="Second projection: tsne, or umap (an extra).")
@click.option("--layer", metavar="NAME", help="Also draw the maps of this block or cut of the backbone.")
@click.option("--images", type=click.IntRange(8), default=2000, help="Maximum number of images.")
@click.option("--to", type=click.Path(), metavar="FILE", help="The PNG file  [default: RECIPE-features.png]")
@json_option
def features(recipe: Recipe, as_json: bool, **options: Any) -> None:
    """Draw projections of the features of RECIPE, and the accuracy of nearest neighbours at each depth.

    PCA and t-SNE are coloured by class and domain; images of the test split are left out. The accuracies show where
    to cut the backbone, and whether to fuse depths.

    \b
    Example: tlkeras show features quickstart --layer block3b
    """
    render(tlkeras.show_features(recipe, **options), as_json, "diagnostics.print_features")


@click.command(name="find-lr")
@recipe_argument
@click.option("--stage", metavar="NAME", help="The stage  [default: the first]")
@click.option("--steps", default=100, type=click.IntRange(20), help="Rates to try, 1e-6 to 1.")
@click.option("--to", type=click.Path(), metavar="FILE", help="The PNG file of the curve  [default: RECIPE-rates.png]")
@json_option
def find_lr(recipe: Recipe, as_json: bool, **options: Any) -> None:
    """Suggest a learning rate for a stage of RECIPE by trying rising ones, from the fitted head; nothing is trained.

    \b
    Example: tlkeras find-lr fine_tune --stage top
    """
    render(tlkeras.find_learning_rate(recipe, **options), as_json, "diagnostics.print_learning_rate")


@click.command()
@source_argument
@click.option("--target", metavar="WHERE", help="server, cpu or mobile  [default: server with a GPU, else cpu]")
@click.option("--candidates", "patterns", multiple=True, metavar="PATTERN", help="Names that match; repeatable.")
@click.option("--licence", "licences", multiple=True, metavar="SPDX", help="Accepted for the weights; repeatable.")
@click.option("--max-parameters", "parameters", type=POSITIVE, metavar="MILLIONS", help="Maximum number of parameters.")
@click.option("--max-multiply-adds", "multiply_adds", type=POSITIVE, metavar="MILLIONS", help="Maximum per image.")
@click.option("--max-size", "megabytes", type=POSITIVE, metavar="MB", help="Maximum size of the weights in float32.")
@click.option("--max-latency", "milliseconds", type=POSITIVE, metavar="MS", help="Maximum time for one image here.")
@click.option("--most", default=6, type=COUNT, help="Backbones to measure.")
@click.option("--images", default=1000, type=click.IntRange(4), help="Images to sample, at most.")
@click.option("--minutes", default=60.0, type=POSITIVE, help="Time budget for fine-tuning.")
@click.option("--image", metavar="PNG", help="Pareto's front  [default: NAME-backbones.png]")
@click.option("--to", metavar="YAML", help="Also write the recipe to this file.")
@json_option
def recommend(recipe: str, overrides: dict[str, Any], as_json: bool, **options: Any) -> None:
    """Recommend a pretrained network for these images and this machine: which, at which size, frozen or fine-tuned.

    Backbones within the limits whose weights are available are measured: how well nearest neighbours and a linear
    head separate the classes on their features, and what they cost here. The recipe to run is printed.

    \b
    Example: tlkeras recommend photos/ --max-latency 20 --to mine.yaml
    """
    limits = {name: options.pop(name) for name in _LIMITS if options[name] not in (None, ())}
    limits |= {name: limits[name] * 1e6 for name in ("parameters", "multiply_adds") if name in limits}
    others = {name: options[name] for name in ("images", "minutes", "image", "to")}
    render(tlkeras.recommend(recipe, overrides, limits=limits, **others), as_json, "diagnostics.print_recommendation")
