"""Changing the backbone itself: which blocks train, when, and at which rates.

What programs of your own need is here by name, each usable alone on any functional Keras model; importing this package
does not import TensorFlow, using a name of it does.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_ROOMS = {
    "ConvMuon": "muon",
    "GradualUnfreezing": "unfreezing",
    "Schedule": "schedule",
    "Stage": "schedule",
    "decay_by_block": "groups",
    "find_learning_rate": "range_test",
    "freeze": "freezing",
    "group_layers": "groups",
    "reestimate_statistics": "normalization",
    "scale_learning_rates": "optimizers",
    "set_trainable": "unfreezing",
    "unfreeze": "freezing",
}
__all__ = list(_ROOMS)


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS])
