"""The command that starts a data service."""

from __future__ import annotations

import click

import tlkeras


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
