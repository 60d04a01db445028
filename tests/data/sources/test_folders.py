"""Folders of classes: images, rejected files, errors."""

from __future__ import annotations

import os
import subprocess
import sys
import unicodedata

import numpy as np
import pytest

from tlkeras.data.sources.folders import iter_image_files, read_table
from tlkeras.data.sources.manifests import SourceOptions
from tlkeras.data.tables import ImageTable, build_dataset
from tlkeras.errors import DataError

PAIRS = {"cat/1.png": 1, "cat/2.png": 2, "dog/1.png": 3, "dog/2.png": 4}


def codes(table: ImageTable) -> dict[str, str]:
    return {os.path.relpath(bad.path, table.root): bad.code for bad in table.rejected}


def test_folder(plant):
    root = plant({**PAIRS, "cat/deep/er/3.PNG": 5})
    table = read_table(str(root))
    assert table.keys == ["cat/1.png", "cat/2.png", "cat/deep/er/3.PNG", "dog/1.png", "dog/2.png"]
    assert table.paths == [str(root / key) for key in table.keys]
    assert table.columns == {"label": ["cat", "cat", "cat", "dog", "dog"]}
    dataset = build_dataset(table)
    assert dataset.tasks[0].class_names == ("cat", "dog")
    assert dataset.targets["label"].tolist() == [0, 0, 0, 1, 1] and dataset.targets["label"].dtype == np.int64
    assert dataset.weights.tolist() == [1] * 5 and dataset.weights.dtype == np.float32
    assert not dataset.groups.any() and not dataset.given_splits.any() and not dataset.strata.any()
    part = dataset.take(np.array([4, 0]))
    assert part.keys.tolist() == ["dog/2.png", "cat/1.png"] and part.targets["label"].tolist() == [1, 0]
    assert len(dataset.take(dataset.targets["label"] == 1)) == 2


@pytest.mark.parametrize("validation", ["val", "valid", "Validation"])
def test_folder_with_splits(plant, validation):
    splits = {"train": "train", validation: "validation", "test": "test"}
    root = plant({f"{split}/{path}": content for split in splits for path, content in PAIRS.items()})
    dataset = build_dataset(read_table(str(root)))
    assert len(dataset) == 12
    assert {key.split("/")[0]: split for key, split in zip(dataset.keys, dataset.given_splits, strict=True)} == splits
    assert dataset.tasks[0].class_names == ("cat", "dog")


def test_classes_may_be_called_like_splits(plant):
    table = read_table(str(plant({"train/1.png": 1, "train/2.png": 2, "car/1.png": 3, "car/2.png": 4})))
    assert "split" not in table.columns and set(table.columns["label"]) == {"train", "car"}


def test_what_systems_leave_behind_is_ignored(plant):
    noise = (".hidden/9.png", "cat/.DS_Store", "cat/Thumbs.db", "__MACOSX/cat/1.png", "cat/._1.png", "dog/desktop.ini")
    table = read_table(str(plant(PAIRS | dict.fromkeys(noise, 9))))
    assert table.keys == list(PAIRS) and not table.rejected


def test_names_and_content_make_candidates(plant):
    extra = {
        "cat/3": 5,
        "cat/4.dat": 6,
        "cat/5.jpg": b"text, and listed when it is read",
        "cat/notes.txt": b"soft fur",
        "cat/box.json": b"{}",
        "cat/scan.tif": b"II*\0",
        "cat/art.psd": b"8BPS",
        "loose.png": 7,
        "README.md": b"# cats",
    }
    table = read_table(str(plant(PAIRS | extra)))
    assert set(table.keys) == {*PAIRS, "cat/3", "cat/4.dat", "cat/5.jpg", "cat/scan.tif"}
    assert codes(table) == {
        "cat/notes.txt": "not-an-image",
        "cat/box.json": "not-an-image",
        "cat/art.psd": "unsupported",
        "loose.png": "no-class",
    }
    assert "art.psd: Photoshop (PSD) is not supported, only JPEG" in " ".join(map(str, table.rejected))


def test_links_stay_within_the_root_where_they_are_refused(plant):
    outside = plant({"secret.png": 1}, "elsewhere")
    root = plant(PAIRS)
    os.symlink("1.png", root / "cat/inside.png")
    os.symlink(outside / "secret.png", root / "cat/outside.png")
    os.symlink(outside, root / "stolen")
    os.symlink("..", root / "cat/up")
    os.symlink(".", root / "dog/loop")
    os.symlink("ring.png", root / "dog/ring.png")
    os.symlink("nothing.png", root / "dog/nowhere.png")
    table = read_table(str(root), options=SourceOptions(links="refuse"))
    assert set(table.keys) == {*PAIRS, "cat/inside.png"}
    assert codes(table) == {
        "cat/outside.png": "outside-root",
        "stolen": "outside-root",
        "cat/up": "loop",
        "dog/loop": "loop",
        "dog/ring.png": "missing",
        "dog/nowhere.png": "missing",
    }


def test_the_root_itself_may_be_a_link(plant, tmp_path):
    os.symlink(plant(PAIRS), tmp_path / "alias")
    assert read_table(str(tmp_path / "alias")).keys == list(PAIRS)


def test_pipes_are_not_opened(plant):
    root = plant(PAIRS)
    os.mkfifo(root / "cat/pipe.png")
    os.mkfifo(root / "cat/pipe")
    assert codes(read_table(str(root))) == {"cat/pipe.png": "special-file", "cat/pipe": "special-file"}


def test_names_that_are_not_utf8(plant):
    root = plant(PAIRS)
    odd = os.fsdecode(b"caf\xe9")
    os.rename(root / "cat/1.png", root / "cat" / f"{odd}.png")
    os.rename(root / "dog", root / odd)
    table = read_table(str(root))
    assert "cat/caf\\xe9.png" in table.keys and "caf\\xe9/1.png" in table.keys
    assert set(table.columns["label"]) == {"cat", "caf\\xe9"}
    assert all(os.path.exists(path) for path in table.paths)


def test_unicode_classes_are_one_in_both_normal_forms(plant):
    composed, decomposed = (unicodedata.normalize(form, "größe ü") for form in ("NFC", "NFD"))
    files = {f"train/{composed}/1.png": 1, f"test/{decomposed}/1.png": 2, "train/a/1.png": 3, "test/a/1.png": 4}
    dataset = build_dataset(read_table(str(plant(files))))
    assert dataset.tasks[0].class_names == ("a", composed)


@pytest.mark.parametrize("label", ["-dash", "a b", "new\nline", "x" * 255, "..."[:2] + "dots"])
def test_class_names_may_be_odd(plant, label):
    table = read_table(str(plant({**PAIRS, f"{label}/1.png": 1, f"{label}/2.png": 1})))
    assert (label in table.columns["label"]) != label.startswith(".")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "with no class folder"),
        ({"1.png": 1, "2.png": 2}, r"(?s)with no class folder.*1\.png: not in a class folder"),
        (
            {"cat/.keep": b"", "dog/a.txt": b"a"},
            r"(?s)2 class folder.*image.*a\.txt: not an image \(text\)",
        ),
    ],
)
def test_empty_folders(plant, tmp_path, files, message):
    (tmp_path / "set").mkdir()
    plant(files)
    with pytest.raises(DataError, match=message):
        read_table(str(tmp_path / "set"))


def test_one_class_or_too_few_images(plant):
    with pytest.raises(DataError, match=r"only one class, 'cat'"):
        build_dataset(read_table(str(plant({"cat/1.png": 1, "cat/2.png": 2}, "one"))))
    root = plant({**PAIRS, "owl/1.png": 1, "yak/.keep": b""}, "few")
    with pytest.raises(DataError, match=r"no image: yak. Add images"):
        build_dataset(read_table(str(root)))


def test_unknown_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "notes.dat").touch()
    with pytest.raises(DataError, match=r"no such source.*Did you mean 'elpv'\?"):
        read_table("elvp")
    with pytest.raises(DataError, match=r"Did you mean 'photos'\?"):
        read_table("fotos")
    with pytest.raises(
        DataError, match=r"The source is not a \.csv manifest.*folder with one folder per class, a \.csv manifest"
    ):
        read_table("notes.dat")


def test_reading_sources_needs_no_tensorflow():
    modules = "tlkeras.data.sources.folders, tlkeras.data.splits, tlkeras.data.inspection"
    heavy = "{'tensorflow', 'tensorflow_datasets', 'sklearn', 'PIL'}"
    script = f"import sys, {modules}; sys.exit(str({heavy} & set(sys.modules)) if {heavy} & set(sys.modules) else 0)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_image_files_below_a_folder(plant):
    root = plant({**PAIRS, "loose.png": 1, "notes.txt": b"text", ".hidden.png": 1})
    rejected = []
    assert [os.path.relpath(path, root) for path in iter_image_files(root, rejected)] == ["loose.png", *PAIRS]
    assert [os.path.basename(bad.path) for bad in rejected] == ["notes.txt"]
