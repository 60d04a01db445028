"""Folders and tables as people have them: what is read, what is told, what is refused with the way out."""

from __future__ import annotations

import json
import os
import unicodedata
from collections import Counter

import pyarrow
import pytest
from pyarrow import parquet

from tlkeras.data.sources.folders import is_data_source, read_table
from tlkeras.data.sources.manifests import SourceOptions
from tlkeras.data.splits import find_split
from tlkeras.data.tables import ImageTable, build_dataset, rename_labels
from tlkeras.errors import DataError

PAIRS = {"cat/1.png": 1, "cat/2.png": 2, "dog/1.png": 3, "dog/2.png": 4}
LINES = ["path,label", "cat/1.png,cat", "cat/2.png,cat", "dog/1.png,dog", "dog/2.png,dog"]
TEXT = "\n".join(LINES)


def below(*folders: str) -> dict[str, int]:
    return {f"{folder}/{path}": number for folder in folders for path, number in PAIRS.items()}


def write_manifest(plant, text: str | bytes, name: str = "m.csv", **files: int) -> str:
    return str(plant({**PAIRS, name: text if isinstance(text, bytes) else text.encode(), **files}) / name)


def told(table: ImageTable) -> str:
    return " ".join([*table.notes, *build_dataset(table).notes])


SPELLINGS = {
    "train": "train Train TRAINING trainval seg_train train_images train2017 Training_set my-train TrainingImages",
    "validation": "val valid validation dev val2017 Valid_Set flowers_val",
    "test": "test Test_set seg_test testing holdout hold-out eval evaluation_set test1 testImages",
    "": "cat trainer contest value train_test_split devil 2017 latest",
}


@pytest.mark.parametrize("split", SPELLINGS)
def test_spellings_of_splits(split):
    assert {name: find_split(name) for name in SPELLINGS[split].split()} == dict.fromkeys(
        SPELLINGS[split].split(), split
    )


@pytest.mark.parametrize(
    ("train", "test"),
    [("train", "eval"), ("Training_set", "Test_set"), ("seg_train", "seg_test"), ("train_images", "holdout")],
)
def test_split_folders_in_any_spelling(plant, train, test):
    table = read_table(str(plant(below(train, test))))
    assert set(table.columns["label"]) == {"cat", "dog"} and Counter(table.columns["split"]) == {"train": 4, "test": 4}


def test_classes_that_sound_like_splits(plant):
    table = read_table(str(plant({"train station/1.png": 1, "test tube/1.png": 2, "bus/1.png": 3}, "flat")))
    assert set(table.columns) == {"label"}
    with pytest.raises(DataError, match="no class folder.*data.folders=classes"):
        read_table(str(plant({"seg_train/1.png": 1, "seg_test/1.png": 2}, "unlabelled")))
    forced = read_table(str(plant(below("train", "test"))), options=SourceOptions(folders="classes"))
    assert set(forced.columns["label"]) == {"train", "test"}


BAD_FOLDERS = {
    "parts": (
        below("fold1", "fold2"),
        "look like splits or parts.*Received: fold1, fold2, with cat, dog in each.*data.folders=classes",
    ),
    "train and a part": (below("train", "rest"), "look like splits or parts"),
    "deeper": ({**below("data"), "docs/a.txt": b"a"}, "All images lie in one folder.*data' with cat, dog. Pass that"),
    "yolo": ({"images/train/1.png": 1, "images/val/2.png": 2, "labels/train/1.txt": b"0 1"}, "object detection"),
    "yolo in splits": (
        {"train/images/1.png": 1, "train/labels/1.txt": b"0", "val/images/2.png": 1},
        "object detection",
    ),
    "class of text": (
        {**PAIRS, "owl/a.txt": b"a", "owl/b.txt": b"b"},
        r"class 'owl' has no image.*of 2: .*\(text\) \(2\)",
    ),
    "empty class": ({**PAIRS, "owl/.keep": b""}, r"no image: owl. Add images, or remove"),
}


@pytest.mark.parametrize("row", BAD_FOLDERS)
def test_folders_that_are_asked_back(plant, row):
    files, message = BAD_FOLDERS[row]
    with pytest.raises(DataError, match="(?s)" + message):
        build_dataset(read_table(str(plant(files))))


def test_a_wrapper_is_taken_off(plant):
    table = read_table(str(plant(below("a/b"))))
    assert set(table.columns["label"]) == {"cat", "dog"} and "classes are the folders in" in told(table)


def test_a_cache_of_a_hub(plant):
    root = plant({f"blobs/{number}": number for number in range(1, 5)})
    for path, number in PAIRS.items():
        link = root / "snapshots/abc" / path
        link.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(f"../../../blobs/{number}", link)
    for folder in (root, root / "snapshots/abc"):
        assert Counter(read_table(str(folder)).columns["label"]) == {"cat": 2, "dog": 2}
    assert "4 of the images lie outside the folder" in told(read_table(str(root / "snapshots/abc")))


LEFT_BEHIND = (
    *("cat/@eaDir/1.png/T.png", "@eaDir/1.png", "#recycle/1.png", "#snapshot/cat/1.png", "lost+found/1.png"),
    *("$RECYCLE.BIN/1.png", "System Volume Information/1.png", "cat/.AppleDouble/1.png", "cat/._1.png"),
    *("Thumbs.db", "cat/desktop.ini", "cat/.directory", ".Trash-1000/1.png", "@Recycle/1.png", "__MACOSX/cat/1.png"),
)


def test_what_systems_leave_behind_is_skipped_and_counted(plant):
    table = read_table(str(plant({**PAIRS, **dict.fromkeys(LEFT_BEHIND, 9)})))
    assert table.keys == list(PAIRS) and not table.rejected
    assert "systems leave behind are skipped: @eaDir (2)" in told(table)
    split = read_table(str(plant({**below("train", "test"), "lost+found/.x": 1}, "split")))
    assert "split" in split.columns


def test_links_are_followed_and_end(plant):
    away = plant({"1.png": 5, "2.png": 6}, "away")
    root = plant(PAIRS)
    os.symlink(away, root / "owl")
    os.symlink("..", root / "cat/up")
    os.symlink(away / "1.png", root / "cat/3.png")
    os.symlink(root / "dog", away / "loop")
    os.symlink(root, away / "top")
    table = read_table(str(root))
    assert Counter(table.columns["label"])["owl"] == 4  # the two of a link to another class are among them
    assert {bad.code for bad in table.rejected} == {"loop"} and "lie outside the folder" in told(table)
    os.symlink(away / "gone", root / "yak")
    with pytest.raises(DataError, match="class 'yak' has no image .*missing file"):
        build_dataset(read_table(str(root)))
    with pytest.raises(DataError, match="class 'owl' has no image .* leads out of the folder .data.links: refuse."):
        build_dataset(read_table(str(root), options=SourceOptions(links="refuse")))


TABLES = {
    "pandas index": (TEXT.replace("path,", ",path,").replace("\n", "\n1,").replace("1,dog/2", "9,dog/2"), ""),
    "trailing comma": (TEXT.replace("\n", ",\n") + ",", "without a name"),
    "trailing comma below the header": (TEXT.replace("cat\n", "cat,\n"), ""),
    "sep=": ("sep=;\r\n" + TEXT.replace(",", ";").replace("\n", "\r\n"), ""),
    "bars": (TEXT.replace(",", "|"), ""),
    "commas in a last column": ("path;label;note\n" + "\n".join(f"{path};{path[:3]};a,b,c" for path in PAIRS), ""),
    "blanks": (TEXT.replace("\n", "\n "), "4 paths are spelled otherwise"),
    "backslashes": (TEXT.replace("/", "\\"), "4 paths are spelled otherwise"),
    "case": (TEXT.replace(".png", ".PNG").replace("cat/", "Cat/"), "4 paths are spelled otherwise"),
    "no extension": (TEXT.replace(".png", ""), "4 paths are spelled otherwise"),
    "repeated": (TEXT + "\n" + "\n".join(LINES[1:3]), "2 rows name an image that another row names"),
    "other columns": (TEXT.replace("label", "Label").replace("path", "Split,path").replace("\n", "\ntrain,"), ""),
    **{
        f"called {name}": (TEXT.replace("path", name), "")
        for name in ("file", "filename", "file_name", "Path", "image", "image_path", "Image ID", "id", "image_id")
    },
}


@pytest.mark.parametrize("row", TABLES)
def test_tables_that_are_read(plant, row):
    text, note = TABLES[row]
    if row == "pandas index":
        text = ",path,label\n" + "\n".join(f"{at},{line}" for at, line in enumerate(LINES[1:]))
    table = read_table(write_manifest(plant, text))
    assert table.keys == list(PAIRS) and build_dataset(table).targets[build_dataset(table).tasks[0].name].tolist() == [
        0,
        0,
        1,
        1,
    ]
    assert note in told(table)


def test_unicode_forms_of_names(plant):
    names = [unicodedata.normalize(form, "größe.png") for form in ("NFC", "NFD")]
    root = plant({**PAIRS, names[1]: 5, "m.csv": f"{TEXT}\n{names[0]},dog".encode()})
    assert len(read_table(str(root / "m.csv"))) == 5


def test_one_of_several_that_fit_is_not_guessed(plant):
    table = read_table(write_manifest(plant, f"{TEXT}\nCAT/A.png,cat", **{"cat/a.png": 5, "cat/a.PNG": 6}))
    assert [bad.code for bad in table.rejected] == ["missing"]


@pytest.mark.parametrize("kind", ["outside", "absolute", "data.root", "data.root of another machine"])
def test_images_elsewhere(plant, tmp_path, kind):
    root = plant(PAIRS)
    start = {"outside": "../set/", "absolute": f"{root}/", "data.root of another machine": "D:\\bob\\"}.get(kind, "")
    options = SourceOptions(root=str(root) if kind.startswith("data.root") else None)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/m.csv").write_text(TEXT.replace("\n", f"\n{start}"))
    table = read_table(str(tmp_path / "lists/m.csv"), options=options)
    assert table.paths == [str(root / path) for path in PAIRS] and table.keys == list(PAIRS)
    if start:
        with pytest.raises(DataError, match="lies outside|No image"):
            read_table(str(tmp_path / "lists/m.csv"), options=SourceOptions(links="refuse"))


BAD_TABLES = {
    "UTF-16": (TEXT.encode("utf-16"), "in UTF-16.*iconv -f UTF-16"),
    "UTF-16 without a mark": (TEXT.encode("utf-16-le"), "in UTF-16.*iconv -f UTF-16"),
    "Latin-1": (f"{TEXT}\ncafé.png,dog".encode("latin-1"), "not in UTF-8.*Latin-1 or Windows-1252"),
    "no column": ("site,label\na,b", "no column 'path', only site, label. Name it: --set data.path="),
    "two labels": (
        f"{TEXT}\ncat/1.png,dog",
        "data.separator=|.*line 6: the same image as line 2 with another 'label': 'dog'",
    ),
    "a class is missing": (f"{TEXT}\nowl/1.png,owl\nowl/2.png,owl", "class 'owl' has no image.*of 2: No such file"),
    "all elsewhere": (
        "path,label\n1.png,cat\n2.png,dog",
        r"2 of 2 images are missing: '1.png', '2.png'. There is .*: --set data.root=cat",
    ),
    "ids": ("id,label\n77,cat\n78,dog", "They are the column 'id'"),
    "no header": ("cat/1.png,cat\ndog/1.png,dog", "The first line is no header: write `path,label` above it"),
    "a remark": (f"# made by me\n{TEXT}", "The first line is a remark: remove it"),
    "one column": ("path label\ncat/1.png cat\ndog/1.png dog", "Separate the columns by commas"),
    "no label": (TEXT.replace("label", "Art"), "has no column 'label'. Received: Art.*--set data.label=Art"),
    "a folder too many": (TEXT.replace("cat/", "images/cat/"), "There is cat/1.png: --set data.root=. finds them"),
    "another machine": ("path,label\nC:\\x\\7.png,cat", "absolute paths of another place: --set data.root"),
    "numbers": ("path,label\ncat/1.png,0.1\ncat/2.png,0.2\ndog/1.png,7", "kind: regression"),
}


@pytest.mark.parametrize("row", BAD_TABLES)
def test_tables_that_are_refused(plant, row):
    text, message = BAD_TABLES[row]
    with pytest.raises(DataError, match="(?s)" + message):
        build_dataset(read_table(write_manifest(plant, text)))


def test_many_missing_files_are_one_sentence(plant):
    table = read_table(write_manifest(plant, TEXT + "".join(f"\nx{number}.png,cat" for number in range(40))))
    assert len(table.rejected) == 40
    assert "40 of 44 images are missing: 'x0.png', 'x1.png', 'x2.png', ..." in told(table)


def test_rows_of_several_labels(plant):
    source = write_manifest(plant, TEXT + "\ncat/1.png,dog\ncat/1.png,cat\ndog/1.png,")
    table = read_table(source, options=SourceOptions(separators={"": "|"}))
    assert table.columns["label"] == ["cat|dog", "cat", "dog", "dog"]


def test_parquet_and_json_lines(plant, tmp_path):
    root = plant(PAIRS)
    rows = {"file_name": list(PAIRS), "label": [1.0, 1.0, None, 2.0], "weight": [1, 2, 3, 4]}
    parquet.write_table(pyarrow.table(rows), root / "m.parquet")
    lines = [
        f'{{"file_name": "{path}", "label": {label}}}'
        for path, label in zip(PAIRS, ("1", "1.0", "null", "2"), strict=True)
    ]
    (root / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    for name in ("m.parquet", "metadata.jsonl"):
        assert is_data_source(str(root / name))
        table = read_table(str(root / name))
        assert table.keys == list(PAIRS) and table.columns["label"] == ["1", "1", "", "2"]
    (root / "metadata.jsonl").write_text("[1]\n")
    with pytest.raises(DataError, match="no JSON object.*line 1"):
        read_table(str(root / "metadata.jsonl"))


TRAIN = [("0.png", "cat"), ("1.png", "dog"), ("2.png", "cat"), ("3.png", "dog")]


def hub_file(rows, suffix="jsonl") -> bytes:
    if suffix == "csv":
        return "\n".join(["file_name,label", *map(",".join, rows)]).encode()
    return "\n".join(json.dumps({"file_name": name, "label": label}) for name, label in rows).encode()


HUB_FOLDERS = {  # files, splits, words of a note
    "one table": ({"metadata.csv": hub_file(TRAIN, "csv")}, None, "labels are those of metadata.csv"),
    "per split": (
        {"train/metadata.jsonl": hub_file(TRAIN), "test/metadata.jsonl": hub_file(TRAIN[:2])},
        {"train": 4, "test": 2},
        "labels are those of test/metadata.jsonl, train/metadata.jsonl",
    ),
    "of two kinds": (
        {"data/train/metadata.csv": hub_file(TRAIN, "csv"), "data/validation/metadata.jsonl": hub_file(TRAIN)},
        {"train": 4, "validation": 4},
        "",
    ),
    "one table of splits": (
        {
            "metadata.jsonl": hub_file(
                [(f"{split}/{name}", label) for split in ("train", "test") for name, label in TRAIN]
            )
        },
        {"train": 4, "test": 4},
        "",
    ),
    "a folder of images": (
        {"metadata.jsonl": hub_file([(f"images/{name}", label) for name, label in TRAIN])},
        None,
        "",
    ),
}


@pytest.mark.parametrize("row", HUB_FOLDERS)
def test_folders_of_the_hugging_face_hub(plant, row):
    files, splits, note = HUB_FOLDERS[row]
    images = {}
    for place, content in files.items():
        names = [
            line.split(",")[0] if place.endswith("csv") else json.loads(line)["file_name"]
            for line in content.decode().splitlines()
            if not line.startswith("file_name")
        ]
        images |= {os.path.join(os.path.dirname(place), name): number for number, name in enumerate(names)}
    table = read_table(str(plant({**files, **images})))
    assert sorted(table.keys) == sorted(key.removeprefix("data/") for key in images)
    assert set(table.columns["label"]) == {"cat", "dog"} and note in told(table)
    assert splits == (Counter(table.columns["split"]) if "split" in table.columns else None)


def test_tables_of_the_hub_beside_classes(plant):
    rows = [("cat/1.png", "A"), ("dog/1.png", "B"), ("cat/2.png", "A"), ("dog/2.png", "B")]
    files = {**PAIRS, "more.png": 5, "metadata.csv": hub_file(rows, "csv")}
    table = read_table(str(plant(files)))
    assert table.columns["label"] == ["A", "B", "A", "B"]
    assert "Images that the table lacks are left out: 1, such as" in told(table)
    forced = read_table(str(plant(files)), options=SourceOptions(folders="classes"))
    assert set(forced.columns["label"]) == {"cat", "dog"}
    without = read_table(str(plant({**PAIRS, "metadata.csv": b"file_name,width\ncat/1.png,4"}, "other")))
    assert set(without.columns["label"]) == {"cat", "dog"} and "has no column 'label' and is not used" in told(without)
    with pytest.raises(DataError, match="no column 'label'. Received: width.*--set data.label=width"):
        build_dataset(read_table(str(plant({"1.png": 1, "metadata.csv": b"file_name,width\n1.png,4"}, "third"))))


def test_tables_with_the_images_in_them(plant):
    root = plant(PAIRS)
    rows = {"image": [{"bytes": b"x", "path": None}] * 2, "label": ["cat", "dog"]}
    parquet.write_table(pyarrow.table(rows), root / "m.parquet")
    with pytest.raises(DataError, match="the cell holds an image and no path: write the images to files"):
        read_table(str(root / "m.parquet"))
    rows["image"] = [{"bytes": None, "path": path} for path in list(PAIRS)[1:3]]
    parquet.write_table(pyarrow.table(rows), root / "m.parquet")
    assert read_table(str(root / "m.parquet")).keys == list(PAIRS)[1:3]


def test_spreadsheets_and_text_files(plant):
    assert len(read_table(write_manifest(plant, TEXT, "list.txt"))) == 4
    with pytest.raises(DataError, match="Save it as CSV UTF-8"):
        read_table(write_manifest(plant, TEXT, "list.xlsx"))


def test_decimal_commas(plant):
    text = TEXT.replace(",", ";").replace("label", "label;weight").replace("cat\n", "cat;0,5\n").replace("dog", "dog;2")
    text = "path;label;weight\n" + "\n".join(
        f"{path};{path[:3]};{weight}" for path, weight in zip(PAIRS, ("0,5", "1,25", "2", "0,125"), strict=True)
    )
    assert build_dataset(read_table(write_manifest(plant, text))).weights.tolist() == [0.5, 1.25, 2, 0.125]
    with pytest.raises(DataError, match="is '1,234'"):
        build_dataset(read_table(write_manifest(plant, text.replace("0,5", "1,234"))))


@pytest.mark.parametrize(
    ("labels", "note"),
    [
        (("1", "1.0", "0", "0"), r"written: '1' (1), '1.0' (1)"),
        (("Cat", "cat", "dog", "dog"), r"""--set "data.labels={'cat': 'Cat'}" merges"""),
        (("black cat", "black_cat", "dog", "dog"), "differ only"),
        (("cat", "cat", "dog", "nan"), "Is 'nan' (1) a missing label?"),
        (("cat", "cat", "dog", "N/A"), "Is 'N/A' (1) a missing label?"),
        (("ﬁsh", "fish", "dog", "dog"), "differ only"),
        (("A", "A", "A-", "B"), ""),
        (("0.5", "0.5", "1.25", "1.25"), "its 2 classes are numbers, such as '1.25'; to predict a number, give it"),
        (("1", "1", "2", "2"), ""),
    ],
)
def test_labels_that_differ_in_writing(plant, labels, note):
    table = read_table(
        write_manifest(plant, "path,label\n" + "\n".join(map(",".join, zip(PAIRS, labels, strict=True))))
    )
    assert note in told(table) and bool(note) == bool(told(table))


def test_labels_are_renamed_and_rare_ones_left_out(plant):
    table = read_table(str(plant({**PAIRS, "Cat/3.png": 5, "nan/1.png": 6, "owl/1.png": 7})))
    named = rename_labels(table, {"label": None}, {"Cat": "cat", "nan": ""}, 2)
    assert Counter(named.columns["label"]) == {"cat": 3, "dog": 2, "": 2} and named.classes["label"] == ("cat", "dog")
    assert "left out, with fewer than 2 images (data.min_images_per_class): owl (1)" in told(named)
    several = rename_labels(table, {"label": "|"}, {"Cat": "cat|big"})
    assert "cat|big" in several.columns["label"]
    assert "no image has 'Kat'. Did you mean 'cat'" in told(rename_labels(table, {"label": None}, {"Kat": "cat"}))
