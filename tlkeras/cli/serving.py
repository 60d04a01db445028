"""The commands `export` and `serve`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

import tlkeras
from tlkeras.cli.options import COUNT, POSITIVE, json_option, render, runs_option

if TYPE_CHECKING:
    from tlkeras.serving.server import ServerInfo

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
    from tlkeras.runs.directory import open_run

    render(tlkeras.export(open_run(run, runs), to, **options), as_json, "runs.print_export")


def _read_labels(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    labels = {}
    for value in values:
        name, _, number = value.partition("=")
        if not name or not number.isdecimal():
            raise click.BadParameter(f"{value!r} is not LABEL=VERSION, as in stable=3.")
        labels[name] = int(number)
    return labels


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@click.option("--host", default="127.0.0.1", help="Address to listen on; 0.0.0.0: all.")
@click.option("--rest-port", default=8501, type=click.IntRange(0, 65535), help="Port of REST.")
@click.option("--grpc-port", default=8500, type=click.IntRange(0, 65535), help="Port of gRPC.")
@click.option("--name", help="Name of the model  [default: the folder's]")
@click.option(
    "--label", "labels", multiple=True, callback=_read_labels, metavar="LABEL=VERSION", help="Name a version."
)
@click.option("--newest", default=1, type=COUNT, help="Number of versions that stay loaded.")
@click.option("--max-batch-size", default=32, type=COUNT, help="Maximum batch size.")
@click.option("--batch-timeout", default=0.002, type=POSITIVE, help="Seconds that a request waits for others.")
@click.option("--max-body", type=COUNT, help="Maximum bytes of a request  [default: 64 MiB]")
@click.option("--max-pixels", type=COUNT, help="Maximum pixels of an image  [default: 64 million]")
@click.option("--max-requests", default=512, type=COUNT, help="Maximum concurrent requests.")
@click.option("--timeout", default=30.0, type=click.FloatRange(0.001), help="Seconds until a request fails.")
@click.option("--threads", type=click.IntRange(0), help="TensorFlow threads per operation  [default: cores]")
def serve(folder: str, **options: Any) -> None:
    """Serve the newest version in FOLDER over TensorFlow Serving's REST and gRPC, with a page to try it on.

    For development and small loads; production is TensorFlow Serving, with the docker line that `export` prints.

    \b
    Example: tlkeras serve saved_models/solar_cells
    """

    def print_addresses(server: ServerInfo) -> None:
        versions = ", ".join(map(str, server.versions)) or "none yet"
        click.echo(f"Serving {server.name}, version {versions}. Ctrl-C ends it.")
        click.echo(f"  page     {server.url}/")
        click.echo(f"  REST     {server.url}/v1/models/{server.name}:predict")
        click.echo(f"  gRPC     {server.grpc}")
        click.echo(f"  metrics  {server.url}/monitoring/prometheus/metrics")
        click.echo("For development and small loads: no authentication, no encryption. Production: TensorFlow Serving.")

    given = {name: value for name, value in options.items() if value is not None}
    tlkeras.serve(folder, started=print_addresses, **given)
