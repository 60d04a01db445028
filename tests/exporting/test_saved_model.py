"""The export: right layout, right predictions, nothing half-written, nothing overwritten."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import tlkeras
from tlkeras.data.decoding import decode_file
from tlkeras.errors import ExportError, ResourceError, RunError
from tlkeras.exporting import inference_graph, saved_model
from tlkeras.exporting.signatures import LoadedSavedModel
from tlkeras.runs.directory import Run


@pytest.fixture(scope="module")
def inputs(trained):
    return saved_model._read_inputs(Run(trained))


@pytest.fixture(scope="module")
def loaded(exported):
    with LoadedSavedModel(Path(exported.path)) as opened:
        yield opened


@pytest.fixture
def quick(monkeypatch, exported, inputs, loaded):
    """Model and signatures are taken from an earlier export: only the steps around them are tested."""

    def copy(model, tasks, preprocessing, path):
        shutil.copytree(exported.path, path)

    fast = inference_graph.InferenceModel(lambda images: [], None, True)
    monkeypatch.setattr(saved_model, "write_signatures", copy)
    monkeypatch.setattr(saved_model, "make_inference_model", lambda *_: fast)
    monkeypatch.setattr(saved_model, "load_model", lambda run: inputs.model)
    monkeypatch.setattr(saved_model, "LoadedSavedModel", lambda path: nullcontext(loaded))


def sample_paths(run):
    samples = json.loads((run / "samples.json").read_text())
    return [(run / sample["file"], sample["probabilities"]) for sample in samples]


def test_layout_is_what_tensorflow_serving_loads(exported):
    folder = tf.io.gfile.listdir(exported.path)
    assert {"saved_model.pb", "variables", "batching_params.pbtxt"} <= {name.rstrip("/") for name in folder}
    assert exported.version == 1
    assert exported.difference < 1e-3
    assert exported.images == 8
    assert exported.signatures == ["classify", "features", "serving_default", "uint8"]
    assert exported.fast and not exported.notes
    model, converted = exported.parity
    assert (model.form, converted.form) == ("Keras model of the run", "SavedModel")
    assert converted.difference < 1e-5 and converted.agreement == 1.0
    assert converted.accuracy == model.accuracy


def test_bytes_signature_predicts_as_the_run_did(trained, exported):
    loaded = tf.saved_model.load(exported.path).signatures["serving_default"]
    files, expected = zip(*sample_paths(trained), strict=True)
    outputs = loaded(image_bytes=tf.constant([file.read_bytes() for file in files]))
    np.testing.assert_allclose(outputs["probabilities"], expected, atol=1e-4)
    index = np.argmax(expected, axis=1)
    assert outputs["class_index"].numpy().tolist() == index.tolist()
    assert outputs["label"].numpy().tolist() == [[b"day", b"night"][i] for i in index]


def test_pixel_signature_predicts_the_same(trained, exported):
    loaded = tf.saved_model.load(exported.path).signatures["uint8"]
    files, expected = zip(*sample_paths(trained), strict=True)
    images = np.stack([decode_file(str(file), 32, "stretch") for file in files])
    np.testing.assert_allclose(loaded(images=images)["probabilities"], expected, atol=1e-4)


def test_the_servers_own_loader_reads_it(trained, exported):
    """TensorFlow 1's loader and Session are the C++ path of TensorFlow Serving."""
    (file, expected), *_ = sample_paths(trained)
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        meta = tf.compat.v1.saved_model.loader.load(session, ["serve"], exported.path)
        signature = meta.signature_def["serving_default"]
        assert signature.method_name == "tensorflow/serving/predict"
        outputs = {name: tensor.name for name, tensor in signature.outputs.items()}
        outputs = session.run(outputs, {signature.inputs["image_bytes"].name: [file.read_bytes()]})
    assert set(outputs) == {"probabilities", "class_index", "label"}
    np.testing.assert_allclose(outputs["probabilities"][0], expected, atol=1e-4)


def test_all_signatures_predict_alike_at_every_batch_size(trained, loaded):
    files, expected = zip(*sample_paths(trained), strict=True)
    encoded = np.array([file.read_bytes() for file in files], dtype=object)
    for count in (0, 1, 3, 8):
        rows = np.arange(count)
        outputs = loaded.run("serving_default", image_bytes=encoded[rows])
        np.testing.assert_allclose(outputs["probabilities"], np.reshape(expected, (-1, 2))[rows], atol=1e-4)
        assert loaded.run("features", image_bytes=encoded[rows])["features"].shape[0] == count
    ranked = loaded.run("classify", inputs=[make_example(data) for data in encoded])
    assert loaded.signatures["classify"].method == "tensorflow/serving/classify"
    np.testing.assert_allclose(ranked["scores"], -np.sort(-np.array(expected), axis=1), atol=1e-4)
    names = np.array([b"day", b"night"])
    assert ranked["classes"].tolist() == names[np.argsort(-np.array(expected), axis=1)].tolist()


def make_example(data):
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[data]))
    return tf.train.Example(features=tf.train.Features(feature={"image/encoded": feature})).SerializeToString()


def test_nothing_is_left_to_load_but_constants(exported):
    """Batch norm folded, variables frozen: no table, no variable, nothing for a strict server to stumble on."""
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel.FromString((Path(exported.path) / "saved_model.pb").read_bytes())
    graph = model.meta_graphs[0].graph_def
    used = {node.op for function in graph.library.function for node in function.node_def}
    assert not {op for op in used if "VarHandle" in op or "ReadVariable" in op or "HashTable" in op}
    assert "Rsqrt" not in used and "Conv2D" in used


def test_warmup_is_what_a_server_can_replay(exported):
    from tensorflow_serving.apis import prediction_log_pb2

    file = Path(exported.path) / "assets.extra/tf_serving_warmup_requests"
    logs = [
        prediction_log_pb2.PredictionLog.FromString(record)
        for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator()
    ]
    requests = [(log.classify_log.request if log.HasField("classify_log") else log.predict_log.request) for log in logs]
    assert len(logs) == exported.warmup
    assert sorted({request.model_spec.signature_name for request in requests}) == exported.signatures
    assert {request.model_spec.name for request in requests} == {"photos"}


def test_configuration_parses_with_the_servers_own_proto(exported):
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    target = Path(exported.path).parent
    config = text_format.Parse((target / "models.config").read_text(), model_server_config_pb2.ModelServerConfig())
    (model,) = config.model_config_list.config
    assert (model.name, model.base_path, model.model_platform) == ("photos", "/models/photos", "tensorflow")
    assert f"source={target}" in exported.docker and "--model_config_file" in exported.docker


def test_card_has_origin_and_metrics(exported):
    card = (Path(exported.path) / "MODEL_CARD.md").read_text()
    for text in ("## Metrics", "95 % interval", "| SavedModel |", "## Limits", "## Licences", "name: tiny", "- keras "):
        assert text in card, text
    assert json.loads((Path(exported.path) / "labels.json").read_text()) == {"label": ["day", "night"]}


def test_report_is_part_of_the_result(exported):
    report = json.loads((Path(exported.path) / "tlkeras.json").read_text())
    result = exported.to_dict()
    assert report == {"name": "photos", **{key: result[key] for key in list(report)[1:]}}
    assert set(result) - set(report) == {"path", "version", "warmup", "docker"}
    assert report["image"] == {
        "size": 32,
        "resize": "stretch",
        "background": "white",
        "max_pixels": 64_000_000,
        "depth_range": None,
    }
    assert set(report["parity"][1]["accuracy"]) == {"value", "low", "high"}


@pytest.mark.slow
def test_saved_model_cli_reads_and_runs_it(trained, exported):
    cli = [str(Path(sys.executable).with_name("saved_model_cli"))]
    if not Path(cli[0]).exists():
        cli = [sys.executable, "-c", "from tensorflow.python.tools.saved_model_cli import main; main()"]

    def call(verb, *options):
        done = subprocess.run(
            [*cli, verb, "--dir", exported.path, *options], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = call("show", "--all")
    assert "signature_def['features']" in shown and "tensorflow/serving/classify" in shown
    assert re.search("does not contain .*denylisted ops", call("scan"))  # newer versions name them
    file, _ = sample_paths(trained)[0]
    example = [{"image/encoded": [file.read_bytes()]}]
    literal = repr(example).replace(";", r"\x3b")  # the tool takes a semicolon for the end of an input
    options = ["--tag_set", "serve", "--signature_def", "classify", "--input_examples", f"inputs={literal}"]
    assert "scores" in call("run", *options)


def test_versions_go_up_and_others_are_left_alone(trained, tmp_path, quick):
    target = tmp_path / "photos"
    (target / "7").mkdir(parents=True)
    (target / "7/saved_model.pb").write_bytes(b"another's")
    assert tlkeras.export(str(trained), target).version == 8
    (target / "notes").mkdir()
    shutil.rmtree(target / "8")
    assert tlkeras.export(str(trained), target).version == 9, "a number that was served is never used again"
    assert sorted(path.name for path in target.iterdir() if path.name[0] != ".") == [
        "7",
        "9",
        "models.config",
        "notes",
        "versions.json",
    ]
    assert (target / "7/saved_model.pb").read_bytes() == b"another's"


def test_a_folder_of_something_else_is_refused(trained, tmp_path):
    (tmp_path / "photos/7").mkdir(parents=True)
    (tmp_path / "photos/cat.jpg").write_bytes(b"mine")
    with pytest.raises(ExportError, match=r"already contains other files \(7, cat.jpg\).*--to"):
        tlkeras.export(str(trained), tmp_path / "photos")
    assert sorted(path.name for path in (tmp_path / "photos").iterdir()) == ["7", "cat.jpg"]


def test_acceptance_criteria_refuse_to_publish(trained, tmp_path, quick):
    with pytest.raises(
        ExportError, match=r"misses its acceptance criteria.*\n.*SavedModel, 'label': an accuracy of .* below 1.1"
    ):
        tlkeras.export(str(trained), tmp_path / "models", min_accuracy=1.1)
    with pytest.raises(ExportError, match=r"of accuracy is lost, more than -0.1"):
        tlkeras.export(str(trained), tmp_path / "models", max_drop=-0.1)
    assert not [path for path in (tmp_path / "models").iterdir() if path.name[0] != "."]


def test_disagreement_is_not_published(trained, tmp_path, quick):
    run = tmp_path / "run-01"
    shutil.copytree(trained, run)
    samples = json.loads((run / "samples.json").read_text())
    samples[3]["probabilities"] = [0.5, 0.5]
    (run / "samples.json").write_text(json.dumps(samples))
    with pytest.raises(
        ExportError, match=f"predictions differ from the run's.*{samples[3]['key']}.*Nothing was published"
    ):
        tlkeras.export(str(run), tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


def test_target_that_is_a_file(trained, tmp_path):
    (tmp_path / "models").write_text("mine")
    with pytest.raises(ResourceError, match="Cannot write to .*models: it is a file"):
        tlkeras.export(str(trained), tmp_path / "models")
    assert (tmp_path / "models").read_text() == "mine"


WRITES = {
    "signatures": "tlkeras.exporting.saved_model.write_signatures",
    "warm-up": "tlkeras.exporting.saved_model.write_warmup",
    "labels": "tlkeras.exporting.versions.write_labels",
    "batching": "tlkeras.exporting.versions.write_batching",
    "card": "tlkeras.exporting.versions.write_card",
    "sync": "tlkeras.exporting.versions.sync",
    "ledger": "tlkeras.exporting.versions.atomic_write",
    "rename": "os.rename",
}


@pytest.mark.parametrize("write", WRITES)
def test_full_disk_leaves_nothing(trained, tmp_path, monkeypatch, quick, write):
    def fail(*_, **__):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(WRITES[write], fail)
    with pytest.raises(ResourceError, match="No space left on device. Nothing there was changed"):
        tlkeras.export(str(trained), tmp_path / "models")
    assert not [path for path in (tmp_path / "models").iterdir() if path.name not in (".lock", "versions.json")]


def test_tensorflows_own_full_disk_is_reported_alike(trained, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "write: No space left on device")

    monkeypatch.setattr(saved_model, "write_signatures", fail)
    with pytest.raises(ResourceError, match="No space left on device. Nothing there was changed"):
        tlkeras.export(str(trained), tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_rights(trained, tmp_path, quick):
    (tmp_path / "models").mkdir(mode=0o500)
    with pytest.raises(ResourceError, match="Permission denied"):
        tlkeras.export(str(trained), tmp_path / "models")


def test_a_damaged_ledger_is_reported_and_kept(trained, tmp_path, quick):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/versions.json").write_text("{")
    with pytest.raises(ExportError, match="versions.json is damaged"):
        tlkeras.export(str(trained), tmp_path / "models")
    assert (tmp_path / "models/versions.json").read_text() == "{"


def test_without_the_source_the_samples_prove_it(trained, tmp_path, quick):
    run = tmp_path / "run-01"
    shutil.copytree(trained, run)
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("source: photos", "source: gone"))
    result = tlkeras.export(str(run), tmp_path / "models")
    assert "source of the images is gone" in result.notes[0]
    assert result.images == 8


def fold_wrongly(model):
    return lambda images: [0.9 * output for output in model(images)]


def test_a_network_that_folds_wrongly_is_not_taken(inputs, monkeypatch):
    monkeypatch.setattr(inference_graph, "fold_batch_norm", fold_wrongly)
    made = inference_graph.make_inference_model(inputs.model, inputs.tasks, inputs.held_out.first(8)[1])
    assert not made.is_fast
    assert "Exported as it is: the folded network differs by" in made.note


def test_a_model_that_cannot_be_folded_is_not_either(inputs, monkeypatch):
    monkeypatch.setattr(inference_graph, "freeze", lambda whole: 1 / 0)
    made = inference_graph.make_inference_model(inputs.model, inputs.tasks, inputs.held_out.first(8)[1])
    assert not made.is_fast
    assert "not folded: ZeroDivisionError" in made.note


@pytest.mark.slow
def test_the_plain_network_is_exported_with_its_variables(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(inference_graph, "fold_batch_norm", fold_wrongly)
    result = tlkeras.export(str(trained), tmp_path / "models")
    assert not result.fast and result.notes
    assert result.parity[1].difference < 1e-5


def test_run_without_a_model(trained, tmp_path):
    run = tmp_path / "run-01"
    shutil.copytree(trained, run)
    (run / "model.keras").write_bytes((run / "model.keras").read_bytes()[:1000])
    with pytest.raises(RunError, match="Cannot read the model"):
        tlkeras.export(str(run), tmp_path / "models")
    (run / "model.keras").unlink()
    with pytest.raises(RunError, match="has no model to predict with or to export.*cannot become a network"):
        tlkeras.export(str(run), tmp_path / "models")


@pytest.mark.slow
def test_packed_images_that_are_made_png_are_compared(workplace):
    """Of what was packed the export reads the slices, as PNG where the graph does not read the format."""
    for at, path in enumerate(sorted((workplace / "photos").rglob("*.png"))):
        Image.open(path).save(path.with_suffix((".tif", ".png", ".ppm", ".webp")[at % 4]))
        if at % 4 != 1:
            path.unlink()
    tlkeras.pack("photos", "packed")
    shutil.rmtree(workplace / "photos")
    run = tlkeras.train("mine.yaml", set={"data.source": "packed/images.csv"})
    exported = tlkeras.export(run, workplace / "models/photos")
    assert exported.images == len(run.read_arrays("predictions.npz")["weights"]) == 8
    assert exported.difference < 1e-3 and not [note for note in exported.notes if "gone" in note]
    (read,) = list(Path("packed/shards").iterdir())
    assert b"II*\0" in read.read_bytes()  # the files as they were
