"""Images of 12 bits in files of 16: scaled alike in training, prediction, evaluation and in the exported model."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tlkeras
from tlkeras.data.decoding import decode_file
from tlkeras.data.headers import Rendering
from tlkeras.evaluation.run_data import RunData
from tlkeras.exporting.signatures import LoadedSavedModel
from tlkeras.exporting.versions import CARD
from tlkeras.inference.predict import load_model

RECIPE = """\
data: {source: photos, test: 0.25, split_tolerance: 0}
backbone: {name: tiny, weights: none}
evaluation: {bootstrap_samples: 100}
"""
TWELVE = Rendering(depth_range=(0, 4095))


def draw(folder: Path, seed: int = 0) -> None:
    """Images of up to 4,080 of 65,535: their upper 8 bits are 0 to 15. One half are PNG, the other TIFF."""
    random = np.random.default_rng(seed)
    for label, low in (("day", 1900), ("night", 0)):
        (folder / label).mkdir(parents=True)
        for number in range(16):
            pixels = random.integers(low, low + 2180, (32, 32)).astype(np.uint16)
            Image.fromarray(pixels).save(folder / label / f"{number:03d}.{'png' if number % 2 else 'tif'}")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("deep")
    draw(folder / "photos")
    (folder / "mine.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(autouse=True)
def _there(place, monkeypatch):
    monkeypatch.chdir(place)


@pytest.fixture(scope="module")
def deep(place):
    before = os.getcwd()
    os.chdir(place)
    try:
        return tlkeras.train("mine.yaml")
    finally:
        os.chdir(before)


def look(place: Path, label: str = "day") -> tuple[list[str], np.ndarray]:
    paths = [str(path) for path in sorted((place / "photos" / label).iterdir())[:4]]
    return paths, np.stack([decode_file(path, 32, TWELVE) for path in paths])


def test_the_run_keeps_the_range_and_predicts_with_it(deep, place):
    assert deep.manifest["image"]["depth_range"] == [0, 4095]
    paths, pixels = look(place)
    assert pixels.max() > 200
    found = tlkeras.predict(deep, paths)
    shown = [{one.label: one.probability for one in image.top}["day"] for image in found.predictions]
    np.testing.assert_allclose(shown, np.asarray(load_model(deep)(pixels))[:, 0], atol=1e-6)
    assert not found.notes


@pytest.mark.slow
def test_the_exported_model_scales_alike(deep, place):
    done = tlkeras.export(deep, place / "models")
    assert done.image.depth_range == (0, 4095) and done.difference < 1e-4
    assert "of PNGs of 16 bits the values 0 to 4095 are scaled to 8 bits" in (Path(done.path) / CARD).read_text()
    paths, pixels = look(place)
    files = np.array([Path(path).read_bytes() for path in paths if path.endswith("png")], dtype=object)
    with LoadedSavedModel(Path(done.path)) as loaded:
        outputs = loaded.run("serving_default", image_bytes=files)
    expected = np.asarray(load_model(deep)(pixels[[path.endswith("png") for path in paths]]))
    np.testing.assert_allclose(outputs["probabilities"], expected, atol=1e-5)


def test_what_reads_the_run_again_sees_the_same_pixels(deep, place):
    data = RunData(deep)
    assert data.dataset.rendering == TWELVE
    key, path = next(iter(data.paths.items()))
    np.testing.assert_array_equal(data.decode(key), decode_file(path, 32, TWELVE))


def test_check_says_what_it_found(place):
    result = tlkeras.check("mine.yaml", html="page.html")
    assert not result.problems
    (told,) = [note for note in result.notes if "hold values" in note]
    assert told.endswith(": 0 to 4,095 are scaled to 8 bits (data.depth_range).")
    clipped = tlkeras.check("mine.yaml", {"data.depth_range": (0, 1023)})
    assert any("0 to 1,023 are scaled to 8 bits; what lies beyond is clipped" in note for note in clipped.notes)


def test_a_preview_is_not_black(place):
    shown = tlkeras.show_augmentation("mine.yaml", to="views.png")
    assert shown.images == 6
    sheet = np.asarray(Image.open("views.png").convert("L"))
    assert np.percentile(sheet[sheet < 250], 90) > 100


def test_features_and_predictions_that_keep_the_upper_bits_say_so(place, trained):
    """Of a job nobody knows the training images, and the run of 8 bits saw none of 16."""
    alone = tlkeras.extract_features("mine.yaml", "job")
    assert any("of its 16 bits the upper 8 are kept; data.depth_range sets other values" in one for one in alone.notes)
    given = tlkeras.extract_features("mine.yaml", "other-job", {"data.depth_range": (0, 4095)})
    assert not given.notes
    paths, _ = look(place)
    assert "4 images have 16 bits, of which the upper 8 are kept" in tlkeras.predict(str(trained), paths).notes[0]


@pytest.mark.slow
def test_other_data_is_scaled_as_the_run_says(deep, place):
    """Two images of one class alone would have another range."""
    draw(place / "others", seed=1)
    found = tlkeras.evaluate_on(deep, str(place / "others"))
    assert found.tasks["label"].metrics["accuracy"].value > 0.9


@pytest.mark.slow
def test_a_network_is_fine_tuned_on_the_scaled_pixels(place):
    stages = ({"name": "whole", "unfreeze": "all", "epochs": 1},)
    for cache in ("auto", "off"):
        run = tlkeras.train("mine.yaml", set={"finetuning.stages": stages, "finetuning.cache": cache})
        assert run.manifest["image"]["depth_range"] == [0, 4095]
