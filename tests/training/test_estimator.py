"""A pretrained network with a head as a scikit-learn classifier of images."""

import pickle

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score

import tlkeras
from tlkeras.errors import DataError, RecipeError
from tlkeras.features.engines import make_engine
from tlkeras.heads import CentroidHead, LinearHead

TINY = {"backbone": "tiny", "weights": "none", "size": 32}


@pytest.fixture(scope="module")
def images(tmp_path_factory, draw_more_photos):
    folder = draw_more_photos(tmp_path_factory.mktemp("images"))
    paths = sorted(folder.rglob("*.png"))
    return [str(path) for path in paths], np.array([path.parent.name for path in paths])


def test_paths_and_pixels_are_one(images):
    paths, labels = images
    fitted = tlkeras.TransferClassifier(**TINY).fit(paths, labels)
    assert fitted.classes_.tolist() == ["day", "night"] and fitted.score(paths, labels) == 1
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    np.testing.assert_array_equal(fitted.predict_proba(pixels), fitted.predict_proba(paths))
    np.testing.assert_allclose(fitted.to_keras()(pixels).numpy(), fitted.predict_proba(paths), atol=2e-3)  # float16


def test_a_search_computes_features_once(images, monkeypatch):
    paths, labels = images
    runs = []
    monkeypatch.setattr(
        "tlkeras.features.extraction.make_engine", lambda *given: runs.append(given) or make_engine(*given)
    )
    classifier = tlkeras.TransferClassifier(**TINY, head=LinearHead(), resize="crop")
    search = GridSearchCV(classifier, {"head__C": [1e-6, 1.0]}, cv=4).fit(paths, labels)
    assert search.best_params_ == {"head__C": 1.0} and search.best_score_ == 1
    assert len(runs) <= 2  # one fold's training images, then the rest; never again for another head
    assert cross_val_score(clone(classifier).set_params(head=CentroidHead()), paths, labels, cv=3).mean() == 1


def test_weights_count(images):
    """Rows without weight are as if they were not there."""
    paths, labels = images
    wrong = labels.copy()
    wrong[:4] = "night"
    weights = np.where(np.arange(len(labels)) < 4, 0.0, 1.0)
    kind = CentroidHead()
    weighed = tlkeras.TransferClassifier(**TINY, head=kind).fit(paths, wrong, sample_weight=weights)
    apart = tlkeras.TransferClassifier(**TINY, head=kind).fit(paths[4:], labels[4:])
    np.testing.assert_allclose(weighed.predict_proba(paths), apart.predict_proba(paths), atol=1e-3)


def test_it_is_cloned_and_pickled(images):
    paths, labels = images
    fitted = tlkeras.TransferClassifier(**TINY, views="flip").fit(paths, labels)
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict_proba(paths), fitted.predict_proba(paths))
    with pytest.raises(NotFittedError):
        clone(fitted).predict(paths)


def test_views_are_averaged(images):
    """Features of an image and of its mirror image are the same."""
    pixels = np.asarray(Image.open(images[0][0]))
    both = np.stack([pixels, pixels[:, ::-1]])
    plain = tlkeras.TransferClassifier(**TINY).transform(both)
    mean = tlkeras.TransferClassifier(**TINY, views="flip").transform(both)
    np.testing.assert_allclose(mean[0], mean[1], atol=1e-6)
    np.testing.assert_allclose(mean[0], plain.mean(axis=0), atol=1e-6)
    fitted = tlkeras.TransferClassifier(**TINY, views="flip").fit(images[0], images[1])
    np.testing.assert_allclose(fitted.to_keras()(both).numpy(), fitted.predict_proba(both), atol=2e-3)


def test_what_cannot_be_used_is_named(images, tmp_path):
    paths, labels = images
    (tmp_path / "text.png").write_text("no image")
    for X, message in (
        ([*paths[:3], str(tmp_path / "text.png")], "text.png"),
        (["nowhere.png"], "nowhere.png"),
        ([1, 2], "Images are paths"),
        (np.full((2, 8, 8, 3), 0.5), "uint8"),
    ):
        with pytest.raises(DataError, match=message):
            tlkeras.TransferClassifier(**TINY).fit(X, labels[: len(X)])
    with pytest.raises(RecipeError, match="Did you mean 'linear'"):
        tlkeras.TransferClassifier(**TINY, head="linaer").fit(paths, labels)
