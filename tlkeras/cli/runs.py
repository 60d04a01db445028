"""Commands that make, search, compare, explain, export and serve runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import tlkeras
from tlkeras.cli.options import COUNT, POSITIVE, json_option, recipe_argument, render, runs_option, set_option

if TYPE_CHECKING:
    from tlkeras.config.recipe import Recipe
    from tlkeras.serving.server import ServerInfo

_RATE, _FILE = click.FloatRange(0, 1, min_open=True, max_open=True), click.Path(dir_okay=False)
_FRACTION = click.FloatRange(0, 1)


@click.command()
@click.argument("recipe", required=False, metavar="RECIPE|DATA")
@click.option("--data", metavar="DATA", help="Images for the recipe: short for --set data.source=DATA.")
@click.option("--name", help="What the run is named after, with a number.")
@set_option
@click.option("--quick", is_flag=True, help="Shrink the run to seconds, to try it out; its metrics mean nothing.")
@click.option("--resume", metavar="RUN", help="Resume a run that stopped: a name, a path or `latest`.")
@runs_option
@json_option
def train(
    recipe: str | None, assignments: tuple[str, ...], resume: str | None, runs: str, as_json: bool, **options: Any
) -> None:
    """Train RECIPE (a shipped name or a .yaml file), or a linear probe on DATA (a folder or a table), and evaluate it.

    \b
    Example: tlkeras train photos/
             tlkeras train fine_tune --data photos/ --name cats --set data.seed=1
    """
    from tlkeras.config.recipe import parse_overrides
    from tlkeras.data.sources.folders import load_recipe_or_source
    from tlkeras.runs.directory import find_resumable_run

    if (recipe is None) == (resume is None):
        raise click.UsageError("Give a RECIPE or DATA to train, or --resume RUN.")
    if resume is not None and (assignments or any(options.values())):
        raise click.UsageError("--resume uses the original recipe: remove --set, --data, --name and --quick.")
    if recipe is None:
        run = tlkeras.resume(find_resumable_run(resume or "latest", Path(runs)), runs=runs)
    else:
        short = {"data.source": options["data"], "name": options["name"]}
        given = {key: value for key, value in short.items() if value is not None}
        resolved, _ = load_recipe_or_source(recipe, {**given, **parse_overrides(assignments)})
        run = tlkeras.train(resolved, quick=options["quick"], runs=runs)
    if worker := run.take_worker_result():
        render(worker, as_json, "runs.print_worker")
    else:
        render(tlkeras.evaluate(run), as_json, "runs.print_training")


@click.command()
@click.argument("run", default="latest")
@click.option("--on", metavar="DATA", help="Labelled images from another source, as in data.source.")
@runs_option
@json_option
def evaluate(run: str, on: str | None, runs: str, as_json: bool) -> None:
    """Evaluate RUN (a name, a path or `latest`) on its held-out images; metrics.json and metrics.csv keep the metrics.

    \b
    Example: tlkeras evaluate latest --on other_photos/
    """
    result = tlkeras.evaluate(run, runs=runs) if on is None else tlkeras.evaluate_on(run, on, runs=runs)
    render(result, as_json, "runs.print_evaluation")


@click.command()
@click.argument("run", metavar="[RUN]")
@click.argument("images", nargs=-1, metavar="IMAGE...")
@click.option("--url", help="Ask a served model instead of a run, such as http://localhost:8501/v1/models/NAME.")
@click.option("--out", metavar="TABLE", help="Write a .csv or .parquet of any number of images; resumes after a kill.")
@click.option(
    "--engine", metavar="local|ray", help="Write shards into the folder --out, by processes or a Ray cluster."
)
@click.option("--workers", type=COUNT, help="Processes or actors  [default: one for every 8 cores]")
@click.option("--top", default=3, type=COUNT, help="Classes shown per image.")
@runs_option
@json_option
def predict(run: str, images: tuple[str, ...], runs: str, as_json: bool, **options: Any) -> None:
    """Classify IMAGES (files or folders) with RUN's model; unreadable ones are listed and end in exit code 3.

    \b
    Example: tlkeras predict latest photo.jpg
             tlkeras predict latest photos/ --out predictions.parquet
             tlkeras predict latest photos/ --out predictions/ --engine local --workers 2
             tlkeras predict --url http://localhost:8501/v1/models/solar_cells photo.jpg
    """
    from tlkeras.errors import DataError, RunError
    from tlkeras.runs.directory import open_run

    url, out, engine, workers = (options[name] for name in ("url", "out", "engine", "workers"))
    if (workers and not engine) or (engine and (url or not out)):
        raise click.UsageError("Shards need a folder and an engine: --out FOLDER --engine local --workers 2")
    if url and out:
        raise click.UsageError("A table is made with a run: leave out --url or --out.")
    if not url and not images:
        raise click.UsageError("Give a RUN and at least one IMAGE, or --url and at least one IMAGE.")
    if engine:
        shards = tlkeras.predict_in_shards(open_run(run, runs), images, out, engine=engine, workers=workers)
        render(shards, as_json, "catalog.print_job")
        if shards.failed or shards.unreadable:
            sys.exit(RunError.exit_code if shards.failed else DataError.exit_code)
        return
    if out:
        result = tlkeras.predict_to_file(open_run(run, runs), images, out)
    elif url:
        result = tlkeras.predict_remotely(url, [run, *images])
    else:
        result = tlkeras.predict(open_run(run, runs), images, top=options["top"])
    render(result, as_json, "runs.print_prediction_file" if out else "runs.print_predictions")
    if result.unreadable:
        sys.exit(DataError.exit_code)


@click.command()
@click.argument("references", nargs=-1, required=True, metavar="RUN RUN...")
@runs_option
@json_option
def compare(references: tuple[str, ...], runs: str, as_json: bool) -> None:
    """Compare runs with the first of them, on the images that all held out: metrics and paired differences.

    \b
    Example: tlkeras compare quickstart-01 deep_head-01
    """
    render(tlkeras.compare(references, runs=runs), as_json, "runs.print_comparison")


@click.command()
@click.argument("references", nargs=-1, metavar="[RUN]...")
@click.option("--to", type=_FILE, metavar="FILE", help="The page  [default: report.html in the run]")
@click.option("--images", default=24, type=click.IntRange(0), help="Mistakes shown and explained.")
@click.option("--corrupted", default=48, type=click.IntRange(0), help="Images for the corruption test; 0: skip it.")
@click.option("--learning-curve", is_flag=True, help="Estimate whether more images would help.")
@click.option("--conformal", type=_RATE, metavar="RATE", help="Show prediction sets that miss at most this fraction.")
@click.option("--accuracy", type=_RATE, help="Target accuracy of automatic predictions  [default: half as many errors]")
@click.option("--method", default="grad_cam", help="Explanations: grad_cam, grad_cam++, occlusion.")
@runs_option
@json_option
def report(references: tuple[str, ...], to: str | None, runs: str, as_json: bool, **options: Any) -> None:
    """Write a page on RUN (by default `latest`), or on several: metrics, mistakes, what to do about them.

    \b
    Example: tlkeras report latest --learning-curve --to report.html
    """
    result = tlkeras.report(references or ("latest",), to, options=options, runs=runs)
    render(result, as_json, "runs.print_report")


class _CommandWithSubcommands(click.Command):
    """A command whose first argument may also name a command below it, such as `tlkeras tune report`."""

    def __init__(self, *arguments: Any, subcommands: Sequence[click.Command], **options: Any):
        super().__init__(*arguments, **options)
        self.subcommands = {command.name: command for command in subcommands}

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """The context of this command, or of the one below it that the first argument names."""
        if args and args[0] in self.subcommands:
            name = f"{info_name} {args[0]}"
            return self.subcommands[args[0]].make_context(name, args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name or "", one.get_short_help_str()) for name, one in self.subcommands.items()])


@click.command(name="report")
@click.argument("search", default="latest")
@runs_option
@json_option
def report_search(search: str, runs: str, as_json: bool) -> None:
    """Show the trials of SEARCH (a name, a path or `latest`), best first, with charts in its folder.

    \b
    Example: tlkeras tune report latest
    """
    render(tlkeras.report_tuning(search, runs=runs), as_json, "runs.print_tuning")


@click.command(cls=_CommandWithSubcommands, subcommands=[report_search])
@recipe_argument
@click.option("--workers", default=1, type=COUNT, help="Trials at the same time.")
@click.option("--engine", default="local", help="local (processes) or ray (a Ray cluster).")
@click.option("--train/--no-train", "train_best", default=True, help="Train the best trial as an ordinary run.")
@runs_option
@json_option
def tune(recipe: Recipe, runs: str, as_json: bool, **options: Any) -> None:
    """Search RECIPE's `tuning.space` for the best values on the validation split, never on the test split.

    Frozen features are computed once for all trials. After an interruption or kill -9 the same command resumes. The
    best trials are repeated with other seeds; the best becomes a recipe file and an ordinary run.

    \b
    Example: tlkeras tune mine.yaml --set tuning.max_trials=50
             tlkeras tune report latest
    """
    result = tlkeras.tune(recipe, runs=runs, **options)
    if result.run is None or not as_json:
        render(result, as_json, "runs.print_tuning")
    if result.run is not None:
        best = tlkeras.evaluate(result.run, runs=runs)
        render({**result.to_dict(), "run": best} if as_json else best, as_json, "runs.print_training")


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
