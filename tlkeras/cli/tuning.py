"""Commands of choosing."""

from __future__ import annotations

from typing import Any

import click

from tlkeras.cli.options import json_option, render, runs_option, set_option


@click.command()
@click.argument("recipe", metavar="DATA|RECIPE")
@set_option
@click.option("--target", metavar="WHERE", help="server, cpu or mobile  [default: server with a GPU, else cpu]")
@click.option("--candidates", "patterns", multiple=True, metavar="PATTERN", help="Names that match; repeatable.")
@click.option("--licence", "licences", multiple=True, metavar="SPDX", help="Accepted for the weights; repeatable.")
@click.option("--max-parameters", type=click.FloatRange(0), metavar="MILLIONS", help="At most so many parameters.")
@click.option("--max-multiply-adds", type=click.FloatRange(0), metavar="MILLIONS", help="At most so many per image.")
@click.option("--max-size", type=click.FloatRange(0), metavar="MB", help="Weights in float32 take at most so much.")
@click.option("--max-latency", type=click.FloatRange(0), metavar="MS", help="One image takes at most so long here.")
@click.option("--most", default=6, show_default=True, type=click.IntRange(1), help="Backbones to measure.")
@click.option("--images", default=1000, show_default=True, type=click.IntRange(4), help="To look at, at most.")
@click.option(
    "--minutes", default=60.0, show_default=True, type=click.FloatRange(0), help="Fine-tuning may take so long."
)
@click.option("--image", metavar="PNG", help="Pareto's front  [default: NAME-backbones.png]")
@click.option("--to", metavar="YAML", help="Write the recipe there, too.")
@json_option
def recommend(recipe: str, assignments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Say which pretrained network, frozen or fine-tuned, at which size, for these images on this machine.

    Backbones that meet the limits and whose weights can be had are measured: how well nearest neighbours and a linear
    head tell the classes apart on their features, and what they cost here. The recipe to run is printed.

    \b
    Example: tlkeras recommend photos/ --max-latency 20 --to mine.yaml
    """
    import tlkeras
    from tlkeras.cli.tables.recommend import print_recommendation
    from tlkeras.config.recipe import parse_overrides
    from tlkeras.data.sources.references import load_recipe_or_source

    others = {name: options.pop(name) for name in ("images", "minutes", "image", "to")}
    limits = _name_limits(options)
    overrides = parse_overrides(assignments)
    load_recipe_or_source(recipe, overrides)  # what is wrong with it is told before TensorFlow is imported
    result = tlkeras.recommend(recipe, overrides, limits=limits, **others)
    render(result, as_json, print_recommendation)


def _name_limits(options: dict[str, Any]) -> dict[str, Any]:
    """Return the limits that were given, in single units."""
    millions = {"parameters": options["max_parameters"], "multiply_adds": options["max_multiply_adds"]}
    limits = {name: None if value is None else value * 1e6 for name, value in millions.items()}
    limits |= {"megabytes": options["max_size"], "milliseconds": options["max_latency"], "target": options["target"]}
    limits |= {name: options[name] or None for name in ("patterns", "licences", "most")}
    return {name: value for name, value in limits.items() if value is not None}


@click.command()
@click.argument("recipe", metavar="RECIPE|report")
@click.argument("search", required=False)
@set_option
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="Trials at the same time.")
@click.option("--engine", default="local", show_default=True, help="local (processes) or ray (a Ray cluster).")
@click.option("--train/--no-train", "train_best", default=True, help="Make an ordinary run of the best trial.")
@runs_option
@json_option
def tune(
    recipe: str,
    search: str | None,
    assignments: tuple[str, ...],
    runs: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Search RECIPE's `tuning.space` for what is best on the validation split, never on the test split.

    What is frozen in all trials is computed once. After an interruption or kill -9 the same command goes on. The best
    trials are repeated with other seeds; the best becomes a recipe file and an ordinary run.

    \b
    Example: tlkeras tune mine.yaml --set tuning.max_trials=50
             tlkeras tune report latest                     table and images of a search
    """
    import tlkeras
    from tlkeras.cli.tables.tuning import print_tuning
    from tlkeras.config.recipe import load_recipe, parse_overrides

    if recipe == "report":
        result = tlkeras.report_tuning(search or "latest", runs=runs)
    elif search is not None:
        raise click.UsageError("Only `tlkeras tune report` takes a SEARCH.")
    else:
        result = tlkeras.tune(load_recipe(recipe, parse_overrides(assignments)), runs=runs, **options)
    render(result, as_json, print_tuning)
