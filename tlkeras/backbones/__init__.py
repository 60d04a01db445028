"""The pretrained half: a catalog of backbones, their weights, and where each can be cut.

What programs of your own need is here by name. Importing this package imports nothing else; using a name of it does.
"""

from tlkeras.lazy_tensorflow import export_lazily

_MODULES = {
    "Block": "blocks",
    "CutPoint": "blocks",
    "build_backbone": "builder",
    "count_multiply_adds": "graph",
    "find_blocks": "blocks",
    "find_cut": "blocks",
    "find_cuts": "blocks",
    "list_backbones": "catalog",
    "open_nested": "graph",
    "split": "blocks",
}
__all__ = list(_MODULES)
__getattr__, __dir__ = export_lazily(__name__, _MODULES)
