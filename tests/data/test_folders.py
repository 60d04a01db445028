"""Folders and manifests: what is taken, what is refused, what is said."""

from __future__ import annotations

import os
import subprocess
import sys
import unicodedata

import numpy as np
import pytest

from tlkeras.data.sources.folders import list_images, read_table
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
        "loose.png": 7,
        "README.md": b"# cats",
    }
    table = read_table(str(plant(PAIRS | extra)))
    assert set(table.keys) == {*PAIRS, "cat/3", "cat/4.dat", "cat/5.jpg"}
    assert codes(table) == {
        "cat/notes.txt": "not-an-image",
        "cat/box.json": "not-an-image",
        "cat/scan.tif": "not-an-image",
        "loose.png": "no-class",
    }
    assert "scan.tif: not a supported image (TIFF)" in " ".join(map(str, table.rejected))


def test_links_stay_within_the_root(plant):
    outside = plant({"secret.png": 1}, "elsewhere")
    root = plant(PAIRS)
    os.symlink("1.png", root / "cat/inside.png")
    os.symlink(outside / "secret.png", root / "cat/outside.png")
    os.symlink(outside, root / "stolen")
    os.symlink("..", root / "cat/up")
    os.symlink(".", root / "dog/loop")
    os.symlink("ring.png", root / "dog/ring.png")
    os.symlink("nothing.png", root / "dog/nowhere.png")
    table = read_table(str(root))
    assert set(table.keys) == {*PAIRS, "cat/inside.png"}
    assert codes(table) == {
        "cat/outside.png": "outside-root",
        "stolen": "outside-root",
        "cat/up": "outside-root",
        "dog/loop": "linked-folder",
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
            r"(?s)2 class folder.*image.*a\.txt: not a supported image \(text\)",
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
    with pytest.raises(DataError, match=r"fewer than two images: owl \(1\), yak \(0\)"):
        build_dataset(read_table(str(root)))


def test_unknown_sources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"no such source.*Did you mean 'elpv'\?"):
        read_table("elvp")
    with pytest.raises(DataError, match=r"Did you mean 'photos'\?"):
        read_table("fotos")
    with pytest.raises(
        DataError, match=r"The source is not a \.csv manifest.*folder with one folder per class, a \.csv manifest"
    ):
        read_table("notes.txt")


def test_reading_sources_needs_no_tensorflow():
    modules = "tlkeras.data.sources.folders, tlkeras.data.splits, tlkeras.data.inspection"
    heavy = "{'tensorflow', 'tensorflow_datasets', 'sklearn', 'PIL'}"
    script = f"import sys, {modules}; sys.exit(str({heavy} & set(sys.modules)) if {heavy} & set(sys.modules) else 0)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_list_images(plant):
    root = plant({**PAIRS, "loose.png": 1, "notes.txt": b"text", ".hidden.png": 1})
    assert [os.path.relpath(path, root) for path in list_images(root)] == ["loose.png", *PAIRS]


# Manifests


def manifest(plant, text: str | bytes, **files) -> str:
    content = text if isinstance(text, bytes) else text.encode()
    return str(plant({**PAIRS, "m.csv": content, **files}) / "m.csv")


LINES = ["path,label", "cat/1.png,cat", "cat/2.png,cat", "dog/1.png,dog", "dog/2.png,dog"]


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(LINES),
        "\ufeff" + "\r\n".join(LINES) + "\r\n",
        "\n".join(LINES).replace(",", ";"),
        "\n".join(LINES).replace(",", "\t") + "\n\n",
        "\n".join(LINES).replace("label", " label ").replace(",cat", ", cat "),
        "\n".join(LINES).replace("cat/1.png", '"./dog/../cat/1.png"'),
    ],
)
def test_manifest(plant, text):
    dataset = build_dataset(read_table(manifest(plant, text)))
    assert dataset.keys.tolist() == list(PAIRS)
    assert dataset.targets["label"].tolist() == [0, 0, 1, 1]


def test_manifest_columns_have_roles(plant):
    rows = [
        "path,label,split,weight,group,domain,colour",
        "cat/1.png,cat,Train,0.5,g1,a,red",
        "cat/2.png,cat,val,,g1,a,red",
        "dog/1.png,dog,test,2,,b,",
        "dog/2.png,dog,training,1e-1,g2,b,blue",
    ]
    table = read_table(manifest(plant, "\n".join(rows)))
    dataset = build_dataset(table, stratify=["colour", "domain"])
    np.testing.assert_allclose(dataset.weights, [0.5, 1, 2, 0.1])
    assert dataset.given_splits.tolist() == ["train", "validation", "test", "train"]
    assert dataset.groups.tolist() == ["g1", "g1", "", "g2"] and dataset.domains.tolist() == ["a", "a", "b", "b"]
    assert dataset.strata.tolist() == ["red | a", "red | a", " | b", "blue | b"]
    plain = build_dataset(table, weight="", group="", domain="")
    assert plain.weights.tolist() == [1] * 4 and not plain.groups.any() and not plain.domains.any()


def test_several_labels_are_several_tasks(plant):
    rows = ["path,a,b", "cat/1.png,x,u", "cat/2.png,y,", "dog/1.png,x,v", "dog/2.png,y,u", "cat/3.png,x,v"]
    dataset = build_dataset(read_table(manifest(plant, "\n".join(rows), **{"cat/3.png": 1})), ["b", "a"])
    assert [task.name for task in dataset.tasks] == ["b", "a"]
    assert dataset.targets["a"].tolist() == [0, 1, 0, 1, 0]
    assert dataset.targets["b"].tolist() == [0, -1, 1, 0, 1]


BAD_MANIFESTS = {
    "no path": ("file,label\na.png,cat", "there is no column 'path', only file, label"),
    "doubled column": ("path,label,label\na,b,c", "column 'label' appears twice"),
    "column without name": ("path,,label\na,b,c", "column 2 has no name"),
    "only a header": ("path,label\n", r"has a header but no rows. Received: .*a header and a line per image"),
    "empty": ("", "The manifest is empty"),
    "ragged": ("path,label\ncat/1.png,cat,x\ncat/2.png", r"(?s)line 2: 3 fields instead of 2.*line 3: 1 fields"),
    "outside": ("path,label\n../x.png,cat\n/etc/passwd,cat", r"(?s)line 2: '\.\./x\.png' lies outside.*line 3: '/etc/"),
    "no paths": ("path,label\n,cat\n\0,dog", "(?s)line 2: the path is empty.*line 3: the path contains a zero byte"),
    "itself": ("path,label\n.,cat", "line 2: '.' lies outside"),
    "twice": ("path,label\ncat/1.png,cat\ncat/../cat/1.png,dog", "line 3: the same image as line 2"),
    "splits": (
        "path,label,split\ncat/1.png,cat,train\ncat/2.png,cat,trian\ndog/1.png,dog,",
        "(?s)line 3: unknown split 'trian'. Did you mean 'train'.*line 4: no split, though other lines have one",
    ),
    "all missing": (
        "path,label\na.png,cat\nb.png,dog",
        r"(?s)No image of the manifest .* exists.*a\.png: No such file",
    ),
    "open quote": ('path,label\n"cat/1.png,cat', "not valid CSV. Received: .*line 2"),
    "not UTF-8": (
        "path,label\ncaf\xe9.png,cat".encode("latin-1"),
        "not in UTF-8. Received: .*byte 14. Save it as UTF-8",
    ),
}


@pytest.mark.parametrize("row", BAD_MANIFESTS)
def test_bad_manifests(plant, row):
    text, message = BAD_MANIFESTS[row]
    with pytest.raises(DataError, match=message):
        read_table(manifest(plant, text))


def test_many_problems_are_counted(plant):
    text = "\n".join(["path,label", *(f"../{number}.png,cat" for number in range(50))])
    with pytest.raises(DataError, match=r"(?s)line 21: .*\.\.\. and 30 more") as caught:
        read_table(manifest(plant, text))
    assert "line 22" not in str(caught.value)


def test_manifest_links_and_pipes(plant):
    outside = plant({"secret.png": 1}, "elsewhere")
    source = manifest(plant, "\n".join([*LINES, "pipe.png,dog", "gone.png,dog", "cat,dog"]))
    root = os.path.dirname(source)
    os.mkfifo(os.path.join(root, "pipe.png"))
    table = read_table(source)
    assert table.keys == list(PAIRS)
    assert codes(table) == {"pipe.png": "special-file", "gone.png": "missing", "cat": "special-file"}
    os.symlink(outside, os.path.join(root, "link"))
    os.symlink(outside / "secret.png", os.path.join(root, "link.png"))
    for path in ("link/secret.png", "link.png"):
        with pytest.raises(DataError, match=f"line 6: '{path}' lies outside"):
            read_table(manifest(plant, "\n".join([*LINES, f"{path},dog"])))


def test_all_unknown_columns_at_once(plant):
    table = read_table(manifest(plant, "\n".join(LINES)))
    with pytest.raises(
        DataError, match=r"(?s)no column 'lable'. Did you mean 'label'\?.*no column 'site'. Valid: label"
    ):
        build_dataset(table, ["lable"], group="site")


def test_bad_weights_are_all_named(plant):
    rows = ["path,label,weight", "cat/1.png,cat,-1", "cat/2.png,cat,x", "dog/1.png,dog,nan", "dog/2.png,dog,1"]
    with pytest.raises(DataError, match=r"(?s)'weight' of cat/1\.png is '-1'.*cat/2\.png is 'x'.*dog/1\.png is 'nan'"):
        build_dataset(read_table(manifest(plant, "\n".join(rows))))
    zeros = ["path,label,weight", *(f"{path},{path[:3]},0" for path in PAIRS)]
    with pytest.raises(DataError, match="every weight is 0"):
        build_dataset(read_table(manifest(plant, "\n".join(zeros))))
