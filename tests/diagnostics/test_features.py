"""What features separate: projections, neighbours per depth, maps of a layer."""

from __future__ import annotations

import json
from importlib.util import find_spec

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from tlkeras.cli.main import main
from tlkeras.cli.tables.diagnostics import print_features
from tlkeras.config.recipe import load_recipe
from tlkeras.data.inspection import validate_images
from tlkeras.diagnostics.features import FeaturePlotResult, divide_classes, knn_accuracy_per_block
from tlkeras.plotting import charts
from tlkeras.training import builders


def show(*arguments: object):
    return CliRunner().invoke(main, ["--quiet", "show", "features", "mine.yaml", *map(str, arguments)])


def test_depths_are_compared_and_drawn_in_one_pass(workplace, capsys):
    options = ("--set", "features.handcrafted=[colour]", "--set", "data.domain=label", "--set", "backbone.size=32")
    done = show(*options, "--layer", "block2", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["images"] == 24 and result["chance"] == 0.5  # of 32, without the test split
    names = list(result["separations"])
    assert names[-2:] == ["0_colour", "features"] and len(names) > 3
    assert result["separations"]["0_colour"] == 1  # bright ones and dark ones
    for name in ("mine-features.png", "mine-features-maps.png"):
        with Image.open(name) as sheet:
            assert len(np.unique(np.asarray(sheet.convert("RGB")).reshape(-1, 3), axis=0)) > 20, name
    print_features(FeaturePlotResult(**result))
    printed = capsys.readouterr().out
    for part in ("the most common class alone", "0_colour", "1.000", "24 images, none of the test split"):
        assert part in printed


def test_neighbours_are_those_of_other_folds(workplace, monkeypatch, tmp_path):
    """Each image's own copy would make every depth perfect."""
    monkeypatch.setenv("TLKERAS_CACHE", str(tmp_path / "cache"))  # other tests train on images of the same bytes
    recipe = load_recipe("mine.yaml")
    dataset = builders.split_dataset(recipe, validate_images(builders.read_dataset(recipe)))
    experiment = builders.Experiment(recipe, dataset, builders.build_feature_extractor(recipe))
    rows = np.flatnonzero(dataset.split != "test")
    depths, kept = builders.extract_depths(experiment.take(rows))
    assert len(kept) == 24 and all(len(matrix) == 24 for matrix in depths.values())
    with builders.extract_features(experiment) as features:
        assert features.computed == 32 - 24  # these features are those that a training reads
        np.testing.assert_allclose(depths["features"], features.outputs[0][rows], rtol=1e-6)
    noise = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)
    found = knn_accuracy_per_block(divide_classes(dataset.take(rows), 0), {"noise": noise})
    codes = dataset.targets["label"][rows]
    assert found["noise"] < 0.8 < KNeighborsClassifier(1).fit(noise, codes).score(noise, codes)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("--method", "pca"), 2, "Unknown projection. Received: 'pca'. Valid: tsne, umap."),
        (("--layer", "block9"), 2, "tiny has no block or cut of this name with feature maps."),
        (("--to", "mine.yaml"), 6, "was not drawn by tlkeras"),
        (
            ("--layer", "block2", "--set", "backbone={name: none, size: 32}", "--set", "features.handcrafted=[hog]"),
            2,
            "A recipe without a backbone has no layers",
        ),
    ],
)
def test_what_cannot_be_shown_is_refused(workplace, arguments, code, sentence):
    done = show(*arguments)
    assert done.exit_code == code and sentence in done.stderr, done.output


@pytest.mark.skipif(find_spec("umap") is not None, reason="UMAP is installed")
def test_umap_is_an_extra(workplace):
    done = show("--method", "umap")
    assert done.exit_code == 8 and 'pip install "tlkeras[umap]"' in done.stderr


def test_rare_and_unknown_values_are_grey(tmp_path):
    points = {"PCA": np.random.default_rng(0).normal(size=(60, 2))}
    many = np.array([f"class {row % 20}" for row in range(60)])
    some = np.array(["", "day", "night"] * 20)
    path = tmp_path / "features.svg"
    charts.plot_features(points, {"class": many, "domain": some}, {"stem": 0.25, "top": 0.75}, 0.5, path)
    text = path.read_text()
    for part in ("others", "unknown", "day", "PCA, by class", "0.750", "the most common class alone"):
        assert part in text, part
    assert text.count("class 1") < 20
