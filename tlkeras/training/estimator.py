"""A pretrained network with a head on its frozen features, as a scikit-learn classifier of images."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Self

import keras
import numpy as np
from PIL import Image
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.validation import check_is_fitted

from tlkeras.config.recipe import Recipe, load_recipe, recipe_to_yaml, validate
from tlkeras.config.yaml_loader import load_yaml
from tlkeras.data.headers import Rendering, to_printable
from tlkeras.data.sources.arrays import check_pixels, is_batch
from tlkeras.data.sources.folders import DEFAULT_RECIPE
from tlkeras.data.tables import Dataset
from tlkeras.errors import DataError, list_some
from tlkeras.features.extraction import FeatureExtractor
from tlkeras.files import atomic_write, cache_folder, sha256
from tlkeras.heads.heads import Head, attach_heads, make_head
from tlkeras.training import builders

_KEYS = {
    "backbone": "backbone.name",
    "weights": "backbone.weights",
    "size": "backbone.size",
    "cut": "features.cut",
    "pooling": "features.pooling",
    "views": "augmentation.policy",
    "resize": "data.resize",
    "cache": "cache.root",
}
"""From each parameter to the key of a recipe that it is; None keeps the recipe's default."""


class TransferClassifier(ClassifierMixin, BaseEstimator):
    """Images to classes by a head on frozen features, for `cross_val_score`, `GridSearchCV`, `clone` and pickle.

    Images are paths, or an array uint8 [n, height, width, 3]. Features come from the cache that all of tlkeras shares,
    so that a search over heads computes them once.

        scores = cross_val_score(TransferClassifier(), paths, labels)
        search = GridSearchCV(TransferClassifier(head=LinearHead()), {"head__C": [0.01, 0.1, 1.0]})

    Args:
        backbone, weights, size, cut, pooling: As a recipe's `backbone` and `features` have them; None: the default.
        head: The kind of a head, or an unfitted head, whose parameters are then reached as `head__C`.
        views: Policy over whose orientations features are averaged, "flip" or "dihedral"; None: the image as it is.
            For average pooling, the default.
        resize: "stretch", "crop" or "pad".
        cache: Folder of the cache; None: the shared one.

    Attributes:
        head_: The fitted head.
        classes_: The classes, [k].
    """

    def __init__(  # noqa: PLR0913 (scikit-learn's way to name parameters)
        self,
        backbone: str = "efficientnet_lite0",
        *,
        weights: str | None = None,
        size: Any = None,
        cut: Any = None,
        pooling: str | None = None,
        head: str | Head = "linear",
        views: str | None = None,
        resize: str | None = None,
        cache: str | None = None,
    ):
        self.backbone, self.weights, self.size, self.cut, self.pooling = backbone, weights, size, cut, pooling
        self.head, self.views, self.resize, self.cache = head, views, resize, cache

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> Self:
        """The classifier with its head fitted to images of classes y [n], of weights [n]; groups are never divided.

        DataError if an image cannot be read; RecipeError if a parameter cannot be used.
        """
        head = make_head(self.head) if isinstance(self.head, str) else clone(self.head)
        self.head_: Any = head.fit(self.transform(X), np.asarray(y), sample_weight=sample_weight, groups=groups)
        self.classes_ = self.head_.classes_
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Classes [n]; NotFittedError before `fit`."""
        check_is_fitted(self)
        return self.head_.predict(self.transform(X))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities, float [n, k], in the order of `classes_`."""
        check_is_fitted(self)
        return self.head_.predict_proba(self.transform(X))

    def transform(self, X: Any) -> np.ndarray:
        """Frozen features of images, float32 [n, d]; DataError if some cannot be read, all are named."""
        recipe, extractor = self._build()
        paths = _save(X)
        dataset = Dataset.of_files(paths, [sha256(path) for path in paths], Rendering.of(self.resize or "stretch"))
        experiment = builders.Experiment(recipe, dataset, extractor)
        with builders.extract_features(experiment, views=builders.orientation_views(recipe)) as found:
            if problems := [f"{to_printable(bad.path)}: {bad.reason}" for bad in found.rejected]:
                raise DataError.from_problems("Some images cannot be read:", list_some(problems))
            return np.mean([np.asarray(of_view[0], np.float32) for of_view in found.views], axis=0)

    def to_keras(self) -> keras.Model:
        """The whole as one Keras model, from uint8 images [n, height, width, 3] to probabilities [n, k]."""
        check_is_fitted(self)
        recipe, extractor = self._build()
        model = attach_heads(extractor.pooled, self.head_, "classifier")
        return builders.add_orientations(recipe, extractor, model)

    def _build(self) -> tuple[Recipe, FeatureExtractor]:
        given = {key: value for name, key in _KEYS.items() if (value := getattr(self, name)) is not None}
        recipe = load_recipe(DEFAULT_RECIPE, {**given, **({"augmentation.test_time": True} if self.views else {})})
        return recipe, _build_extractor(recipe_to_yaml(recipe))


@lru_cache(maxsize=4)
def _build_extractor(recipe: str) -> FeatureExtractor:
    """The frozen network of a recipe in YAML, which the clones of a search share."""
    return builders.build_feature_extractor(validate(load_yaml(recipe, "the classifier")))


def _save(X: Any) -> list[str]:
    """Paths of images; those in memory are written into the cache, named by their pixels."""
    if not is_batch(X):
        return _list_paths(X)
    paths = []
    for pixels in map(check_pixels, np.asarray(X)):
        content = hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()
        path = cache_folder() / "images" / "pixels" / content[:2] / f"{content}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as temporary:
                Image.fromarray(pixels).save(temporary, "PNG", compress_level=1)
        paths.append(str(path))
    return paths


def _list_paths(X: Sequence[str | PathLike[str]]) -> list[str]:
    items = [X] if isinstance(X, str | PathLike) else list(X)
    if not items or not all(isinstance(item, str | PathLike) for item in items):
        raise DataError("Images are paths, or an array uint8 [n, height, width, 3].", f"{X!r:.60}")
    paths = [fspath(item) for item in items]
    if lost := [path for path in paths if not Path(path).is_file()]:
        raise DataError.from_problems("Some images were not found:", list_some(lost))
    return paths
