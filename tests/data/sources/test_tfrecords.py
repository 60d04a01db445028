"""Images in TFRecord files: the same bytes, order, splits and keys as in files of their own."""

import csv
import os
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

import tlkeras
from tlkeras.data.headers import ByteRange, ImageError, parse_slice, read_image
from tlkeras.data.pipeline import make_image_dataset, read_error
from tlkeras.data.sources.folders import read_table
from tlkeras.data.sources.manifests import SourceOptions
from tlkeras.data.sources.tfrecords import write_tfrecords
from tlkeras.data.tables import build_dataset
from tlkeras.errors import DataError, ResourceError


@pytest.fixture
def photos(tmp_path, draw_more_photos):
    """Class folders, an empty file and a PSD."""
    draw_more_photos(tmp_path / "photos")
    (tmp_path / "photos" / "day" / "empty.png").write_bytes(b"")
    (tmp_path / "photos" / "day" / "scan.psd").write_bytes(b"8BPS" + bytes(99))
    return tmp_path / "photos"


def test_packed_images_are_those_from_before(photos, tmp_path):
    table = read_table(str(photos))
    result = write_tfrecords(table, tmp_path / "packed", shard_bytes=20_000)
    assert result.images == len(table) - 1 and result.shards > 2
    assert [bad.code for bad in result.rejected] == ["unsupported", "empty"]
    assert all(set(bad) == {"path", "code", "reason"} for bad in result.to_dict()["rejected"])
    packed = read_table(result.path)
    kept = [row for row, key in enumerate(table.keys) if not key.endswith("empty.png")]
    assert packed.keys == [table.keys[row] for row in kept]
    assert packed.columns["label"] == [table.columns["label"][row] for row in kept]
    assert [read_image(path) for path in packed.paths] == [read_image(table.paths[row]) for row in kept]
    assert max(os.path.getsize(file) for file in (tmp_path / "packed" / "shards").iterdir()) <= 20_000
    streams = [
        make_image_dataset(paths, 32, "stretch", 5) for paths in (packed.paths, [table.paths[row] for row in kept])
    ]
    for (index, images), (other_index, others) in zip(*(s.as_numpy_iterator() for s in streams), strict=True):
        np.testing.assert_array_equal(index, other_index)
        np.testing.assert_array_equal(images, others)


def test_other_programs_read_the_records(photos, tmp_path):
    write_tfrecords(read_table(str(photos)), tmp_path / "packed")
    (record, *_) = tf.data.TFRecordDataset(str(tmp_path / "packed/shards/00000.tfrecord")).as_numpy_iterator()
    feature = tf.train.Example.FromString(record).features.feature
    texts = {name: feature[name].bytes_list.value[0] for name in ("image/filename", "label")}
    assert texts["label"] == b"day" and texts["image/filename"].startswith(b"day/")
    assert tf.io.decode_png(feature["image/encoded"].bytes_list.value[0]).shape == (32, 32, 3)


def test_default_roles_are_kept_in_the_manifest(tmp_path):
    elpv = read_table("elpv")
    columns = {name: values[:200] for name, values in elpv.columns.items()}
    few = replace(elpv, paths=elpv.paths[:200], keys=elpv.keys[:200], columns=columns)
    packed = read_table(write_tfrecords(few, tmp_path / "packed").path)
    dataset = [build_dataset(table) for table in (few, packed)]
    labels = [one.tasks[0].format_targets(one.targets[one.tasks[0].name]) for one in dataset]
    assert labels[0] == labels[1] and dataset[0].keys.tolist() == dataset[1].keys.tolist()


def test_training_on_packed_images_is_training_on_them(workplace):
    tlkeras.pack("photos", "packed")
    settings = {"data.validation": 0.2}
    runs = [
        tlkeras.evaluate(tlkeras.train("mine.yaml", set=settings)),
        tlkeras.evaluate(tlkeras.train("mine.yaml", set={**settings, "data.source": "packed/images.csv"})),
    ]
    splits = []
    for run in runs:
        with open(f"{run.path}/splits.csv", newline="") as file:
            splits.append([(row["image"], row["split"], row["sha256"]) for row in csv.DictReader(file)])
    assert splits[0] == splits[1]
    assert runs[1].features["computed"] == 0  # known by their bytes
    predictions = [np.load(f"{run.path}/predictions.npz")["probabilities"] for run in runs]
    np.testing.assert_array_equal(*predictions)


def test_errors(photos, tmp_path, monkeypatch):
    table = read_table(str(photos))
    packed = read_table(write_tfrecords(table, tmp_path / "packed").path)
    with pytest.raises(DataError, match="already exists.*Choose another name"):
        write_tfrecords(table, tmp_path / "packed")
    shard = tmp_path / "packed/shards/00000.tfrecord"
    shard.write_bytes(shard.read_bytes()[:-300])
    with pytest.raises(ImageError, match="its TFRecord file ends before it"):
        read_image(packed.paths[-1])
    assert read_error(packed.paths[-1]).reason == "its TFRecord file ends before it"
    assert read_table(str(tmp_path / "packed/images.csv")).rejected[-1].code == "missing"
    found = np.concatenate(
        [index for index, _ in make_image_dataset(packed.paths, 32, "stretch", 4).as_numpy_iterator()]
    )
    assert found.tolist() == list(range(len(packed) - 1))
    outside = f"../photos.tfrecord@0+{10**17}"
    (tmp_path / "packed/images.csv").write_text(f"path,label\n{outside},day\n")
    with pytest.raises(DataError, match="lies outside"):
        read_table(str(tmp_path / "packed/images.csv"), options=SourceOptions(links="refuse"))
    monkeypatch.setattr("os.rename", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(ResourceError, match="No space left on device"):
        write_tfrecords(table, tmp_path / "again")
    full = tf.errors.ResourceExhaustedError(None, None, "the disk is full")  # as TensorFlow says it
    monkeypatch.setattr("tlkeras.data.sources.tfrecords._open_shard", lambda *_: (_ for _ in ()).throw(full))
    with pytest.raises(ResourceError, match="the disk is full"):
        write_tfrecords(table, tmp_path / "again")
    assert not list(tmp_path.glob("again*"))


@pytest.mark.parametrize("path", ["a.tfrecord", "a.png@1+2", "a.tfrecord@-1+2", "a.tfrecord@1+", "@1+2.tfrecord", ""])
def test_other_paths_are_not_slices(path):
    assert parse_slice(path) is None


def test_a_slice_is_written_as_it_is_read():
    piece = ByteRange("/photos/a@1+2.tfrecord@3+4.tfrecord", 5, 6)
    assert parse_slice(str(piece)) == piece
