"""Changing the backbone itself: which blocks train, when, and at which rates.

What programs of your own need is here by name, each usable alone on any functional Keras model; importing this package
does not import TensorFlow, using a name of it does.
"""

from tlkeras.lazy_tensorflow import export_lazily

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
__getattr__, __dir__ = export_lazily(__name__, _MODULES)
