"""CSV manifests: images, roles of columns, errors with line numbers."""

from __future__ import annotations

import os

import numpy as np
import pytest

from tlkeras.data.sources.folders import read_table
from tlkeras.data.sources.manifests import SourceOptions
from tlkeras.data.tables import ImageTable, build_dataset
from tlkeras.errors import DataError

PAIRS = {"cat/1.png": 1, "cat/2.png": 2, "dog/1.png": 3, "dog/2.png": 4}


def codes(table: ImageTable) -> dict[str, str]:
    return {os.path.relpath(bad.path, table.root): bad.code for bad in table.rejected}


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
    "no path": ("site,label\na.png,cat", "there is no column 'path', only site, label. Name it: --set data.path=site"),
    "doubled column": ("path,label,label\na,b,c", "column 'label' appears twice"),
    "column without name": ("path,,label\na,b,c", "column 2 has no name"),
    "only a header": ("path,label\n", r"has a header but no rows. Received: .*a header and a line per image"),
    "empty": ("", "The manifest is empty"),
    "ragged": ("path,label\ncat/1.png,cat,x\ncat/2.png", r"(?s)line 2: 3 fields instead of 2.*line 3: 1 fields"),
    "no paths": ("path,label\n,cat\n\0,dog", "(?s)line 2: the path is empty.*line 3: the path contains a zero byte"),
    "itself": ("path,label\n.,cat", "(?s)No image of the manifest.*not a regular file"),
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
        "not in UTF-8. Received: .*byte 14. .*Save it as UTF-8",
    ),
}


@pytest.mark.parametrize("row", BAD_MANIFESTS)
def test_bad_manifests(plant, row):
    text, message = BAD_MANIFESTS[row]
    with pytest.raises(DataError, match=message):
        read_table(manifest(plant, text))


def test_many_problems_are_counted(plant):
    text = "\n".join(["path,label", *(f"{number}.png,cat,x" for number in range(50))])
    with pytest.raises(DataError, match=r"50 times, such as: line 2: .*; line 3: .*; line 4: .*") as caught:
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
            read_table(manifest(plant, "\n".join([*LINES, f"{path},dog"])), options=SourceOptions(links="refuse"))
        assert len(read_table(manifest(plant, "\n".join([*LINES, f"{path},dog"])))) == 5


def test_all_unknown_columns_at_once(plant):
    table = read_table(manifest(plant, "\n".join(LINES)))
    with pytest.raises(
        DataError, match=r"(?s)no column 'lable'. Did you mean 'label'\?.*no column 'site'. Valid: label"
    ):
        build_dataset(table, ["lable"], group="site")


def test_bad_weights_are_all_named(plant):
    rows = ["path,label,weight", "cat/1.png,cat,-1", "cat/2.png,cat,x", "dog/1.png,dog,nan", "dog/2.png,dog,1"]
    with pytest.raises(
        DataError, match=r"(?s)'weight' of 'cat/1\.png' is '-1'.*'cat/2\.png' is 'x'.*'dog/1\.png' is 'nan'"
    ):
        build_dataset(read_table(manifest(plant, "\n".join(rows))))
    zeros = ["path,label,weight", *(f"{path},{path[:3]},0" for path in PAIRS)]
    with pytest.raises(DataError, match="every weight is 0"):
        build_dataset(read_table(manifest(plant, "\n".join(zeros))))
