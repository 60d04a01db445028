"""Any number of images into one table: resumed after a kill, nothing overwritten, every file accounted for."""

import csv
import json
import os
import shutil

import pyarrow.parquet
import pytest
from click.testing import CliRunner

import tlkeras
from tlkeras.cli.main import main
from tlkeras.errors import DataError, MissingExtraError, ResourceError
from tlkeras.inference import predict_to_file
from tlkeras.runs.directory import open_run


@pytest.fixture(autouse=True, scope="module")
def one_engine(trained):
    """The engine is made once for all tests here."""
    with pytest.MonkeyPatch.context() as patch:
        model = predict_to_file.load_model(open_run(str(trained), trained.parent))
        engine = predict_to_file.make_engine(model)
        patch.setattr(predict_to_file, "load_model", lambda run: model)
        patch.setattr(predict_to_file, "make_engine", lambda model: engine)
        yield


@pytest.fixture
def run(trained):
    return open_run(str(trained), trained.parent)


@pytest.fixture
def folder(trained, tmp_path):
    return draw_folder(trained, tmp_path)


def draw_folder(trained, place):
    """16 images of each class, a text named like an image, and a damaged one."""
    shutil.copytree(trained.parent.parent / "photos", place / "photos")
    (place / "photos/text.png").write_text("no image")
    image = next((place / "photos/day").iterdir()).read_bytes()
    (place / "photos/cut.png").write_bytes(image[:-60])
    return place / "photos"


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(trained, one_engine, tmp_path_factory):
    """What a call said that nothing came between, and its folder."""
    place = tmp_path_factory.mktemp("whole")
    run = open_run(str(trained), trained.parent)
    return predict_to_file.predict_to_file(run, [draw_folder(trained, place)], place / "out.csv", part=5), place


def test_every_file_is_answered_or_listed(run, whole):
    result, place = whole
    rows = read(place / "out.csv")
    assert (result["rows"], result["unreadable"], result["resumed"]) == (32, 2, 0)
    assert list(rows[0]) == ["path", "label", "probability of day", "probability of night"]
    expected = {row["path"]: row for row in tlkeras.predict(str(run.path), [place / "photos"])["predictions"]}
    assert {row["path"] for row in rows} == set(expected)
    for row in rows:
        assert row["label"] == expected[row["path"]]["label"]
        assert max(float(row["probability of day"]), float(row["probability of night"])) == pytest.approx(
            expected[row["path"]]["probability"], abs=1e-4
        )
    listed = {os.path.basename(row["path"]): row["code"] for row in read(result["rejected"])}
    assert listed == {"text.png": "not-a-image", "cut.png": "damaged"}
    assert sorted(path.name for path in place.iterdir()) == ["out.csv", "out.rejected.csv", "photos"]


def test_parquet_holds_the_same(run, whole, tmp_path):
    _, place = whole
    predict_to_file.predict_to_file(run, [place / "photos"], tmp_path / "out.parquet", part=7)
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert table.schema.field("probability of day").type == "float"
    rows = read(place / "out.csv")
    assert table["path"].to_pylist() == [row["path"] for row in rows]
    assert table["probability of day"].to_pylist() == pytest.approx([float(row["probability of day"]) for row in rows])


def test_what_was_answered_before_a_kill_or_a_full_disk_is_kept(run, folder, whole, tmp_path, monkeypatch):
    write = predict_to_file._write_part

    def failing(error, at):
        calls = []

        def fail(path, rows):
            calls.append(path)
            if len(calls) >= at:
                raise error
            write(path, rows)

        return fail

    monkeypatch.setattr(predict_to_file, "_write_part", failing(KeyboardInterrupt(), 2))
    with pytest.raises(KeyboardInterrupt):
        predict_to_file.predict_to_file(run, [folder], tmp_path / "out.csv", part=8)
    assert not (tmp_path / "out.csv").exists()
    monkeypatch.setattr(predict_to_file, "_write_part", failing(OSError(28, os.strerror(28)), 2))
    with pytest.raises(ResourceError, match="No space left on device. What was answered is kept"):
        predict_to_file.predict_to_file(run, [folder], tmp_path / "out.csv", part=8)
    monkeypatch.setattr(predict_to_file, "_write_part", write)
    (folder / "new.png").write_bytes(next((folder / "day").iterdir()).read_bytes())
    result = predict_to_file.predict_to_file(run, [folder], tmp_path / "out.csv", part=8)
    assert (result["rows"], result["unreadable"], result["resumed"]) == (33, 2, 16)
    said = {row["path"].removeprefix(str(folder)): row["label"] for row in read(tmp_path / "out.csv")}
    there = {row["path"].removeprefix(str(whole[1] / "photos")): row["label"] for row in read(whole[1] / "out.csv")}
    assert said.pop("/new.png") == "day" and said == there


def test_what_is_refused(run, folder, tmp_path, monkeypatch):
    out = tmp_path / "out.csv"
    out.write_text("mine")
    with pytest.raises(DataError, match="never overwritten"):
        predict_to_file.predict_to_file(run, [folder], out)
    assert out.read_text() == "mine"
    with pytest.raises(DataError, match="ends in .csv or .parquet"):
        predict_to_file.predict_to_file(run, [folder], tmp_path / "out.xlsx")
    parts = tmp_path / ".other.csv.parts"
    parts.mkdir()
    (parts / "job.json").write_text(json.dumps({"run": "another", "model": ""}))
    with pytest.raises(DataError, match="must be finished by the run that began it"):
        predict_to_file.predict_to_file(run, [folder], tmp_path / "other.csv")
    monkeypatch.setattr(predict_to_file.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "tlkeras\[parquet\]"'):
        predict_to_file.predict_to_file(run, [folder], tmp_path / "out.parquet")


def test_the_command(trained, folder, tmp_path):
    done = CliRunner().invoke(main, ["predict", str(trained), str(folder), "--out", str(tmp_path / "out.csv")])
    assert done.exit_code == 3, done.output
    assert "Wrote 32 predictions to" in done.stdout and "2 could not be read" in done.stdout
    assert "images/s" in done.stderr
    done = CliRunner().invoke(main, ["predict", str(trained), "x.png", "--url", "u", "--out", "x.csv"])
    assert done.exit_code == 2
