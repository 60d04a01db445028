"""Options that several commands take, and how all of them print."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from tlkeras.results import to_plain


def set_option(command: Callable) -> Callable:
    """Add `--set KEY=VALUE`."""
    return click.option(
        "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override a value of the recipe; repeatable."
    )(command)


def runs_option(command: Callable) -> Callable:
    """Add `--runs FOLDER`."""
    return click.option(
        "--runs", default="runs", show_default=True, metavar="FOLDER", help="Where run directories are."
    )(command)


def json_option(command: Callable) -> Callable:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")(command)


def render(result: Any, as_json: bool, table: Callable[[Any], None]) -> None:
    """Print a result as JSON, or as a table."""
    if as_json:
        click.echo(json.dumps(to_plain(result), indent=2, default=str))
    else:
        table(result)
