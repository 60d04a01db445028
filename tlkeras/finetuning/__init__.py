"""Changing the backbone itself: which blocks train, when, and at which rates.

What programs of your own need is here by name, each usable alone on any functional Keras model; importing this package
does not import TensorFlow, using a name of it does.
"""

from importlib import import_module
from typing import Any

_MODULES = {
    "ConvMuon": "optimizers",
    "GradualUnfreezing": "callbacks",
    "Schedule": "schedule",
    "Stage": "schedule",
    "find_learning_rate": "lr_range_test",
    "freeze": "freezing",
    "group_layers": "layer_groups",
    "layerwise_lr_decay": "layer_groups",
    "recompute_batch_norm_statistics": "freezing",
    "scale_learning_rates": "optimizers",
    "set_trainable": "unfreezing",
    "unfreeze": "freezing",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
