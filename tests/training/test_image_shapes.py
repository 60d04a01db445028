"""Images that are not square: one size from the recipe to the exported formats."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tlkeras
from tlkeras.backbones.builder import build_backbone
from tlkeras.errors import TlkerasError
from tlkeras.evaluation.attribution import METHODS, Explainer
from tlkeras.exporting.signatures import LoadedSavedModel
from tlkeras.exporting.versions import CARD
from tlkeras.inference.predict import load_model
from tlkeras.serving.handlers import GRID, occlude

RECIPE = """\
data: {source: photos, test: 0.25, split_tolerance: 0}
backbone: {name: tiny, weights: none, size: [24, 40]}
augmentation: {policy: dihedral, test_time: true}
evaluation: {bootstrap_samples: 100}
"""
STAGES = ({"name": "end", "unfreeze": 1, "epochs": 1}, {"name": "whole", "unfreeze": "all", "epochs": 1})


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with the recipe, and images of the size that the network takes."""
    folder, random = tmp_path_factory.mktemp("wide"), np.random.default_rng(0)
    for label, low in (("day", 120), ("night", 0)):
        (folder / "photos" / label).mkdir(parents=True)
        for number in range(16):
            least = low if number % 4 else 120 - low  # some have the wrong label, so that there are mistakes to show
            pixels = random.integers(least, least + 130, (24, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / label / f"{number:03d}.png")
    (folder / "mine.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(autouse=True)
def _there(place, monkeypatch):
    monkeypatch.chdir(place)


@pytest.fixture(scope="module")
def wide(place):
    before = os.getcwd()
    os.chdir(place)
    try:
        return tlkeras.train("mine.yaml")
    finally:
        os.chdir(before)


def read_pixels(paths: list[Path]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in paths])


def test_what_is_predicted_is_the_networks_own_answer_averaged_over_four_views(wide, place):
    """Views turned by a quarter do not exist; the pixels are those of the files, neither turned nor scaled."""
    model, paths = load_model(wide), sorted((place / "photos" / "day").iterdir())[:3]
    pixels = read_pixels(paths)
    assert model.input_shape == (None, 24, 40, 3) and wide.manifest["image"]["size"] == [24, 40]
    predicted = tlkeras.predict(wide, [str(path) for path in paths])
    found = [{one.label: one.probability for one in image.top}["day"] for image in predicted.predictions]
    np.testing.assert_allclose(found, np.asarray(model(pixels))[:, 0], atol=1e-6)
    for turned in (pixels[:, ::-1], pixels[:, :, ::-1], pixels[:, ::-1, ::-1]):
        np.testing.assert_allclose(model(turned), model(pixels), atol=1e-5)


def test_check_and_the_shown_views_say_the_size(wide):
    assert tlkeras.check("mine.yaml").facts["backbone"] == "tiny at 24 x 40 px, weights none"
    shown = tlkeras.show_augmentation("mine.yaml", to="views.png")
    assert shown.operations == ("one of 4 orientations",) and shown.shown == 4
    assert tlkeras.show_backbone("tiny", size=(24, 40)).size == (24, 40)


@pytest.mark.slow
def test_exported_formats_read_files_and_agree(wide, place):
    done = tlkeras.export(wide, place / "models", formats=("litert-float32", "openvino"))
    assert done.image.size == (24, 40) and max(row.difference for row in done.parity) < 1e-4
    assert json.loads((Path(done.path) / "tlkeras.json").read_text())["image"]["size"] == [24, 40]
    assert "takes 24 x 40 px images" in (Path(done.path) / CARD).read_text()
    path = place / "photos" / "day" / "000.png"
    expected = np.asarray(load_model(wide)(read_pixels([path])))
    with LoadedSavedModel(Path(done.path)) as loaded:
        outputs = loaded.run("serving_default", image_bytes=np.array([path.read_bytes()], dtype=object))
    np.testing.assert_allclose(outputs["probabilities"], expected, atol=1e-5)


@pytest.mark.parametrize("method", [METHODS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in METHODS[1:])])
def test_attribution_maps_have_the_shape_of_the_image(wide, place, method):
    pixels = read_pixels(sorted((place / "photos" / "night").iterdir())[:2])
    assert Explainer(load_model(wide)).explain(pixels, [0, 1], method).shape == (2, 24, 40)


def test_parts_are_covered_in_the_shape_of_the_image():
    image = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    changed = (occlude(image) != image).any(axis=3)
    assert changed.shape == (GRID * GRID, 24, 40) and changed.any(axis=0).all()
    assert (changed.mean(axis=(1, 2)) <= 0.25**2 + 1e-9).all()
    # centres of the first cell: row 1 and column 2, covered 3 and 5 to each side
    assert not changed[0, 4:].any() and not changed[0, :, 7:].any()


@pytest.mark.slow
def test_the_report_and_evaluation_show_them(wide):
    assert tlkeras.evaluate(wide).tasks["label"].images == 8
    report = tlkeras.report([wide])
    assert not report.notes and "Grad-CAM" in Path(report.path).read_text(), report


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cached", "pipeline", "graph"])
def test_a_network_is_fine_tuned_on_them(place, device):
    own = ({"flip": "both"}, {"turn": 1}, {"rotate": 20}, {"crop": 0.7}, {"erase": 0.3})
    drawn = {"finetuning.cache": "off", "augmentation.device": device, "augmentation.policy": own}
    options = {"augmentation.views": 4} if device == "cached" else {**drawn, "augmentation.test_time": False}
    mixed = {"augmentation.mixup": 0.2, "augmentation.cutmix": 1.0}
    run = tlkeras.train("mine.yaml", set={"finetuning.stages": STAGES, **mixed, **options})
    assert load_model(run).input_shape == (None, 24, 40, 3)
    assert run.manifest["image"]["size"] == [24, 40]


@pytest.mark.slow
def test_handcrafted_features_of_them(place):
    kinds = [{"kind": "hog", "cell": 8}, {"kind": "lbp"}, {"kind": "colour"}]
    kinds += [{"kind": "sift", "words": 4, "components": 8, "sizes": (4,)}]
    alone = {"backbone.name": "none", "augmentation.test_time": False, "features.handcrafted": tuple(kinds)}
    assert load_model(tlkeras.train("mine.yaml", set=alone)).input_shape == (None, 24, 40, 3)
    with pytest.raises(TlkerasError, match=r"Images of 24 x 40 px are too small .*\n  hog needs 32 px"):
        tlkeras.train("mine.yaml", set={**alone, "features.handcrafted": ({"kind": "hog", "cell": 16},)})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["recurrent", "attention", "transformer"])
def test_heads_on_maps_take_them(place, kind):
    plain = {"augmentation.test_time": False, "head.kind": kind, "training.epochs": 1}
    assert load_model(tlkeras.train("mine.yaml", set=plain)).input_shape == (None, 24, 40, 3)


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("tiny", (4, 40), r"at least 8 x 8 pixels. Received: size=4 x 40. Its own size is 32"),
        ("inception_v3", (299, 64), r"at least 75 x 75 pixels. Received: size=299 x 64. Its own size is 299"),
    ],
)
def test_sizes_that_a_backbone_cannot_take_are_refused(name, size, expected):
    with pytest.raises(TlkerasError, match=expected):
        build_backbone(name, size=size, weights="none")


def test_the_client_page_knows_the_size(wide, place):
    """What `/explain` sends: the page draws the heat where the model looked."""
    page = (Path(tlkeras.__file__).parent / "serving" / "page.html").read_text()
    assert "result.resize, result.size" in page


@pytest.mark.slow
def test_a_search_compares_shapes(place):
    space = {"backbone.size": ("24x40", (40, 24), 32)}
    found = tlkeras.tune("mine.yaml", {"tuning.space": space, "data.validation": 0.25, "tuning.max_trials": 3})
    assert {str(trial.values["backbone.size"]) for trial in found.trials} <= {"24x40", "[40, 24]", "(40, 24)", "32"}
