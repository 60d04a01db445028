"""Other forms of a model: the same answers, through their own runtimes; what may not be published is not."""

import importlib.util
import shutil

import numpy as np
import pytest

import tlkeras
from tlkeras.backbones.blocks import find_cuts
from tlkeras.backbones.test_time_augmentation import add_test_time_augmentation
from tlkeras.errors import ExportError, MissingExtraError, TlkerasError
from tlkeras.exporting import formats, saved_model
from tlkeras.exporting.held_out import read_training
from tlkeras.exporting.inference_graph import make_network
from tlkeras.exporting.parity import measure_size
from tlkeras.exporting.signatures import Preprocessing
from tlkeras.runs.directory import Run


@pytest.fixture(scope="module")
def source(trained):
    return saved_model._read_source(Run(trained))


QUICK = ("litert-int8", "openvino", "onnx")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in formats.FORMATS]
)
def test_a_form_answers_as_the_model_does(source, tmp_path, name):
    check_form(name, source.model, source, tmp_path)


@pytest.mark.parametrize(
    "name", [name if name == "openvino" else pytest.param(name, marks=pytest.mark.slow) for name in formats.FORMATS]
)
def test_a_form_looks_at_all_orientations_if_the_model_does(source, tmp_path, name):
    last = [cut.name for cut in find_cuts(source.model) if len(cut.shape) == 3][-1]
    check_form(name, add_test_time_augmentation(source.model, last, 8), source, tmp_path)


def test_the_saved_model_of_all_orientations_is_folded(source):
    last = [cut.name for cut in find_cuts(source.model) if len(cut.shape) == 3][-1]
    images = saved_model._take_images(source, 8)[1]
    made = make_network(add_test_time_augmentation(source.model, last, 8), source.tasks, images)
    assert made.is_fast and made.has_features, made.note


def check_form(name, model, source, tmp_path):
    form = formats.FORMATS[name]
    if form.extra and importlib.util.find_spec(form.extra[1]) is None:
        pytest.skip(f"needs the extra {form.extra[0]}")
    images = saved_model._take_images(source, 8)[1]
    material = formats.ConversionInputs(model, source.tasks, images)
    path = tmp_path / form.file
    path.parent.mkdir()
    form.write(material, path)
    (answer,) = form.open(path, material.outputs)([], images)
    expected = np.asarray(model(images, training=False))
    assert np.abs(answer - expected).max() <= (form.tolerance or 0.05)
    assert measure_size(path) > 0


@pytest.mark.slow
def test_forms_are_published_with_the_version(trained, tmp_path):
    result = tlkeras.export(str(trained), tmp_path / "models", formats=["litert-int8", "openvino"])
    assert [row["form"] for row in result["parity"]][2:] == ["litert-int8", "openvino"]
    assert (tmp_path / "models/1/litert/int8.tflite").is_file()
    assert (tmp_path / "models/1/openvino/model.bin").is_file()
    assert "| litert-int8 |" in (tmp_path / "models/1/MODEL_CARD.md").read_text()


def test_a_form_that_answers_otherwise_is_not_published(trained, exported, source, tmp_path, monkeypatch):
    fast = saved_model.InferenceModel(lambda images: [], None, True)
    monkeypatch.setattr(saved_model, "make_network", lambda *_: fast)
    monkeypatch.setattr(saved_model, "_read_source", lambda *_: source)
    monkeypatch.setattr(
        saved_model, "write_signatures", lambda network, tasks, entry, path: shutil.copytree(exported["path"], path)
    )
    wrong = formats.ExportFormat("wrong/x", lambda material, path: path.write_text("x"), lambda *_: _answer_nonsense)
    monkeypatch.setattr(formats, "FORMATS", {"wrong": wrong})
    monkeypatch.setattr(saved_model, "FORMATS", {"wrong": wrong})
    with pytest.raises(
        ExportError, match=r"nothing was published:\n  wrong, 'label': .* of accuracy is lost, more than"
    ):
        tlkeras.export(str(trained), tmp_path / "models", formats=["wrong"])
    assert list((tmp_path / "models").iterdir()) == []


def _answer_nonsense(encoded, images):
    return [np.tile(np.float32([[1, 0]]), (len(images), 1))]


def test_forms_that_are_none_or_not_installed(trained, tmp_path, monkeypatch):
    with pytest.raises(TlkerasError, match="Did you mean 'litert-int8'"):
        tlkeras.export(str(trained), tmp_path / "models", formats=["litert_int8"])
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "tlkeras\[onnx\]"'):
        tlkeras.export(str(trained), tmp_path / "models", formats=["onnx"])
    assert not (tmp_path / "models").exists()


def test_calibration_is_of_the_training_split(trained):
    images = read_training(Run(trained), Preprocessing(32, "stretch"), 10)
    assert images.shape == (10, 32, 32, 3) and images.dtype == np.uint8
