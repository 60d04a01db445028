"""Figures with their doubt.

What programs of your own need is here by name. Importing this package imports nothing else; using a name of it does.
"""

from tlkeras.lazy_tensorflow import export_lazily

_MODULES = {
    "Explainer": "attribution",
    "check_sanity": "attribution",
    "compare_models": "arrays",
    "fit_calibration": "arrays",
    "make_predictions": "arrays",
    "measure_calibration": "arrays",
    "measure_metrics": "arrays",
    "occlude": "attribution",
    "predict_sets": "arrays",
}
__all__ = list(_MODULES)
__getattr__, __dir__ = export_lazily(__name__, _MODULES)
