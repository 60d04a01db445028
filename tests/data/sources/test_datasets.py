"""Packaged sets, and what is written to files once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from tlkeras.data.sources import datasets
from tlkeras.data.sources.folders import read_table
from tlkeras.data.tables import build_dataset
from tlkeras.errors import DataError, MissingExtraError, ResourceError


class TinyShapes(tfds.core.GeneratorBasedBuilder):
    """Six images; needs no download."""

    VERSION = tfds.core.Version("1.2.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("plain", "broken")]  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "kind": tfds.features.ClassLabel(names=["square", "circle", "unused"]),
            "corners": np.int64,
            "place": tfds.features.Text(),
            "box": tfds.features.BBoxFeature(),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "kind"),
            homepage="https://shapes.example",
            citation="Nobody 2020",
        )

    def _split_generators(self, dl_manager) -> dict:
        if self.builder_config.name == "broken":
            raise OSError("no network")
        return {
            "train": self._generate_examples(4),
            "test": self._generate_examples(2),
            "extra": self._generate_examples(1),
        }

    def _generate_examples(self, count: int):
        for number in range(count):
            yield (
                number,
                {
                    "image": np.full((5, 7, 3), number * 20, np.uint8),
                    "kind": number % 2,
                    "corners": 4 - number % 2 * 4,
                    "place": "Köln",
                    "box": tfds.features.BBox(0.0, 0.0, 1.0, 1.0),
                },
            )


def test_tfds(tmp_path, monkeypatch):
    store, data = tmp_path / "store", tmp_path / "data"
    table = read_table("tfds:tiny_shapes", store=store, tfds_data_dir=data)
    dataset = build_dataset(table)
    assert dataset.tasks[0].name == "kind" and dataset.tasks[0].class_names == ("square", "circle")
    assert Counter(dataset.given_splits) == {"train": 4, "test": 2}
    assert table.columns["place"] == ["Köln"] * 6 and set(table.columns) == {"kind", "corners", "place", "split"}
    assert table.facts["citation"] == "Nobody 2020" and table.facts["version"] == "1.2.0"
    for path, target, corners in zip(table.paths, dataset.targets["kind"], table.columns["corners"], strict=True):
        shade = np.asarray(Image.open(path))
        assert shade.shape == (5, 7, 3) and shade[0, 0, 0] // 20 % 2 == target == (4 - int(corners)) // 4
    written = {path: path.stat().st_mtime_ns for path in store.rglob("*.png")}
    assert all(store in Path(path).parents for path in table.paths)
    monkeypatch.setattr(datasets, "_encode_tfds", lambda *_: (pytest.fail("written twice") for _ in range(1)))
    assert read_table("tfds:tiny_shapes/plain", store=store, tfds_data_dir=data).keys == table.keys
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*.png")} == written


def test_unavailable_tfds(tmp_path):
    places = {"store": tmp_path / "store", "tfds_data_dir": tmp_path / "data"}
    with pytest.raises(DataError, match=r"Did you mean 'tiny_shapes'\?"):
        read_table("tfds:tiny_shape", **places)
    with pytest.raises(DataError, match="Unknown configuration.*tfds:NAME or tfds:NAME/CONFIG"):
        read_table("tfds:tiny_shapes/round", **places)
    with pytest.raises(
        DataError,
        match=r"is not prepared and could not be downloaded. Received: OSError: no network.*copy it to .*data",
    ):
        read_table("tfds:tiny_shapes/broken", **places)
    with pytest.raises(DataError, match=r"'tfds:tiny_shapes' are written to files first.*Pass `store`"):
        read_table("tfds:tiny_shapes")
    assert not (tmp_path / "store").exists()


def test_digits(tmp_path):
    from sklearn.datasets import load_digits

    table = read_table("sklearn-digits", store=tmp_path)
    dataset = build_dataset(table)
    assert len(dataset) == 1797 and dataset.tasks[0].class_names == tuple("0123456789")
    np.testing.assert_array_equal(dataset.targets["label"], load_digits().target)
    first = np.asarray(Image.open(table.paths[0]))
    np.testing.assert_array_equal(first, np.round(load_digits().images[0] * 255 / 16))
    assert first.shape == (8, 8) and "CC BY" in table.facts["licence"]
    assert read_table("sklearn-digits", store=tmp_path).keys == table.keys
    assert [path.name for path in tmp_path.iterdir()] == ["sklearn-digits"]


def test_writing_leaves_all_or_nothing(tmp_path, monkeypatch):
    def stop():
        yield "a/1.png", b"x", {"label": "a"}
        raise OSError(28, "No space left on device")

    with pytest.raises(ResourceError, match=r"Cannot write images to .*set'. Received: No space left on device"):
        datasets._write_once(tmp_path / "deep/set", ["label"], stop(), 2)
    assert not any((tmp_path / "deep").iterdir())

    def overtaken():
        yield "a/1.png", b"mine", {"label": "a"}
        (tmp_path / "set").mkdir()
        (tmp_path / "set/manifest.csv").write_text("theirs")

    datasets._write_once(tmp_path / "set", ["label"], overtaken(), 1)
    assert (tmp_path / "set/manifest.csv").read_text() == "theirs" and len(list(tmp_path.iterdir())) == 2


def test_elpv_counts_are_the_published_ones():
    table = read_table("elpv")
    dataset = build_dataset(table, group="module", weight="certainty")
    assert len(dataset) == 2624 and all(Path(path).is_file() for path in table.paths[::200])
    cells = Counter(zip(table.columns["cell_type"], (p[:3] for p in table.columns["probability"]), strict=True))
    assert [cells["mono", p] for p in ("0.0", "0.3", "0.6", "1.0")] == [588, 117, 56, 313]
    assert [cells["poly", p] for p in ("0.0", "0.3", "0.6", "1.0")] == [920, 178, 50, 402]
    assert dataset.tasks[0].class_names == ("functional", "defective")
    assert dataset.targets["defect"].sum() == 821
    assert build_dataset(table, ["any_defect"]).targets["any_defect"].sum() == 1116
    certainty = Counter(np.round(dataset.weights, 3).tolist())
    assert certainty == {1.0: 2223, np.float32(0.333).item(): 295, np.float32(0.667).item(): 106}
    assert table.facts["licence"] == "CC BY-NC-SA 4.0" and "4CV.3.15" not in table.facts["url"]


def test_elpv_modules_are_as_many_as_published():
    table = read_table("elpv")
    modules = Counter(table.columns["module"])
    assert Counter(name.split("-")[0] for name in modules) == {"mono": 18, "poly": 26}
    assert min(modules.values()) == 48 and max(modules.values()) == 72
    assert all(
        name.startswith(kind) for name, kind in zip(table.columns["module"], table.columns["cell_type"], strict=True)
    )


def test_elpv_without_its_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'The source \'elpv\' needs .*pip install "tlkeras\[quickstart\]"'):
        read_table("elpv")
