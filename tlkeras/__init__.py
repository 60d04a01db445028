"""tlkeras: from a folder of images to a served model by transfer learning.

The verbs of the command line are functions here: `tlkeras.train("quickstart", set={"data.seed": 1})`.
Importing this package does not import TensorFlow.
"""

from importlib import import_module
from importlib.metadata import version
from typing import Any

__version__ = version("tlkeras")

_VERBS = {
    "ImageData": "training.image_data",
    "Predictor": "inference.predict",
    "Run": "runs.run",
    "TransferClassifier": "training.estimator",
    "check": "diagnostics.check",
    "compare": "evaluation.comparison",
    "copy_recipe": "config.recipe",
    "count_confusions": "evaluation.interpretation",
    "evaluate": "evaluation.evaluate",
    "evaluate_on": "evaluation.other_data",
    "export": "exporting.saved_model",
    "explain": "evaluation.interpretation",
    "extract_features": "inference.sharded",
    "find_learning_rate": "diagnostics.schedule",
    "find_top_losses": "evaluation.interpretation",
    "list_backbones": "backbones.catalog",
    "list_cache": "features.cache",
    "list_recipes": "config.recipe",
    "list_runs": "runs.directory",
    "load_data": "training.image_data",
    "load_model": "inference.predict",
    "open_run": "runs.directory",
    "pack": "training.train",
    "predict": "inference.predict",
    "predict_in_shards": "inference.sharded",
    "predict_remotely": "serving.client",
    "predict_to_file": "inference.sharded",
    "prune_cache": "features.cache",
    "recommend": "diagnostics.recommend.recommend",
    "remove_run": "runs.directory",
    "rename_run": "runs.directory",
    "report": "evaluation.report.page",
    "report_tuning": "tuning.report",
    "resume": "training.train",
    "serve": "serving.serve",
    "show_augmentation": "diagnostics.augmentation",
    "show_backbone": "backbones.builder",
    "show_features": "diagnostics.features",
    "show_schedule": "diagnostics.schedule",
    "start_data_worker": "data.pipeline",
    "train": "training.train",
    "tune": "tuning.search",
}
"""From each verb to the module it lives in."""

_WITHOUT_TENSORFLOW = {
    *("compare", "copy_recipe", "evaluate", "list_backbones", "list_cache", "list_recipes", "list_runs"),
    *("open_run", "remove_run", "rename_run"),
    *("predict_remotely", "prune_cache", "report_tuning"),
}

__all__ = ["__version__", *_VERBS]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    """The verb of that name, from its module, which is imported on first use."""
    if name not in _VERBS:
        raise AttributeError(f"module 'tlkeras' has no attribute {name!r}")
    if name not in _WITHOUT_TENSORFLOW:
        from tlkeras.lazy_tensorflow import import_tensorflow_quietly

        import_tensorflow_quietly()
    return getattr(import_module(f"tlkeras.{_VERBS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
