"""Handcrafted features: formulas against numbers worked out otherwise, codebooks of training images alone, runs."""

import hashlib
from pathlib import Path

import keras
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

import tlkeras
from tlkeras.data.tables import Dataset
from tlkeras.errors import DataError, ExportError, RecipeError
from tlkeras.features.cache import ActivationCache
from tlkeras.features.engines import make_engine
from tlkeras.features.handcrafted.codebooks import fit_codebooks, learn_codebook
from tlkeras.features.handcrafted.descriptors import (
    DESCRIPTORS,
    ENCODINGS,
    bag_of_words,
    count_in_cells,
    describe_grid,
    encode_fisher,
    encode_vlad,
    make_descriptor,
    root_sift,
    to_grey,
)
from tlkeras.features.handcrafted.layer import list_handcrafted, make_layers, map_images
from tlkeras.inference.predict import load_model
from tlkeras.runs.directory import Run, open_run
from tlkeras.runs.predictions import load_predictions

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
CENTRES = np.array([[0.0, 0.0], [10.0, 0.0]])
ROWS = np.array([[1.0, 0.0], [0.0, 1.0], [10.0, 2.0]])
SIFT = {"kind": "sift", "words": 4, "components": 8, "sizes": [4, 8]}


def test_words_and_vlad_as_worked_out_by_hand():
    np.testing.assert_allclose(bag_of_words(ROWS, CENTRES), np.sqrt([2 / 3, 1 / 3]))
    # differences sum to (1, 1) and (0, 2); each to length one, then both together
    np.testing.assert_allclose(encode_vlad(ROWS, CENTRES), [0.5, 0.5, 0, np.sqrt(0.5)])
    np.testing.assert_allclose(encode_vlad(ROWS[:2], CENTRES), [np.sqrt(0.5), np.sqrt(0.5), 0, 0])


def test_a_fisher_vector_is_the_gradient_of_the_log_likelihood():
    """Taken here by finite differences of scipy's densities, and scaled as Perronnin et al. do."""
    centres, deviations, shares = RANDOM.normal(size=(3, 2)), RANDOM.uniform(0.5, 2, (3, 2)), np.array([0.2, 0.3, 0.5])
    X = RANDOM.normal(size=(7, 2))

    def likelihood(means, deviations):
        logs = norm.logpdf(X[:, None], means, deviations).sum(axis=2) + np.log(shares)
        return logsumexp(logs, axis=1).mean()

    def differentiate(at, function):
        slopes = np.empty_like(at)
        for place in np.ndindex(at.shape):
            step = np.zeros_like(at)
            step[place] = 1e-6
            slopes[place] = (function(at + step) - function(at - step)) / 2e-6
        return slopes

    by_mean = differentiate(centres, lambda means: likelihood(means, deviations))
    by_deviation = differentiate(deviations, lambda scales: likelihood(centres, scales))
    roots = np.sqrt(shares)[:, None]
    vector = np.r_[(by_mean * deviations / roots).ravel(), (by_deviation * deviations / roots / np.sqrt(2)).ravel()]
    rooted = np.sign(vector) * np.sqrt(np.abs(vector))
    expected = rooted / np.linalg.norm(rooted)
    np.testing.assert_allclose(encode_fisher(X, centres, deviations**2, shares), expected, atol=1e-4)


def test_the_codebook_finds_the_centres_that_there_are():
    axes = np.eye(128)[:3] * 5
    descriptors = np.repeat(axes, 50, axis=0) + RANDOM.normal(scale=0.01, size=(150, 128))
    for encoding in ("vlad", "fisher"):
        book = learn_codebook(descriptors, encoding, words=3, components=2, seed=0)
        found = book["centres"] @ book["projection"].T + book["mean"]
        distances = np.linalg.norm(found[:, None] - axes, axis=2)
        assert sorted(distances.argmin(axis=1)) == [0, 1, 2]
        assert distances.min(axis=1).max() < 0.05
    np.testing.assert_allclose(book["shares"], 1 / 3, atol=1e-3)
    with pytest.raises(DataError, match="2 descriptors for 3 words and 2 components"):
        learn_codebook(descriptors[:2], "vlad", 3, 2, 0)


def test_dense_sift_as_added_up_pixel_by_pixel():
    """A bin adds up the gradients around its middle, each by its nearness in rows, columns and orientation."""
    grey, size = to_grey(IMAGES[0]), 4
    received = describe_grid(grey, size, step=8)
    assert received.shape == (9, 128)  # 16-pixel patches from 0, 8 and 16
    from scipy.ndimage import gaussian_filter

    by_row, by_column = np.gradient(gaussian_filter(grey, size / 6))
    expected = np.zeros((4, 4, 8))
    for row, column in np.ndindex(32, 32):
        strength = np.hypot(by_row[row, column], by_column[row, column])
        turn = np.degrees(np.arctan2(by_row[row, column], by_column[row, column])) % 360 / 45
        for place in np.ndindex(4, 4, 8):
            near = [
                max(0, 1 - abs(at - (8 + size // 2 + size * bin)) / size)
                for at, bin in ((row, place[0]), (column, place[1]))
            ]
            apart = min(abs(turn - place[2]), 8 - abs(turn - place[2]))
            expected[place] += strength * near[0] * near[1] * max(0, 1 - apart)
    np.testing.assert_allclose(received[4], expected.ravel(), rtol=1e-3, atol=1e-5)  # the patch from (8, 8)


def test_an_edge_has_its_orientation():
    ramp = np.tile(np.linspace(0, 1, 32, dtype=np.float32), (32, 1))
    across = root_sift(describe_grid(ramp, 4, 8)).reshape(-1, 16, 8)
    down = root_sift(describe_grid(ramp.T.copy(), 4, 8)).reshape(-1, 16, 8)
    assert np.all(across.argmax(axis=2) == 0) and np.all(down.argmax(axis=2) == 2)
    np.testing.assert_allclose(np.linalg.norm(across.reshape(-1, 128), axis=1), 1, rtol=1e-5)
    assert len(root_sift(describe_grid(np.zeros((32, 32), np.float32), 4, 8))) == 0


def test_cells_count_their_own_codes():
    codes = np.array([[0, 0, 1, 1], [0, 1, 1, 1], [2, 2, 0, 1], [2, 2, 2, 0]])
    shares = count_in_cells(codes, 3, 2) ** 2
    np.testing.assert_allclose(shares.reshape(4, 3), [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.25, 0.25]])


def test_a_colour_has_its_bin():
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255  # hue 0, saturation 1, value 1: bins 0, 3 and 3 of 4
    vector = make_descriptor("colour", bins=4, grid=1).describe(red)
    assert np.flatnonzero(vector).tolist() == [15] and vector[15] == 1


def test_an_image_without_keypoints_is_zeros():
    sift = make_descriptor("sift", detector="keypoint", words=2, components=3)
    assert len(sift.find_local(np.zeros((32, 32, 3), np.uint8))) == 0
    book = {name: np.ones(shape, np.float32) for name, shape in sift.shapes.items()}
    assert np.all(sift.describe(np.zeros((32, 32, 3), np.uint8), book) == np.zeros(6))


EACH = [{"kind": kind} for kind in DESCRIPTORS if kind != "sift"] + [{**SIFT, "encoding": name} for name in ENCODINGS]


@pytest.mark.parametrize("options", EACH, ids=lambda options: options.get("encoding", options["kind"]))
def test_the_layer_computes_the_descriptor_and_survives_a_file(options, tmp_path):
    [layer] = make_layers([options], 32)
    entry = keras.Input((32, 32, 3), dtype="uint8")
    model = keras.Model(entry, layer(entry))
    layer.set_weights([RANDOM.uniform(0.1, 1, weight.shape) for weight in layer.weights])
    book = dict(zip(layer.algorithm.shapes, layer.get_weights(), strict=True))
    expected = np.stack([layer.algorithm.describe(image, book) for image in IMAGES])
    np.testing.assert_allclose(model(IMAGES), expected, rtol=1e-6)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(IMAGES), model(IMAGES))
    engine = make_engine(model)
    assert engine.name == "tensorflow"
    [(_, [rows])] = engine.run([(np.arange(3), IMAGES)])
    np.testing.assert_allclose(rows, expected, rtol=1e-6)


@pytest.mark.slow
def test_processes_compute_what_one_computes():
    images = RANDOM.integers(0, 256, (8, 300, 300, 3), dtype=np.uint8)
    describe = make_descriptor("lbp").describe
    np.testing.assert_array_equal(map_images(describe, images), [describe(image) for image in images])


def test_codebooks_are_learned_once_and_from_the_images_given(workplace):
    paths = sorted(map(str, (workplace / "photos").glob("*/*.png")))
    digests = [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]
    entry = keras.Input((32, 32, 3), dtype="uint8")
    model = keras.Model(entry, make_layers([SIFT], 32)[0](entry))
    cache = ActivationCache(workplace / "cache")
    assert fit_codebooks(model, Dataset.of_files(paths[:20], digests[:20]), cache) == 1
    [layer] = list_handcrafted(model)
    first = layer.get_weights()
    assert fit_codebooks(model, Dataset.of_files(paths[:20][::-1], digests[:20][::-1]), cache) == 0  # the same images
    np.testing.assert_array_equal(layer.get_weights()[0], first[0])
    assert fit_codebooks(model, Dataset.of_files(paths[12:], digests[12:]), cache) == 1
    assert not np.allclose(layer.get_weights()[0], first[0])


@pytest.fixture(scope="module")
def crafted(tmp_path_factory, draw_more_photos):
    """A finished run on handcrafted features alone, and its folder."""
    folder = tmp_path_factory.mktemp("crafted")
    draw_more_photos(folder / "photos")
    recipe = {
        "data": "{source: photos, test: 0.25, split_tolerance: 0}",
        "backbone": "{name: none, size: 32}",
        "features": "{handcrafted: [{kind: sift, words: 4, components: 8, sizes: [4, 8]}, hog, colour]}",
        "head": "{kind: svm}",
        "evaluation": "{bootstrap_samples: 100}",
    }
    (folder / "mine.yaml").write_text("".join(f"{key}: {value}\n" for key, value in recipe.items()))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder, tlkeras.evaluate(tlkeras.train("mine.yaml"))


def test_a_run_predicts_what_it_measured(crafted, monkeypatch):
    folder, result = crafted
    monkeypatch.chdir(folder)
    assert result.metrics["accuracy"].value == 1  # colours tell them apart
    run = open_run(result.path, folder / "runs")
    stored = load_predictions(run)[0]
    predicted = tlkeras.predict(result.path, [folder / "photos" / key for key in stored.keys])
    best = [row.probability for row in predicted.predictions]
    np.testing.assert_allclose(best, stored.probabilities.max(axis=1), atol=1e-5)
    books = [layer.get_weights() for layer in list_handcrafted(load_model(run))]
    assert [len(book) for book in books] == [3, 0, 0] and np.abs(books[0][2]).sum() > 0


def test_features_of_a_run_are_computed_with_its_codebooks(crafted, monkeypatch):
    from tlkeras.evaluation.run_data import RunData

    folder, result = crafted
    monkeypatch.chdir(folder)
    data = RunData(Run(folder / result.path))
    model = data.model
    vectors = keras.Model(model.input, model.get_layer("logits").input)
    test = data.features["test"]
    images = np.stack([data.decode(key) for key in test.keys])
    np.testing.assert_allclose(test.X, vectors(images), atol=1e-6)


def test_an_export_is_refused_and_check_warns_of_it(crafted, monkeypatch):
    folder, result = crafted
    monkeypatch.chdir(folder)
    with pytest.raises(ExportError) as caught:
        tlkeras.export(result.path, folder / "models")
    for part in ("Handcrafted features cannot be exported", "computed in Python", "`tlkeras predict`"):
        assert part in str(caught.value)
    assert not (folder / "models").exists()
    found = tlkeras.check("mine.yaml")
    assert not found.problems
    assert any("(sift, hog, colour) cannot be exported" in note for note in found.notes)


@pytest.mark.slow
def test_they_are_concatenated_with_a_backbone(workplace):
    result = tlkeras.evaluate(
        tlkeras.train("mine.yaml", set={"features": {"handcrafted": ["lbp", SIFT]}, "head": {"kind": "ridge"}})
    )
    model = load_model(open_run(result.path, workplace / "runs"))
    vectors = np.asarray(keras.Model(model.input, model.get_layer("logits").input)(IMAGES))
    lbp = make_descriptor("lbp").describe(IMAGES[0])
    widths = [vectors.shape[1] - len(lbp) - 32, len(lbp), 32]
    assert widths[0] > 0
    for part in np.split(vectors, np.cumsum(widths)[:-1], axis=1):
        np.testing.assert_allclose(np.linalg.norm(part, axis=1), 1, rtol=1e-4)
    np.testing.assert_allclose(
        np.split(vectors, np.cumsum(widths)[:-1], axis=1)[1][0], lbp / np.linalg.norm(lbp), rtol=1e-4
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"backbone": {"name": "none"}, "features.handcrafted": ["hog"]}, "set backbone.size"),
        ({"backbone": {"name": "none", "size": 32}}, "set features.handcrafted"),
        ({"backbone": {"name": "none", "size": 32}, "features": {"handcrafted": ["hog"], "taps": [0]}}, "no other"),
        ({"features.handcrafted": ["hog"], "finetuning": {}}, "remove features.handcrafted"),
        ({"features.handcrafted": ["hog"], "head": {"kind": "attention"}}, "remove features.handcrafted"),
        ({"features.handcrafted": ["hoag"]}, "Did you mean 'hog'?"),
        ({"features.handcrafted": [{"kind": "hog", "cell": 32}]}, "hog needs 64 px"),
    ],
)
def test_contradictions_are_refused(workplace, changes, sentence):
    with pytest.raises(RecipeError) as caught:
        tlkeras.train("mine.yaml", set=changes)
    assert sentence in str(caught.value)
    assert not (workplace / "runs").exists()


@pytest.mark.slow
def test_the_recipe_reaches_the_accuracy_of_its_header(tmp_path):
    result = tlkeras.evaluate(tlkeras.train("handcrafted", set={"evaluation.bootstrap_samples": 100}, runs=tmp_path))
    assert result.metrics["accuracy"].value > 0.79 and result.metrics["roc_auc"].value > 0.85


def test_all_without_a_codebook_are_computed_for_use_elsewhere(workplace):
    from pyarrow import parquet

    changes = {"features.handcrafted": ["hog"], "backbone": {"name": "none", "size": 32}}
    tlkeras.extract_features("mine.yaml", workplace / "out", changes)
    table = parquet.read_table(workplace / "out" / "parts")
    assert len(table) == 32 and len(table["features"][0]) == len(make_descriptor("hog").describe(IMAGES[0]))


def test_images_without_splits_have_no_codebook(workplace):
    with pytest.raises(RecipeError, match="need a codebook that is fitted on training images"):
        tlkeras.extract_features("mine.yaml", workplace / "out", {"features.handcrafted": ["sift"]})
