"""The command line: its commands gathered, and the one place where errors are said."""

import traceback
from typing import Any

import click

from tlkeras.cli import catalog, diagnostics, runs
from tlkeras.errors import TlkerasError

INTERRUPTED = 130
UNEXPECTED = 70
_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True}


class Commands(click.Group):
    """A group that says errors in one place: a sentence and a stable exit code, a traceback only with --debug."""

    def invoke(self, context: click.Context) -> Any:
        """Run a command; see `tlkeras.errors` for the exit codes."""
        try:
            return super().invoke(context)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except TlkerasError as error:
            self._leave(context, f"Error: {error}", error.exit_code)
        except KeyboardInterrupt:
            training = context.invoked_subcommand == "train"
            way = "go on with: tlkeras train --resume latest" if training else "the same command goes on from there"
            self._leave(context, f"Interrupted. What was computed is kept; {way}", INTERRUPTED)
        except Exception as error:
            message = f"Unexpected error: {type(error).__name__}: {error}\nRun `tlkeras --debug ...` to see where."
            self._leave(context, message, UNEXPECTED)

    def _leave(self, context: click.Context, message: str, code: int) -> None:
        if context.params.get("debug"):
            traceback.print_exc()
        click.echo(message, err=True)
        context.exit(code)


@click.group(cls=Commands, context_settings=_SETTINGS)
@click.version_option(package_name="tlkeras")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--quiet", is_flag=True, help="No progress bars and no warnings.")
def main(debug: bool, quiet: bool) -> None:
    """From a folder of images to a served classifier, by transfer learning.

    \b
    tlkeras train quickstart                      train the shipped example
    tlkeras cp quickstart mine.yaml               make a recipe of your own
    tlkeras train mine.yaml --set catalog.source=photos/
    """
    import logging

    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.ERROR if quiet else logging.WARNING)
    logging.captureWarnings(True)
    from tlkeras import progress

    progress.set_visible(not quiet)


for _command in (
    *(runs.train, runs.evaluate, runs.predict, runs.compare, runs.report, runs.tune, runs.export, runs.serve),
    *(diagnostics.check, diagnostics.show, diagnostics.find_lr, diagnostics.recommend),
    *(catalog.ls, catalog.cp, catalog.backbones, catalog.features, catalog.cache, catalog.pack, catalog.data_service),
):
    main.add_command(_command)
