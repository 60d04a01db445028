"""Commands that judge runs."""

from __future__ import annotations

import click

from tlkeras.commands.options import print_result, takes_json, takes_runs


@click.command()
@click.argument("references", nargs=-1, required=True, metavar="RUN RUN...")
@takes_runs
@takes_json
def compare(references: tuple[str, ...], runs: str, as_json: bool) -> None:
    """Compare runs with the first of them, on the pictures that all held out: figures and paired differences.

    \b
    Example: tlkeras compare quickstart-01 deep_head-01
    """
    from tlkeras import api

    print_result(api.compare(references, runs=runs), as_json, "draw_comparison")
