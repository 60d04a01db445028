"""The command `export`."""

from __future__ import annotations

from typing import Any

import click

import tlkeras
from tlkeras.cli.options import json_option, render, runs_option

_FRACTION = click.FloatRange(0, 1)


@click.command()
@click.argument("run", default="latest")
@click.option("--to", metavar="FOLDER", help="Folder of the versions  [default: saved_models/RECIPE]")
@click.option("--format", "formats", multiple=True, metavar="FORMAT", help="Write another format too; repeatable.")
@click.option("--min-accuracy", type=_FRACTION, help="Publish nothing with a lower accuracy.")
@click.option("--max-drop", type=_FRACTION, help="Publish nothing that loses more accuracy against the run.")
@click.option("--calibrate", type=click.Choice(["temperature", "vector"]), help="Build calibration into the model.")
@runs_option
@json_option
def export(run: str, to: str | None, runs: str, as_json: bool, **options: Any) -> None:
    """Write RUN as the next SavedModel version, proved against the run's own predictions.

    \b
    Example: tlkeras export latest --to saved_models/solar_cells
             tlkeras export latest --format litert-int8 --format openvino --max-drop 0.005

    Formats: litert-float32, litert-float16, litert-int8, openvino, onnx (extra `onnx`).
    """
    from tlkeras.cli.tables.exporting import print_export
    from tlkeras.runs.directory import open_run

    render(tlkeras.export(open_run(run, runs), to, **options), as_json, print_export)
