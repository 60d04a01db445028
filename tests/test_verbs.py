"""Every verb is a function of the package, whatever was imported before: each is called twice."""

from pathlib import Path

import pytest

import tlkeras
from tlkeras.errors import RecipeError, TlkerasError

PHOTO = "photos/day/0-000.png"
TINY = {"backbone.name": "tiny", "backbone.weights": "none"}
CALLS = {
    "ImageData": lambda run: tlkeras.ImageData({"data.source": "photos"}),
    "Predictor": lambda run: tlkeras.Predictor(run),  # noqa: PLW0108
    "Run": lambda run: tlkeras.Run(Path(run)),
    "TransferClassifier": lambda run: tlkeras.TransferClassifier("tiny"),
    "check": lambda run: tlkeras.check("photos", TINY),
    "compare": lambda run: tlkeras.compare([run, run]),
    "copy_recipe": lambda run: tlkeras.copy_recipe("quickstart", "copied.yaml"),
    "count_confusions": lambda run: tlkeras.count_confusions(run),  # noqa: PLW0108
    "evaluate": lambda run: tlkeras.evaluate(run),  # noqa: PLW0108 -- the verb is looked up at each call
    "evaluate_on": lambda run: tlkeras.evaluate_on("nowhere", "photos"),
    "export": lambda run: tlkeras.export("nowhere"),
    "explain": lambda run: tlkeras.explain("nowhere", PHOTO),
    "extract_features": lambda run: tlkeras.extract_features("nowhere.yaml", "features"),
    "find_learning_rate": lambda run: tlkeras.find_learning_rate("mine.yaml"),
    "find_top_losses": lambda run: tlkeras.find_top_losses(run, 3),
    "list_backbones": lambda run: tlkeras.list_backbones("efficientnet_lite*"),
    "list_cache": lambda run: tlkeras.list_cache(),
    "list_recipes": lambda run: tlkeras.list_recipes(),
    "list_runs": lambda run: tlkeras.list_runs(),
    "load_data": lambda run: tlkeras.load_data("photos"),
    "load_model": lambda run: tlkeras.load_model("nowhere"),
    "open_run": lambda run: tlkeras.open_run(run),  # noqa: PLW0108
    "pack": lambda run: tlkeras.pack("nowhere.yaml", "packed"),
    "predict": lambda run: tlkeras.predict(run, [PHOTO]),
    "predict_in_shards": lambda run: tlkeras.predict_in_shards("nowhere", [PHOTO], "out"),
    "predict_remotely": lambda run: tlkeras.predict_remotely("http://localhost:1/v1/models/x", [PHOTO], timeout=1.0),
    "predict_to_file": lambda run: tlkeras.predict_to_file("nowhere", [PHOTO], "out.csv"),
    "prune_cache": lambda run: tlkeras.prune_cache(unused_days=1000.0),
    "recommend": lambda run: tlkeras.recommend("nowhere.yaml"),
    "remove_run": lambda run: tlkeras.remove_run("nowhere"),
    "rename_run": lambda run: tlkeras.rename_run("nowhere", "name"),
    "report": lambda run: tlkeras.report(["nowhere"]),
    "report_tuning": lambda run: tlkeras.report_tuning(),
    "resume": lambda run: tlkeras.resume("nowhere"),
    "serve": lambda run: tlkeras.serve("nowhere"),
    "show_augmentation": lambda run: tlkeras.show_augmentation("mine.yaml", images=1, views=1),
    "show_backbone": lambda run: tlkeras.show_backbone("tiny"),
    "show_features": lambda run: tlkeras.show_features("mine.yaml", method="none"),
    "show_schedule": lambda run: tlkeras.show_schedule("mine.yaml"),
    "start_data_worker": lambda run: tlkeras.start_data_worker("localhost:1"),
    "train": lambda run: tlkeras.train("nowhere.yaml"),
    "tune": lambda run: tlkeras.tune("mine.yaml"),
}
"""A call of each verb, from the run of the shared fixture: one that answers at once, or is refused at once."""


def call(verb, run):
    try:
        return CALLS[verb](run)
    except TlkerasError as error:
        return error


def test_every_verb_is_called_here():
    assert set(CALLS) == set(tlkeras.__all__) - {"__version__"}


@pytest.mark.parametrize("verb", CALLS)
def test_a_verb_is_there_at_each_call(verb, trained, workplace):
    first, second = call(verb, str(trained)), call(verb, str(trained))
    assert callable(getattr(tlkeras, verb))
    assert type(first) is type(second) or isinstance(second, RecipeError)  # a copy is never overwritten
