"""Commands on the cache of frozen activations and on packed images."""

from __future__ import annotations

from typing import Any

import click

from tlkeras.cli.options import json_option, render, set_option


@click.group()
def cache() -> None:
    """The cache of frozen activations that all commands share."""


@cache.command(name="ls")
@json_option
def list_cache(as_json: bool) -> None:
    """List the entries of the cache, the most recently used first."""
    import tlkeras
    from tlkeras.cli.tables.cache import print_cache

    render(tlkeras.list_cache(), as_json, print_cache)


@cache.command()
@click.option(
    "--max-gb", type=click.FloatRange(0, 1e6), help="Remove the least recently used entries down to this size."
)
@click.option(
    "--unused-days", type=click.FloatRange(0, 1e6), help="Remove entries that were not used for so many days."
)
@json_option
def prune(max_gb: float | None, unused_days: float | None, as_json: bool) -> None:
    """Remove cached activations; those that a running program uses, and the images, are never touched.

    \b
    Example: tlkeras cache prune --unused-days 30
    """
    import tlkeras
    from tlkeras.cli.tables.cache import print_pruned

    if max_gb is None and unused_days is None:
        raise click.UsageError("Nothing selected. Use --max-gb 0 to clear the whole cache, or --unused-days 30.")
    render(tlkeras.prune_cache(max_gb=max_gb, unused_days=unused_days), as_json, print_pruned)


@click.command()
@click.argument("recipe", metavar="DATA|RECIPE")
@click.option("--out", required=True, metavar="FOLDER", help="A new folder for the files.")
@click.option("--shard-mb", type=click.IntRange(1), default=128, show_default=True, help="Megabytes per file.")
@set_option
@json_option
def pack(recipe: str, assignments: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Write images, unchanged, into few large TFRecord files, with a manifest to train from.

    For network file systems, which are slow at many small files. Results are the same as with single files, and their
    cached activations are reused.

    \b
    Example: tlkeras pack photos/ --out packed/
             tlkeras train mine.yaml --set data.source=packed/images.csv
    """
    import tlkeras
    from tlkeras.cli.tables.cache import print_packed
    from tlkeras.config.recipe import parse_overrides

    render(tlkeras.pack(recipe, overrides=parse_overrides(assignments), **options), as_json, print_packed)
