"""Curves for TensorBoard: what is in the file, and that a resumed training repeats and loses nothing."""

import keras
import pytest
import tensorflow as tf

import tlkeras
from tlkeras.finetuning.callbacks import TensorBoardLogger
from tlkeras.finetuning.stage_runner import StageRunner

ROWS = [{"loss": 0.5, "stage": 1, "val_accuracy": 1.0}, {"loss": 0.25, "stage": 2, "val_accuracy": 0.5}]
RECIPE = """
name: staged
data: {source: sklearn-digits, validation: 0.2, limit: 120}
backbone: {name: tiny, weights: none, size: 32}
head: {kind: linear, C: 0.01}
finetuning:
  tensorboard: true
  stages: [{name: head, unfreeze: 0, epochs: 2}, {name: top, unfreeze: 1 block, epochs: 1}]
evaluation: {bootstrap_samples: 100}
"""


def write(folder, rows, history=()):
    """A log as the trainer lets it be written."""
    params = {"stages": ["head", "top"], "history": list(history)}
    callbacks = keras.callbacks.CallbackList([TensorBoardLogger(folder)], **params)
    callbacks.on_train_begin()
    for epoch, logs in enumerate(rows, len(history)):
        callbacks.on_epoch_end(epoch, logs)
    callbacks.on_train_end()


def read(folder):
    """The values in a folder's files, as TensorFlow reads them: tag, step, value."""
    found = []
    for file in sorted(folder.iterdir()):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                content = tf.make_ndarray(value.tensor).item()
                found.append((value.tag, event.step, content.decode() if isinstance(content, bytes) else content))
    return found


def test_every_column_becomes_a_curve_or_a_text(tmp_path):
    write(tmp_path / "log", ROWS)
    found = read(tmp_path / "log")
    assert [value for value in found if value[0] != "val_accuracy"] == [
        ("loss", 1, 0.5),
        ("stage", 1, "head"),
        ("loss", 2, 0.25),
        ("stage", 2, "top"),
    ]
    assert [step for tag, step, _ in found if tag == "val_accuracy"] == [1, 2]


def test_a_log_begins_empty_and_leaves_other_files_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    write(tmp_path, ROWS)
    write(tmp_path, ROWS[:1])
    assert (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / "notes.txt").unlink()
    assert {step for _, step, _ in read(tmp_path)} == {1}


def test_a_resumed_log_repeats_the_epochs_before(tmp_path):
    write(tmp_path / "whole", ROWS)
    write(tmp_path / "resumed", ROWS[1:], history=ROWS[:1])
    assert read(tmp_path / "resumed") == read(tmp_path / "whole")


def test_tensorboard_reads_it(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    write(tmp_path, ROWS)
    events = reader.EventAccumulator(str(tmp_path)).Reload()
    plugins = {tag: events.SummaryMetadata(tag).plugin_data.plugin_name for tag in events.Tags()["tensors"]}
    assert plugins == {"stage": "text", "loss": "scalars", "val_accuracy": "scalars"}
    assert [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in events.Tensors("loss")] == [
        (1, 0.5),
        (2, 0.25),
    ]


@pytest.mark.slow
def test_a_resumed_run_shows_every_epoch_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TLKERAS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "staged.yaml").write_text(RECIPE)
    train, left = StageRunner.train, [3]

    def interrupt(self, *batch):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return train(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(StageRunner, "train", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tlkeras.train(str(tmp_path / "staged.yaml"), runs=tmp_path / "runs")
    (folder,) = (tmp_path / "runs").glob("*/tensorboard")
    assert [step for tag, step, _ in read(folder) if tag == "loss"] == [1]
    tlkeras.resume(runs=tmp_path / "runs")
    found = read(folder)
    assert [step for tag, step, _ in found if tag == "val_loss"] == [1, 2, 3]
    assert [value for tag, _, value in found if tag == "stage"] == ["head", "head", "top"]
    assert {tag for tag, _, _ in found} >= {"loss", "learning_rate", "val_accuracy", "val_roc_auc"}
