"""The command of workers that decode images for others."""

from __future__ import annotations

import click


@click.command(name="data-service")
@click.option("--join", metavar="HOST:PORT", help="Be one more worker of a service that runs  [default: begin one]")
@click.option("--host", help="Name by which other machines reach this one  [default: its own]")
@click.option("--port", default=5050, show_default=True, type=click.IntRange(0, 65535), help="Port of a new service.")
def data_service(join: str | None, host: str | None, port: int) -> None:
    """Decode images for trainings on other machines, where decoding is what they wait for.

    The first machine begins a service, others join it; all must see the images at the same paths. It is TensorFlow's
    data service, without encryption or password: use a network of your own.

    \b
    Example: tlkeras data-service --host cpu-1
             tlkeras data-service --join cpu-1:5050
             tlkeras train fine_tune --set finetuning.cache=off --set training.data_service=cpu-1:5050
    """
    import contextlib
    import threading

    import tlkeras

    address, _running = tlkeras.start_data_worker(join, host, port)
    click.echo(f"Decoding for --set training.data_service={address}. Ctrl-C ends it.")
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
