"""Other formats of a model: the same predictions, through their own runtimes; what may not be published is not."""

import importlib.util
import shutil

import numpy as np
import pytest

import tlkeras
from tlkeras.backbones.blocks import find_cuts
from tlkeras.backbones.test_time_augmentation import add_test_time_augmentation
from tlkeras.errors import ExportError, MissingExtraError, TlkerasError
from tlkeras.exporting import formats, saved_model
from tlkeras.exporting.inference_graph import InferenceModel, make_inference_model
from tlkeras.exporting.parity import measure_size, read_training_images
from tlkeras.exporting.signatures import Preprocessing
from tlkeras.runs.directory import Run


@pytest.fixture(scope="module")
def inputs(trained):
    return saved_model._read_inputs(Run(trained))


QUICK = ("litert-int8", "openvino", "onnx")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in formats.FORMATS]
)
def test_predictions_are_the_models(inputs, tmp_path, name):
    check_format(name, inputs.model, inputs, tmp_path)


@pytest.mark.parametrize(
    "name", [name if name == "openvino" else pytest.param(name, marks=pytest.mark.slow) for name in formats.FORMATS]
)
def test_all_orientations_are_averaged_if_the_model_does(inputs, tmp_path, name):
    last = [cut.name for cut in find_cuts(inputs.model) if len(cut.shape) == 3][-1]
    check_format(name, add_test_time_augmentation(inputs.model, last, 8), inputs, tmp_path)


def test_the_saved_model_of_all_orientations_is_folded(inputs):
    last = [cut.name for cut in find_cuts(inputs.model) if len(cut.shape) == 3][-1]
    images = inputs.held_out.first(8)[1]
    made = make_inference_model(add_test_time_augmentation(inputs.model, last, 8), inputs.tasks, images)
    assert made.is_fast and made.has_features, made.note


def check_format(name, model, inputs, tmp_path):
    chosen = formats.FORMATS[name]
    if chosen.extra and importlib.util.find_spec(chosen.extra[1]) is None:
        pytest.skip(f"needs the extra {chosen.extra[0]}")
    images = inputs.held_out.first(8)[1]
    conversion = formats.ConversionInputs(model, inputs.tasks, images)
    path = tmp_path / chosen.file
    path.parent.mkdir()
    chosen.write(conversion, path)
    (predicted,) = chosen.open(path, conversion.outputs)([], images)
    expected = np.asarray(model(images, training=False))
    assert np.abs(predicted - expected).max() <= (chosen.tolerance or 0.05)
    assert measure_size(path) > 0


@pytest.mark.slow
def test_formats_are_published_with_the_version(trained, tmp_path):
    result = tlkeras.export(str(trained), tmp_path / "models", formats=["litert-int8", "openvino"])
    assert [row.form for row in result.parity][2:] == ["litert-int8", "openvino"]
    assert (tmp_path / "models/1/litert/int8.tflite").is_file()
    assert (tmp_path / "models/1/openvino/model.bin").is_file()
    assert "| litert-int8 |" in (tmp_path / "models/1/MODEL_CARD.md").read_text()


def test_a_format_with_other_predictions_is_not_published(trained, exported, inputs, tmp_path, monkeypatch):
    fast = InferenceModel(lambda images: [], None, True)
    monkeypatch.setattr(saved_model, "make_inference_model", lambda *_: fast)
    monkeypatch.setattr(saved_model, "_read_inputs", lambda *_: inputs)
    monkeypatch.setattr(
        saved_model, "write_signatures", lambda model, tasks, preprocessing, path: shutil.copytree(exported.path, path)
    )
    wrong = formats.ExportFormat("wrong/x", lambda inputs, path: path.write_text("x"), lambda *_: _predict_nonsense)
    monkeypatch.setattr(formats, "FORMATS", {"wrong": wrong})
    monkeypatch.setattr(saved_model, "FORMATS", {"wrong": wrong})
    with pytest.raises(
        ExportError, match=r"nothing was published:\n  wrong, 'label': .* of accuracy is lost, more than"
    ):
        tlkeras.export(str(trained), tmp_path / "models", formats=["wrong"])
    assert list((tmp_path / "models").iterdir()) == []


def _predict_nonsense(encoded, images):
    return [np.tile(np.float32([[1, 0]]), (len(images), 1))]


def test_formats_that_are_unknown_or_not_installed(trained, tmp_path, monkeypatch):
    with pytest.raises(TlkerasError, match="Unknown format 'litert_int8'. Did you mean 'litert-int8'"):
        tlkeras.export(str(trained), tmp_path / "models", formats=["litert_int8"])
    with pytest.raises(TlkerasError, match="Unknown format 'tflite'. For TensorFlow Lite use litert-float32"):
        tlkeras.export(str(trained), tmp_path / "models", formats=["tflite"])
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "tlkeras\[onnx\]"'):
        tlkeras.export(str(trained), tmp_path / "models", formats=["onnx"])
    assert not (tmp_path / "models").exists()


def test_calibration_is_of_the_training_split(trained):
    images = read_training_images(Run(trained), Preprocessing(32, "stretch"), 10)
    assert images.shape == (10, 32, 32, 3) and images.dtype == np.uint8
