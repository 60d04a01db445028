"""Commands that compare runs and report on them."""

from __future__ import annotations

from typing import Any

import click

import tlkeras
from tlkeras.cli.options import json_option, render, runs_option

_FRACTION = click.FloatRange(0, 1, min_open=True, max_open=True)


@click.command()
@click.argument("references", nargs=-1, required=True, metavar="RUN RUN...")
@runs_option
@json_option
def compare(references: tuple[str, ...], runs: str, as_json: bool) -> None:
    """Compare runs with the first of them, on the images that all held out: metrics and paired differences.

    \b
    Example: tlkeras compare quickstart-01 deep_head-01
    """
    render(tlkeras.compare(references, runs=runs), as_json, "evaluation.print_comparison")


@click.command()
@click.argument("references", nargs=-1, metavar="[RUN]...")
@click.option(
    "--to", type=click.Path(dir_okay=False), metavar="FILE", help="The page  [default: report.html in the run]"
)
@click.option("--images", default=24, type=click.IntRange(0), help="Mistakes shown and explained.")
@click.option(
    "--corrupted",
    default=48,
    show_default=True,
    type=click.IntRange(0),
    help="Images for the corruption test; 0: skip it.",
)
@click.option("--learning-curve", is_flag=True, help="Estimate whether more images would help.")
@click.option(
    "--conformal", type=_FRACTION, metavar="RATE", help="Show prediction sets that miss at most this fraction."
)
@click.option(
    "--accuracy", type=_FRACTION, help="Target accuracy of automatic predictions  [default: half as many errors]"
)
@click.option("--method", default="grad_cam", help="Explanations: grad_cam, grad_cam++, occlusion.")
@runs_option
@json_option
def report(references: tuple[str, ...], to: str | None, runs: str, as_json: bool, **options: Any) -> None:
    """Write a page on RUN (by default `latest`), or on several: metrics, mistakes, what to do about them.

    \b
    Example: tlkeras report latest --learning-curve --to report.html
    """
    result = tlkeras.report(references or ("latest",), to, options=options, runs=runs)
    render(result, as_json, "evaluation.print_report")
