"""Where images come from and how they become tensors.

What programs of your own need is here by name. Importing this package imports nothing else; using a name of it does.
"""

from tlkeras.lazy_tensorflow import export_lazily

_MODULES = {
    "AugmentationPolicy": "augmentation.policies",
    "RandomAugmentation": "augmentation.layers",
    "cutmix": "augmentation.views",
    "find_exact_duplicates": "quality.near_duplicates",
    "find_label_issues": "quality.label_issues",
    "find_near_duplicates": "quality.near_duplicates",
    "find_outliers": "quality.label_issues",
    "make_policy": "augmentation.policies",
    "read_thumbnails": "quality.near_duplicates",
    "split_images": "splits",
}
__all__ = list(_MODULES)
__getattr__, __dir__ = export_lazily(__name__, _MODULES)
