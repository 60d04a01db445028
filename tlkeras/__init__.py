"""tlkeras: from a folder of images to a served model by transfer learning.

The verbs of the command line are functions here: `tlkeras.train("quickstart", {"data.seed": 1})`.
Importing this package does not import TensorFlow.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

__version__ = version("tlkeras")

__all__ = [
    "__version__",
    "backbones",
    "check",
    "compare",
    "copy_recipe",
    "evaluate",
    "export",
    "extract_features",
    "feed",
    "list_cache",
    "list_recipes",
    "pack",
    "predict",
    "predict_in_shards",
    "predict_remotely",
    "predict_to_file",
    "prune_cache",
    "recommend",
    "report",
    "report_tuning",
    "resume",
    "serve",
    "show_augmentation",
    "show_backbone",
    "show_features",
    "show_rates",
    "show_schedule",
    "train",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from tlkeras import api

        return getattr(api, name)
    raise AttributeError(f"module 'tlkeras' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
