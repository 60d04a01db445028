"""Extraction: nothing twice, nothing unreadable fatal, nothing different from the model itself."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image

from tlkeras.backbones.blocks import split
from tlkeras.backbones.builder import build_backbone
from tlkeras.data.augmentation.policies import make_policy
from tlkeras.data.augmentation.views import IDENTITY_VIEW, AugmentedView, digest_to_seed, draw_views, number_views
from tlkeras.data.headers import Rendering
from tlkeras.data.pipeline import make_image_dataset
from tlkeras.data.tables import Dataset
from tlkeras.errors import DataError, ResourceError, TlkerasError
from tlkeras.features import extraction
from tlkeras.features.cache import ActivationCache
from tlkeras.features.engines import make_engine

FACTS = [{"weights": "abc", "cut": "last"}]
extract = partial(extraction.extract_activations, engine="keras")  # the quickest to make


@pytest.fixture(scope="module")
def extractor() -> keras.Model:
    keras.utils.set_random_seed(0)
    entry = keras.Input((32, 32, 3), dtype="uint8", name="images")
    x = layers.Conv2D(4, 3, strides=2)(layers.Rescaling(1 / 255)(entry))
    return keras.Model(entry, layers.GlobalAveragePooling2D()(layers.BatchNormalization()(x)), name="net")


def draw(folder: Path, *numbers: int) -> Dataset:
    """Write one noisy image per number."""
    paths = []
    for number in numbers:
        path = folder / f"{number}.png"
        noise = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        paths.append(str(path))
    return read_files(paths)


def read_files(paths: list[str]) -> Dataset:
    return Dataset.of_files(paths, [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths])


def predict(extractor: keras.Model, images: Dataset, view: AugmentedView = IDENTITY_VIEW) -> np.ndarray:
    stream = make_image_dataset(images.paths.tolist(), 32, "stretch", len(images)).as_numpy_iterator()
    seen = draw_views(next(stream)[1], digest_to_seed(images.digests.tolist()), [view])
    return extractor.predict_on_batch(seen[:, 0])


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """The sizes of all batches that go into an engine."""
    sizes: list[int] = []
    make = extraction.make_engine

    def make_counting(extractor, name):
        engine = make(extractor, name)
        run = engine.run

        def count(batches):
            for index, images in batches:
                sizes.append(len(index))
                yield index, images

        engine.run = lambda batches: run(count(batches))
        return engine

    monkeypatch.setattr(extraction, "make_engine", make_counting)
    return sizes


@pytest.mark.parametrize("engine", ["openvino", "tensorflow", "keras"])
def test_gives_what_the_model_gives(extractor, tmp_path, engine):
    images = draw(tmp_path, *range(40))
    with extract(extractor, images, FACTS, engine=engine, dtype="float32") as features:
        [rows] = features.outputs
        assert (features.engine, features.computed, features.reused) == (engine, 40, 0)
        assert features.kept.tolist() == list(range(40)) and features.rejected == ()
        assert rows.shape == (40, 4) and rows.dtype == np.float32
        np.testing.assert_allclose(np.asarray(rows), predict(extractor, images), atol=1e-5)
        assert np.array_equal(rows[[3, 1]], np.asarray(rows)[[3, 1]])
        assert np.array_equal(rows[5], np.asarray(rows, np.float64)[5])
        assert np.array_equal(rows[rows[:][:, 0] > 0], rows[:][rows[:][:, 0] > 0])


def test_adding_ten_computes_ten(extractor, tmp_path, counted):
    cache = ActivationCache(tmp_path / "cache")
    with extract(extractor, draw(tmp_path, *range(40)), FACTS, cache=cache) as features:
        before = features.outputs[0][:]
    assert sum(counted) == 40
    counted.clear()
    images = draw(tmp_path, *range(100, 110), *range(40))
    with extract(extractor, images, FACTS, cache=cache) as features:
        assert sum(counted) == features.computed == 10 and features.reused == 40
        assert np.array_equal(features.outputs[0][10:], before)
        np.testing.assert_allclose(features.outputs[0][:], predict(extractor, images), rtol=1e-3, atol=1e-4)


def test_nothing_missing_needs_no_engine(extractor, tmp_path, monkeypatch):
    cache, images = ActivationCache(tmp_path / "cache"), draw(tmp_path, 1, 2)
    extract(extractor, images, FACTS, cache=cache).close()
    monkeypatch.setattr(extraction, "make_engine", None)
    with extract(extractor, images, FACTS, cache=cache) as features:
        assert (features.engine, features.computed, features.reused) == (None, 0, 2)


def test_equal_files_are_computed_once(extractor, tmp_path, counted):
    first = draw(tmp_path, 1, 2)
    (tmp_path / "copy.png").write_bytes((tmp_path / "1.png").read_bytes())
    images = read_files([*first.paths, str(tmp_path / "copy.png")])
    with extract(extractor, images, FACTS) as features:
        assert counted == [2] and features.computed == 2
        assert features.kept.tolist() == [0, 1, 2]
        assert np.array_equal(features.outputs[0][0], features.outputs[0][2])


def test_unreadable_images_are_left_out(extractor, tmp_path):
    good = draw(tmp_path, *range(70))
    half = (tmp_path / "0.png").read_bytes()[:300]
    bad = {"empty.png": b"", "text.jpg": b"hello", "half.png": half}
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    paths = [str(tmp_path / name) for name in bad]
    images = read_files([paths[0], *good.paths[:50], paths[1], *good.paths[50:], paths[2]])
    with extract(extractor, images, FACTS) as features:
        assert [rejection.path for rejection in features.rejected] == paths
        assert all(rejection.reason for rejection in features.rejected)
        assert features.kept.tolist() == [row for row in range(73) if row not in (0, 51, 72)]
        assert features.computed == 70
        np.testing.assert_allclose(features.outputs[0][:], predict(extractor, good), rtol=1e-3, atol=1e-4)


def test_only_unreadable_images(extractor, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with extract(extractor, read_files([str(tmp_path / "a.png")]), FACTS) as features:
        assert len(features.rejected) == 1 and len(features.kept) == 0
        assert features.outputs[0][:].shape == (0, 4)


def test_no_image_at_all(extractor):
    with extract(extractor, Dataset.of_files([], []), FACTS) as features:
        assert (len(features.kept), features.computed, features.outputs[0].shape) == (0, 0, (0, 4))


def test_several_taps_in_one_pass(extractor, tmp_path, counted):
    """A second tap beside a known one: one pass over the images, and only the new rows are written."""
    cache, images = ActivationCache(tmp_path / "cache"), draw(tmp_path, 1, 2, 3)
    extract(extractor, images, FACTS, cache=cache).close()
    counted.clear()
    taps = keras.Model(extractor.input, [extractor.layers[2].output, extractor.output])
    facts = [{"weights": "abc", "cut": "first"}, *FACTS]
    with extract(taps, images, facts, cache=cache) as features:
        assert [rows.shape for rows in features.outputs] == [(3, 15, 15, 4), (3, 4)]
        assert counted == [3]
        for rows, expected in zip(features.outputs, predict(taps, images), strict=True):
            np.testing.assert_allclose(rows[:], expected, rtol=1e-3, atol=1e-3)
    assert sorted(space.rows for space in cache.list_entries()) == [3, 3]


VIEWS = [
    IDENTITY_VIEW,
    *number_views(make_policy("light"), 2, seed=5),
    AugmentedView(make_policy("dihedral"), number=6),
]


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """The number of files that each stream is asked to decode."""
    counts: list[int] = []

    def stream(paths, *args, **kwargs):
        counts.append(len(paths))
        return make_image_dataset(paths, *args, **kwargs)

    monkeypatch.setattr(extraction, "make_image_dataset", stream)
    return counts


def test_several_views_in_one_pass(extractor, tmp_path, counted, decoded):
    """Unreadable and equal files among them."""
    cache, good = ActivationCache(tmp_path / "cache"), draw(tmp_path, *range(20))
    (tmp_path / "bad.png").write_bytes(b"")
    (tmp_path / "copy.png").write_bytes((tmp_path / "1.png").read_bytes())
    images = read_files([good.paths[0], str(tmp_path / "bad.png"), *good.paths[1:], str(tmp_path / "copy.png")])
    with extract(extractor, images, FACTS, views=VIEWS, cache=cache) as features:
        assert decoded == [21] and sum(counted) == features.computed == 80 and features.reused == 0
        assert max(counted) <= 32
        assert features.kept.tolist() == [0, *range(2, 22)] and len(features.rejected) == 1
        assert features.outputs == features.views[0] and len(features.views) == 4
        for view, (rows,) in zip(VIEWS, features.views, strict=True):
            np.testing.assert_allclose(rows[:20], predict(extractor, good, view), rtol=1e-3, atol=1e-3)
            assert np.array_equal(rows[20], rows[1])
        assert not np.array_equal(features.views[1][0][:], features.views[2][0][:])


def test_views_that_are_there_are_not_computed_again(extractor, tmp_path, counted, decoded):
    cache, images = ActivationCache(tmp_path / "cache"), draw(tmp_path, *range(12))
    half = images.take(np.arange(6))
    extract(extractor, half, FACTS, views=VIEWS[:2], cache=cache).close()
    extract(extractor, images, FACTS, cache=cache).close()  # a plain view is one with those of other runs
    counted.clear(), decoded.clear()
    assert extraction.count_cache_misses(extractor, images, FACTS, cache, views=VIEWS) == 30
    with extract(extractor, images, FACTS, views=VIEWS, cache=cache) as features:
        assert sum(counted) == features.computed == 30 and features.reused == 18 and decoded == [12]
        for view, (rows,) in zip(VIEWS, features.views, strict=True):
            np.testing.assert_allclose(rows[:], predict(extractor, images, view), rtol=1e-3, atol=1e-3)
    with extract(extractor, images, FACTS, views=VIEWS[::-1], cache=cache) as features:
        assert features.computed == 0 and features.reused == 48
        assert np.allclose(features.views[3][0][:], predict(extractor, images), rtol=1e-3, atol=1e-3)


def test_interrupted_views_are_kept(extractor, tmp_path, monkeypatch):
    cache, images = ActivationCache(tmp_path / "cache"), draw(tmp_path, *range(40))

    def interrupt(extractor, name):
        engine = make_engine(extractor, name)
        run = engine.run
        engine.run = lambda batches: run(_interrupted(batches))
        return engine

    def _interrupted(stream):
        for _ in range(3):  # of 8 images each
            yield next(stream)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(extraction, "make_engine", interrupt)
        extract(extractor, images, FACTS, views=VIEWS, cache=cache)
    with extract(extractor, images, FACTS, views=VIEWS, cache=cache) as features:
        assert (features.reused, features.computed) == (96, 64)


def test_views_of_several_outputs_each_in_its_precision(extractor, tmp_path):
    taps = keras.Model(extractor.input, [extractor.layers[2].output, extractor.output])
    images, facts = draw(tmp_path, 1, 2, 3), [{"cut": "first"}, {"cut": "last"}]
    with extract(taps, images, facts, views=VIEWS[:2], dtype=["float16", "float32"]) as features:
        for view, rows in zip(VIEWS, features.views, strict=False):
            assert [(of.shape, of.dtype) for of in rows] == [((3, 15, 15, 4), np.float16), ((3, 4), np.float32)]
            for of, expected in zip(rows, predict(taps, images, view), strict=True):
                np.testing.assert_allclose(of[:], expected, rtol=1e-3, atol=1e-3)


def test_disk_space_for_views_is_checked(extractor, tmp_path, counted):
    """A row of four float16 takes 8 bytes and 32 of digest: 40 images in 4 views 6,400."""
    cache, images = ActivationCache(tmp_path / "cache", budget_bytes=6399), draw(tmp_path, *range(40))
    for count in (
        extract,
        lambda *args, **more: extraction.count_cache_misses(*args, more["cache"], views=more["views"]),
    ):
        with pytest.raises(ResourceError, match="6,400 bytes in addition to"):
            count(extractor, images, FACTS, views=VIEWS, cache=cache)
    assert counted == []


def test_a_view_given_twice(extractor, tmp_path):
    views = [IDENTITY_VIEW, AugmentedView(make_policy("flip"), number=2)]
    with pytest.raises(TlkerasError, match="Two views are the same. Received: {}, {}."):
        extract(extractor, draw(tmp_path, 1), FACTS, views=views)


def test_facts_that_change_the_numbers_change_the_namespace(extractor, tmp_path):
    cache, images = ActivationCache(tmp_path / "cache"), draw(tmp_path, 1)
    extract(extractor, images, FACTS, cache=cache).close()
    for resize, facts, dtype in (
        ("crop", FACTS, "float16"),
        ("stretch", [{"weights": "other", "cut": "last"}], "float16"),
        ("stretch", FACTS, "float32"),
    ):
        with extract(
            extractor, replace(images, rendering=Rendering(resize)), facts, cache=cache, dtype=dtype
        ) as features:
            assert features.computed == 1
    spaces = cache.list_entries()
    assert len(spaces) == 4
    assert {"weights", "cut", "size", "fit", "background", "decoder", "shape", "dtype"} == set(spaces[0].facts)


def test_interrupted_work_is_kept(extractor, tmp_path, monkeypatch):
    """Ctrl-C while the eighth of nine batches is awaited."""
    cache, images = ActivationCache(tmp_path / "cache"), draw(tmp_path, *range(70))
    batches = list(make_image_dataset(images.paths.tolist(), 32, "stretch", 8).as_numpy_iterator())

    def interrupt(extractor, name):
        engine = make_engine(extractor, name)
        run = engine.run
        engine.run = lambda batches: run(_interrupted(batches))
        return engine

    def _interrupted(stream):
        yield from batches[:7]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(extraction, "make_engine", interrupt)
        extract(extractor, images, FACTS, cache=cache)
    with extract(extractor, images, FACTS, cache=cache) as features:
        assert (features.reused, features.computed) == (56, 14)
        np.testing.assert_allclose(features.outputs[0][:], predict(extractor, images), rtol=1e-3, atol=1e-4)


def test_an_image_that_gives_nan_is_named(tmp_path):
    entry = keras.Input((32, 32, 3), dtype="uint8")
    x = layers.GlobalMaxPooling2D()(layers.Rescaling(1.0)(entry))
    log = keras.Model(entry, keras.ops.log(x - 200.0))
    images = draw(tmp_path, 1)
    Image.new("RGB", (32, 32)).save(tmp_path / "black.png")
    images = read_files([*images.paths, str(tmp_path / "black.png")])
    with pytest.raises(DataError, match=r"NaN or infinity for .*black.png"):
        extract(log, images, FACTS)


def test_too_large_for_float16_is_named(tmp_path):
    entry = keras.Input((32, 32, 3), dtype="uint8")
    large = keras.Model(entry, layers.GlobalMaxPooling2D()(layers.Rescaling(1000.0)(entry)))
    images = draw(tmp_path, 1)
    with pytest.raises(
        DataError, match=r"65,504, the limit of float16. Received: .* for .*1.png. Store them as float32"
    ):
        extract(large, images, FACTS)
    with extract(large, images, FACTS, dtype="float32") as features:
        assert features.outputs[0][:].max() > 65_504


def test_budget_stops_before_the_work(extractor, tmp_path, counted):
    cache = ActivationCache(tmp_path / "cache", budget_bytes=1000)
    with pytest.raises(ResourceError, match=r"do not fit the cache's budget of 1,000 bytes"):
        extract(extractor, draw(tmp_path, *range(40)), FACTS, cache=cache)
    assert counted == []


def test_without_a_cache_nothing_stays(extractor, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "images").mkdir()
    features = extract(extractor, draw(tmp_path / "images", 1, 2), FACTS)
    assert len(list(tmp_path.iterdir())) == 2
    features.close()
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_failed_extraction_frees_the_space(extractor, tmp_path):
    cache = ActivationCache(tmp_path / "cache")
    extract(extractor, draw(tmp_path, 1), FACTS, cache=cache).close()
    small = ActivationCache(tmp_path / "cache", budget_bytes=1)
    with pytest.raises(ResourceError, match="budget"):
        extract(extractor, draw(tmp_path, 2), FACTS, cache=small)
    assert len(cache.prune(max_bytes=0)) == 1


def make_own_model(seed=0):
    """As users write it: a backbone within a model, and the part of it up to a cut."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((32, 32, 3))
    outputs = build_backbone("tiny", weights="none")(keras.layers.Identity()(inputs), training=False)
    return split(keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(outputs)), "block2_out")[0]


def test_features_of_a_model_of_ones_own_are_cached_by_content(workplace, monkeypatch):
    model, paths = make_own_model(), sorted(Path("photos").rglob("*.png"))
    cache = ActivationCache(workplace / "cache")
    found = extraction.extract(model, paths, cache=cache)
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths]).astype(np.float32)
    np.testing.assert_allclose(found, model(pixels), atol=0.02, rtol=0.01)

    def refuse(*_):
        raise AssertionError("computed again")

    with monkeypatch.context() as patch:
        patch.setattr(extraction, "make_engine", refuse)
        assert np.array_equal(extraction.extract(make_own_model(), paths[::-1], cache=cache), found[::-1])
        with pytest.raises(AssertionError, match="computed again"):
            extraction.extract(make_own_model(seed=1), paths, cache=cache)


def test_files_and_models_that_cannot_be_used(workplace):
    extract, model = extraction.extract, make_own_model()
    (workplace / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(DataError, match=r"do not exist. Received: 'none.png', and 0 more"):
        extract(model, ["none.png"])
    with pytest.raises(DataError, match=r"cannot be read:\n  .*broken.png"):
        extract(model, ["broken.png"])
    inputs = keras.Input((None, None, 3))
    with pytest.raises(TlkerasError, match=r"fixed size to one tensor.*None"):
        extract(keras.Model(inputs, keras.layers.Conv2D(2, 3)(inputs)), ["broken.png"])
