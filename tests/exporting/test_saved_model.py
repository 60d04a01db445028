"""The export: right layout, right answers, nothing half-written, nothing overwritten."""

import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

import tlkeras
from tlkeras.data.decoding import decode_file
from tlkeras.errors import ExportError, ResourceError, RunError


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    return tlkeras.export(str(trained), tmp_path_factory.mktemp("models") / "photos")


def sample_paths(run):
    samples = json.loads((run / "samples.json").read_text())
    return [(run / sample["file"], sample["probabilities"]) for sample in samples]


def test_layout_is_what_tensorflow_serving_loads(exported):
    folder = tf.io.gfile.listdir(exported["path"])
    assert {"saved_model.pb", "variables"} <= {name.rstrip("/") for name in folder}
    assert exported["version"] == 1
    assert exported["difference"] < 1e-3
    assert exported["pictures"] == 8


def test_bytes_signature_answers_as_the_run_did(trained, exported):
    served = tf.saved_model.load(exported["path"]).signatures["serving_default"]
    files, expected = zip(*sample_paths(trained), strict=True)
    answer = served(image_bytes=tf.constant([file.read_bytes() for file in files]))
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-4)
    index = np.argmax(expected, axis=1)
    assert answer["class_index"].numpy().tolist() == index.tolist()
    assert answer["label"].numpy().tolist() == [[b"day", b"night"][i] for i in index]


def test_pixel_signature_answers_the_same(trained, exported):
    served = tf.saved_model.load(exported["path"]).signatures["uint8"]
    files, expected = zip(*sample_paths(trained), strict=True)
    pictures = np.stack([decode_file(str(file), 32, "squash") for file in files])
    np.testing.assert_allclose(served(images=pictures)["probabilities"], expected, atol=1e-4)


def test_the_servers_own_loader_reads_it(trained, exported):
    """TensorFlow 1's loader and Session are the C++ path of TensorFlow Serving."""
    (file, expected), *_ = sample_paths(trained)
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        meta = tf.compat.v1.saved_model.loader.load(session, ["serve"], exported["path"])
        signature = meta.signature_def["serving_default"]
        assert signature.method_name == "tensorflow/serving/predict"
        outputs = {name: tensor.name for name, tensor in signature.outputs.items()}
        answer = session.run(outputs, {signature.inputs["image_bytes"].name: [file.read_bytes()]})
    assert set(answer) == {"probabilities", "class_index", "label"}
    np.testing.assert_allclose(answer["probabilities"][0], expected, atol=1e-4)


def test_versions_go_up_and_others_are_left_alone(trained, tmp_path):
    target = tmp_path / "photos"
    (target / "7").mkdir(parents=True)
    (target / "notes").mkdir()
    assert tlkeras.export(str(trained), target)["version"] == 8
    assert sorted(path.name for path in target.iterdir()) == ["7", "8", "notes"]
    assert not list((target / "7").iterdir())


def test_disagreement_is_not_published(trained, tmp_path):
    run = tmp_path / "run-01"
    shutil.copytree(trained, run)
    samples = json.loads((run / "samples.json").read_text())
    samples[3]["probabilities"] = [0.5, 0.5]
    (run / "samples.json").write_text(json.dumps(samples))
    with pytest.raises(ExportError, match=f"must answer as its run did.*{samples[3]['key']}.*Nothing was published"):
        tlkeras.export(str(run), tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


def test_target_that_is_a_file(trained, tmp_path):
    (tmp_path / "models").write_text("mine")
    with pytest.raises(ResourceError, match="must be a writable folder"):
        tlkeras.export(str(trained), tmp_path / "models")
    assert (tmp_path / "models").read_text() == "mine"


def test_full_disk_leaves_nothing(trained, tmp_path, monkeypatch):
    from tlkeras.exporting import saved_model

    def fail(folder):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(saved_model, "_sync", fail)
    with pytest.raises(ResourceError, match="No space left on device. Nothing there was changed"):
        tlkeras.export(str(trained), tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


def test_run_without_a_model(trained, tmp_path):
    run = tmp_path / "run-01"
    shutil.copytree(trained, run)
    (run / "model.keras").write_bytes((run / "model.keras").read_bytes()[:1000])
    with pytest.raises(RunError, match="must hold a readable model.keras"):
        tlkeras.export(str(run), tmp_path / "models")
