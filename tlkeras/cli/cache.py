"""Commands on the cache of frozen activations and on packed images."""

from __future__ import annotations

from typing import Any

import click

import tlkeras
from tlkeras.cli.options import COUNT, POSITIVE, json_option, render, source_argument


@click.group()
def cache() -> None:
    """The cache of frozen activations that all commands share."""


@cache.command(name="ls")
@json_option
def list_cache(as_json: bool) -> None:
    """List the entries of the cache, the most recently used first."""
    from tlkeras.cli.tables.cache import print_cache

    render(tlkeras.list_cache(), as_json, print_cache)


@cache.command()
@click.option("--max-gb", type=POSITIVE, help="Remove the least recently used entries down to this size.")
@click.option("--unused-days", type=POSITIVE, help="Remove entries that were not used for so many days.")
@json_option
def prune(max_gb: float | None, unused_days: float | None, as_json: bool) -> None:
    """Remove cached activations; those that a running program uses, and the images, are never touched.

    \b
    Example: tlkeras cache prune --unused-days 30
    """
    from tlkeras.cli.tables.cache import print_pruned

    if max_gb is None and unused_days is None:
        raise click.UsageError("Nothing selected. Use --max-gb 0 to clear the whole cache, or --unused-days 30.")
    render(tlkeras.prune_cache(max_gb=max_gb, unused_days=unused_days), as_json, print_pruned)


@click.command()
@source_argument
@click.option("--out", required=True, metavar="FOLDER", help="A new folder for the files.")
@click.option("--shard-mb", type=COUNT, default=128, help="Megabytes per file.")
@json_option
def pack(recipe: str, overrides: dict[str, Any], as_json: bool, **options: Any) -> None:
    """Write images, unchanged, into few large TFRecord files, with a manifest to train from.

    For network file systems, which are slow at many small files. Results are the same as with single files, and their
    cached activations are reused.

    \b
    Example: tlkeras pack photos/ --out packed/
             tlkeras train mine.yaml --set data.source=packed/images.csv
    """
    from tlkeras.cli.tables.cache import print_packed

    render(tlkeras.pack(recipe, overrides=overrides, **options), as_json, print_packed)
