"""The command line: its commands gathered, and the one place where errors are said."""

import traceback
from typing import Any

import click

from tlkeras.cli import catalog, diagnostics, runs
from tlkeras.errors import TlkerasError, suggest

INTERRUPTED = 130
UNEXPECTED = 70
_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True}


_GROUPS: dict[str, dict[click.Command, str]] = {
    "Data": {
        diagnostics.check: "Find damaged images, copies and wrong labels.",
        diagnostics.show: "Show schedule, augmentation or features of a recipe.",
        catalog.pack: "Pack images into few large TFRecord files.",
        catalog.data_service: "Decode images for trainings on other machines.",
    },
    "Train": {
        diagnostics.recommend: "Recommend a pretrained network for your images.",
        catalog.cp: "Copy a shipped recipe into a file of your own.",
        runs.train: "Train a recipe, or a linear probe on your images.",
        diagnostics.find_lr: "Suggest a learning rate for a stage.",
        runs.tune: "Search a recipe's values on the validation split.",
    },
    "Judge": {
        runs.evaluate: "Evaluate a run on held-out or on other images.",
        runs.report: "Write a page on a run: figures, mistakes, advice.",
        runs.compare: "Say whether a run is better than another.",
        runs.predict: "Classify images with a run or a served model.",
    },
    "Ship": {
        runs.export: "Export a run for TensorFlow Serving and others.",
        runs.serve: "Serve an exported model, with a page to try it on.",
    },
    "Store": {
        catalog.ls: "List recipes and runs.",
        catalog.rm: "Remove runs, asking first.",
        catalog.mv: "Rename a run.",
        catalog.backbones: "List pretrained networks, or look into one.",
        catalog.features: "Extract features of any number of images.",
        catalog.cache: "List or prune the cache of frozen activations.",
    },
}
"""The commands in the order of a person's way, each with its line in the help."""
_SYNONYMS = {
    **dict.fromkeys(("classify", "infer", "test"), "predict"),
    **dict.fromkeys(("runs", "list", "recipes"), "ls"),
    **dict.fromkeys(("init", "new", "create", "copy"), "cp"),
    **dict.fromkeys(("fit", "finetune", "fine-tune"), "train"),
    **dict.fromkeys(("tflite", "convert", "save"), "export"),
    **dict.fromkeys(("validate", "eval", "score"), "evaluate"),
    **dict.fromkeys(("search", "sweep", "optimize"), "tune"),
    **dict.fromkeys(("models", "networks"), "backbones"),
    **dict.fromkeys(("doctor", "inspect", "clean"), "check"),
    **dict.fromkeys(("lr-find", "lr_find"), "find-lr"),
}


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

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first argument names; an unknown one is refused with the nearest name or meaning."""
        name = args[0]
        if self.get_command(context, name) is None and not name.startswith("-"):
            near = _SYNONYMS.get(name)
            hint = f"Did you mean {near!r}?" if near else suggest(name, self.commands)
            raise click.UsageError(f"No command called {name!r}. {hint}", context)
        return super().resolve_command(context, args)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands by group, in the order of a person's way."""
        for title, group in _GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(command.name or "", text) for command, text in group.items()])

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
    tlkeras train quickstart                       train the shipped example
    tlkeras check photos/                          look at your own images
    tlkeras train photos/                          train on them
    tlkeras cp linear_probe mine.yaml --data photos/   a recipe of your own
    """
    import logging

    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.ERROR if quiet else logging.WARNING)
    logging.captureWarnings(True)
    from tlkeras import progress

    progress.set_visible(not quiet)


for _group in _GROUPS.values():
    for _command, _short_help in _group.items():
        _command.short_help = _short_help
        main.add_command(_command)
