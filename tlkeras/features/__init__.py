"""The frozen half: activations computed once, by the fastest engine, and kept.

What programs of your own need is here by name. Importing this package imports nothing else; using a name of it does.
"""

from tlkeras.lazy_tensorflow import export_lazily

_MODULES = {
    "ActivationCache": "cache",
    "CompactBilinear": "pooling",
    "GeneralizedMean": "pooling",
    "extract": "extraction",
}
__all__ = list(_MODULES)
__getattr__, __dir__ = export_lazily(__name__, _MODULES)
