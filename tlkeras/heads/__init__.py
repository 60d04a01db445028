"""From features to classes: heads that fit on a matrix and become Keras layers.

What programs of your own need is here by name. Importing this package imports nothing else; using a name of it does.
"""

from tlkeras.lazy_tensorflow import export_lazily

_MODULES = {
    "AttentionHead": "deep",
    "CentroidHead": "prototypes",
    "CosineHead": "prototypes",
    "FeatureSelectingHead": "feature_selection",
    "FitConfig": "deep",
    "KernelHead": "kernel",
    "LdaHead": "prototypes",
    "LinearHead": "linear",
    "LinearSVMHead": "linear",
    "MLPHead": "deep",
    "RecurrentHead": "deep",
    "RidgeHead": "linear",
    "RidgeRegressionHead": "linear",
    "TransformerHead": "deep",
    "attach_heads": "heads",
    "make_head": "heads",
    "measure_h_score": "transferability",
    "measure_leep": "transferability",
    "measure_logme": "transferability",
    "measure_nce": "transferability",
}
__all__ = list(_MODULES)
__getattr__, __dir__ = export_lazily(__name__, _MODULES)
