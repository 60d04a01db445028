"""The command group `features`."""

from __future__ import annotations

import sys
from typing import Any

import click

import tlkeras
from tlkeras.cli.options import COUNT, json_option, render, source_argument
from tlkeras.errors import RunError


@click.group()
def features() -> None:
    """Features of images, for use elsewhere or on many machines."""


@features.command()
@source_argument
@click.option("--out", required=True, metavar="FOLDER", help="Output folder; an unfinished job is resumed.")
@click.option("--engine", default="local", help="local (processes) or ray (a Ray cluster).")
@click.option("--workers", type=COUNT, help="Processes or actors  [default: one for every 8 cores]")
@click.option("--shard-size", type=COUNT, default=10_000, help="Images in a shard.")
@click.option("--verify", is_flag=True, help="Verify checksums of existing shards and recompute damaged ones.")
@json_option
def extract(recipe: str, overrides: dict[str, Any], as_json: bool, **options: Any) -> None:
    """Write the features of all images of a folder, a manifest or a RECIPE's source as Parquet files.

    The images are divided into shards that any worker can compute: run the command again after a failure, or on
    another machine that sees the same folder. An image that cannot be read is listed in FOLDER/rejected; a shard that
    fails three times is named, the other shards are computed, and the exit code is 5.

    \b
    Example: tlkeras features extract photos/ --out features/ --workers 2
    """
    from tlkeras.cli.tables.jobs import print_job

    result = tlkeras.extract_features(recipe, overrides=overrides, **options)
    render(result, as_json, print_job)
    if result.failed:
        sys.exit(RunError.exit_code)
