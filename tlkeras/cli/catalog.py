"""Commands on what there is (recipes, runs, pretrained networks) and on many images (cache, packing, features)."""

import sys
from typing import Any

import click

import tlkeras
from tlkeras.cli.options import COUNT, POSITIVE, SIZE, json_option, render, runs_option, source_argument
from tlkeras.config.image_size import ImageSize
from tlkeras.errors import DataError, RunError


@click.command()
@runs_option
@json_option
def ls(runs: str, as_json: bool) -> None:
    """List the shipped recipes and the runs made so far."""
    from tlkeras.config.recipe import read_header

    shipped = [{"name": name, "about": (read_header(path) or [""])[0]} for name, path in tlkeras.list_recipes().items()]
    made = [run.to_dict() for run in tlkeras.list_runs(runs)]
    render({"recipes": shipped, "runs": made}, as_json, "catalog.print_list")


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="RUN...")
@click.option("--yes", is_flag=True, help="Do not ask.")
@runs_option
def rm(names: tuple[str, ...], yes: bool, runs: str) -> None:
    """Remove runs, asking first: their directories with model, figures and report. The cache is left alone.

    \b
    Example: tlkeras rm photos-01 photos-02
    """
    from pathlib import Path

    from tlkeras.runs.directory import find_run

    found = [find_run(name, Path(runs)) for name in names]  # all are known before one is gone
    listed = ", ".join(f"{run.name} ({run.to_dict()['bytes'] / 1e6:,.1f} MB)" for run in found)
    if not yes:
        click.confirm(f"Remove {listed}?", abort=True)
    for run in found:
        click.echo(f"Removed {tlkeras.remove_run(run)}.")


@click.command()
@click.argument("run")
@click.argument("name")
@runs_option
def mv(run: str, name: str, runs: str) -> None:
    """Rename RUN to NAME within its folder.

    \b
    Example: tlkeras mv photos-01 baseline
    """
    click.echo(f"It is {tlkeras.rename_run(run, name, runs).path} now.")


@click.command()
@click.argument("recipe")
@click.argument("target", type=click.Path())
@click.option("--data", metavar="DATA", help="Your images, written into the copy as its data.source.")
def cp(recipe: str, target: str, data: str | None) -> None:
    """Copy RECIPE, as installed, to the file TARGET; nothing is overwritten.

    \b
    Example: tlkeras cp linear_probe mine.yaml --data photos/
    """
    path = tlkeras.copy_recipe(recipe, target, data)
    click.echo(f"Copied to {path}. Next: tlkeras check {path}")


@click.group(invoke_without_command=True)
@click.option("--like", default="*", metavar="PATTERN", help="Names that match, such as 'efficientnet*'.")
@click.option("--weights", metavar="SOURCE", help="With weights from imagenet, packaged, preset (of KerasHub) or none.")
@click.option("--max-parameters", type=POSITIVE, metavar="MILLIONS", help="At most so many parameters.")
@click.option("--max-multiply-adds", type=POSITIVE, metavar="MILLIONS", help="At most so many per image.")
@json_option
@click.pass_context
def backbones(context: click.Context, as_json: bool, **limits: Any) -> None:
    """List the pretrained networks, or look into one with `show`.

    \b
    Example: tlkeras backbones --like 'efficientnet*' --max-parameters 10
    """
    if context.invoked_subcommand:
        return
    render(tlkeras.list_backbones(limits.pop("like"), **limits), as_json, "catalog.print_backbones")


@backbones.command(name="show")
@click.argument("name")
@click.option("--size", type=SIZE, metavar="SIDE|HxW", help="Size of the images  [default: the backbone's own]")
@json_option
def show_backbone(name: str, size: ImageSize | None, as_json: bool) -> None:
    """Show the blocks of a backbone and where it can be cut.

    \b
    Example: tlkeras backbones show efficientnet_lite0
    """
    render(tlkeras.show_backbone(name, size=size), as_json, "catalog.print_backbone")


@click.group()
def cache() -> None:
    """The cache of frozen activations that all commands share."""


@cache.command(name="ls")
@json_option
def list_cache(as_json: bool) -> None:
    """List the entries of the cache, the most recently used first."""
    render(tlkeras.list_cache(), as_json, "catalog.print_cache")


@cache.command()
@click.option("--max-gb", type=POSITIVE, help="Remove the least recently used entries down to this size.")
@click.option("--unused-days", type=POSITIVE, help="Remove entries that were not used for so many days.")
@json_option
def prune(max_gb: float | None, unused_days: float | None, as_json: bool) -> None:
    """Remove cached activations; those that a running program uses, and the images, are never touched.

    \b
    Example: tlkeras cache prune --unused-days 30
    """
    if max_gb is None and unused_days is None:
        raise click.UsageError("Nothing selected. Use --max-gb 0 to clear the whole cache, or --unused-days 30.")
    render(tlkeras.prune_cache(max_gb=max_gb, unused_days=unused_days), as_json, "catalog.print_pruned")


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
    render(tlkeras.pack(recipe, overrides=overrides, **options), as_json, "catalog.print_packed")


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
    another machine that sees the same folder. Files that cannot be read are listed in FOLDER/rejected, and the exit
    code is 3; a shard that fails three times is named, the other shards are computed, and the exit code is 5.

    \b
    Example: tlkeras features extract photos/ --out features/ --workers 2
    """
    result = tlkeras.extract_features(recipe, overrides=overrides, **options)
    render(result, as_json, "catalog.print_job")
    if result.failed or result.unreadable:
        sys.exit(RunError.exit_code if result.failed else DataError.exit_code)


@click.command(name="data-service")
@click.option("--join", metavar="HOST:PORT", help="Join a running service  [default: start one]")
@click.option("--host", help="Name by which other machines reach this one  [default: its host name]")
@click.option("--port", default=5050, type=click.IntRange(0, 65535), help="Port of a new service.")
def data_service(join: str | None, host: str | None, port: int) -> None:
    """Decode images for trainings on other machines that wait for their input.

    The first machine starts a service, others join it; all need the images at the same paths. It is TensorFlow's data
    service, without encryption or password: use a private network.

    \b
    Example: tlkeras data-service --host cpu-1
             tlkeras data-service --join cpu-1:5050
             tlkeras train fine_tune --set finetuning.cache=off --set training.data_service=cpu-1:5050
    """
    import contextlib
    import threading

    address, _running = tlkeras.start_data_worker(join, host, port)
    click.echo(f"Decoding for --set training.data_service={address}. Ctrl-C ends it.")
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
