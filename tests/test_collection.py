"""Any number of pictures into one table: resumed after a kill, nothing overwritten, every file accounted for."""

import csv
import json
import os
import shutil

import pyarrow.parquet
import pytest
from click.testing import CliRunner

import tlkeras
from tlkeras import collection
from tlkeras.cli import main
from tlkeras.errors import DataError, MissingExtraError, ResourceError
from tlkeras.runs import open_run


@pytest.fixture
def run(trained):
    return open_run(str(trained), trained.parent)


@pytest.fixture
def folder(trained, tmp_path):
    """16 pictures of each class, a text named like a picture, and a damaged one."""
    shutil.copytree(trained.parent.parent / "photos", tmp_path / "photos")
    (tmp_path / "photos/text.png").write_text("no picture")
    picture = next((tmp_path / "photos/day").iterdir()).read_bytes()
    (tmp_path / "photos/cut.png").write_bytes(picture[:-60])
    return tmp_path / "photos"


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_every_file_is_answered_or_listed(run, folder, tmp_path):
    result = collection.predict_to_file(run, [folder], tmp_path / "out.csv", part=5)
    rows = read(tmp_path / "out.csv")
    assert (result["rows"], result["unreadable"], result["resumed"]) == (32, 2, 0)
    assert list(rows[0]) == ["path", "label", "probability of day", "probability of night"]
    expected = {row["path"]: row for row in tlkeras.predict(str(run.path), [folder])["predictions"]}
    assert {row["path"] for row in rows} == set(expected)
    for row in rows:
        assert row["label"] == expected[row["path"]]["label"]
        assert max(float(row["probability of day"]), float(row["probability of night"])) == pytest.approx(
            expected[row["path"]]["probability"], abs=1e-4
        )
    listed = {os.path.basename(row["path"]): row["code"] for row in read(result["rejected"])}
    assert listed == {"text.png": "not-a-picture", "cut.png": "damaged"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.rejected.csv", "photos"]


def test_parquet_holds_the_same(run, folder, tmp_path):
    collection.predict_to_file(run, [folder], tmp_path / "out.csv")
    (tmp_path / "out.rejected.csv").unlink()
    collection.predict_to_file(run, [folder], tmp_path / "out.parquet", part=7)
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert table.schema.field("probability of day").type == "float"
    rows = read(tmp_path / "out.csv")
    assert table["path"].to_pylist() == [row["path"] for row in rows]
    assert table["probability of day"].to_pylist() == pytest.approx([float(row["probability of day"]) for row in rows])


def test_a_killed_call_is_gone_on_with(run, folder, tmp_path, monkeypatch):
    collection.predict_to_file(run, [folder], tmp_path / "whole.csv")
    write, calls = collection._write_part, []

    def die(path, rows):
        calls.append(path)
        if len(calls) >= 3:
            raise KeyboardInterrupt
        write(path, rows)

    monkeypatch.setattr(collection, "_write_part", die)
    with pytest.raises(KeyboardInterrupt):
        collection.predict_to_file(run, [folder], tmp_path / "out.csv", part=8)
    assert not (tmp_path / "out.csv").exists()
    monkeypatch.setattr(collection, "_write_part", write)
    (folder / "new.png").write_bytes(next((folder / "day").iterdir()).read_bytes())
    result = collection.predict_to_file(run, [folder], tmp_path / "out.csv", part=8)
    assert (result["rows"], result["unreadable"], result["resumed"]) == (33, 2, 16)
    whole = {row["path"]: row for row in read(tmp_path / "whole.csv")}
    assert {row["path"]: row for row in read(tmp_path / "out.csv") if "new" not in row["path"]} == whole


def test_full_disk_keeps_what_was_answered(run, folder, tmp_path, monkeypatch):
    replace, calls = os.replace, []

    def fail(source, target):
        calls.append(target)
        if len(calls) >= 3:  # the note, one part, and then no room
            raise OSError(28, os.strerror(28))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(collection.os, "replace", fail)
        with pytest.raises(ResourceError, match="No space left on device. What was answered is kept"):
            collection.predict_to_file(run, [folder], tmp_path / "out.csv", part=10)
    assert collection.predict_to_file(run, [folder], tmp_path / "out.csv", part=10)["resumed"] == 10


def test_what_is_refused(run, folder, tmp_path, monkeypatch):
    out = tmp_path / "out.csv"
    out.write_text("mine")
    with pytest.raises(DataError, match="never overwritten"):
        collection.predict_to_file(run, [folder], out)
    assert out.read_text() == "mine"
    with pytest.raises(DataError, match="ends in .csv or .parquet"):
        collection.predict_to_file(run, [folder], tmp_path / "out.xlsx")
    parts = tmp_path / ".other.csv.parts"
    parts.mkdir()
    (parts / "job.json").write_text(json.dumps({"run": "another", "model": ""}))
    with pytest.raises(DataError, match="must be finished by the run that began it"):
        collection.predict_to_file(run, [folder], tmp_path / "other.csv")
    monkeypatch.setattr(collection.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "tlkeras\[parquet\]"'):
        collection.predict_to_file(run, [folder], tmp_path / "out.parquet")


def test_the_command(trained, folder, tmp_path):
    done = CliRunner().invoke(main, ["predict", str(trained), str(folder), "--out", str(tmp_path / "out.csv")])
    assert done.exit_code == 3, done.output
    assert "Wrote 32 predictions to" in done.stdout and "2 could not be read" in done.stdout
    assert "pictures/s" in done.stderr
    done = CliRunner().invoke(main, ["predict", str(trained), "x.png", "--url", "u", "--out", "x.csv"])
    assert done.exit_code == 2
