"""Any number of images into one table: resumed after a kill, nothing overwritten, every file accounted for."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time

import pyarrow.parquet
import pytest
from click.testing import CliRunner
from filelock import FileLock

import tlkeras
from tlkeras.cli.main import main
from tlkeras.errors import DataError, ResourceError, RunError
from tlkeras.inference.jobs.job import Job, open_job
from tlkeras.inference.jobs.worker import ShardProcessor
from tlkeras.inference.sharded import predict_to_file
from tlkeras.runs.directory import open_run

pytestmark = pytest.mark.usefixtures("one_engine")


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
    """The result of a call that nothing interrupted, and its folder."""
    place = tmp_path_factory.mktemp("whole")
    run = open_run(str(trained), trained.parent)
    return predict_to_file(run, [draw_folder(trained, place)], place / "out.csv", shard_size=5), place


def test_every_file_has_a_row_or_a_reason(run, whole):
    result, place = whole
    rows = read(place / "out.csv")
    assert (result.rows, len(result.unreadable), result.resumed) == (32, 2, 0)
    assert list(rows[0]) == ["path", "label", "probability of day", "probability of night"]
    expected = {image.path: image for image in tlkeras.predict(run, [place / "photos"]).predictions}
    assert [row["path"] for row in rows] == list(expected)
    for row in rows:
        assert row["label"] == expected[row["path"]].label
        assert max(float(row["probability of day"]), float(row["probability of night"])) == pytest.approx(
            expected[row["path"]].probability, abs=1e-4
        )
    listed = read(result.rejected)
    assert {os.path.basename(row["path"]): row["code"] for row in listed} == {
        "text.png": "not-an-image",
        "cut.png": "damaged",
    }
    assert [(image.path, image.reason) for image in result.unreadable] == [(r["path"], r["reason"]) for r in listed]
    assert sorted(path.name for path in place.iterdir()) == ["out.csv", "out.rejected.csv", "photos"]


@pytest.mark.slow
def test_parquet_holds_the_same(run, whole, tmp_path):
    _, place = whole
    predict_to_file(run, [place / "photos"], tmp_path / "out.parquet", shard_size=7)
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert table.schema.field("probability of day").type == "float"
    rows = read(place / "out.csv")
    assert table["path"].to_pylist() == [row["path"] for row in rows]
    assert table["probability of day"].to_pylist() == pytest.approx([float(row["probability of day"]) for row in rows])


def test_predictions_before_an_interruption_or_a_full_disk_are_kept(run, folder, whole, tmp_path, monkeypatch):
    finish, out = Job.finish, tmp_path / "out.csv"

    def fail_at_second(error):
        calls = []

        def fail(self, shard, *found):
            calls.append(shard)
            if len(calls) >= 2:
                raise error
            finish(self, shard, *found)

        return fail

    monkeypatch.setattr(Job, "finish", fail_at_second(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        predict_to_file(run, [folder], out, shard_size=8)
    assert not out.exists()
    monkeypatch.setattr(Job, "finish", fail_at_second(OSError(28, os.strerror(28))))
    with pytest.raises(ResourceError, match="No space left on device. Finished shards are kept"):
        predict_to_file(run, [folder], out, shard_size=8)
    monkeypatch.setattr(Job, "finish", finish)
    (folder / "new.png").write_bytes(next((folder / "day").iterdir()).read_bytes())
    result = predict_to_file(run, [folder], out, shard_size=8)
    assert (result.rows, len(result.unreadable), result.resumed) == (33, 2, 16)
    found = {row["path"].removeprefix(str(folder)): row["label"] for row in read(out)}
    there = {row["path"].removeprefix(str(whole[1] / "photos")): row["label"] for row in read(whole[1] / "out.csv")}
    assert found.pop("/new.png") == "day" and found == there


@pytest.mark.slow
def test_a_disk_that_fills_while_the_table_is_written_keeps_all_predictions(run, folder, whole, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, os.strerror(28))

    out = tmp_path / "out.csv"
    with monkeypatch.context() as patch:
        patch.setattr("tlkeras.inference.sharded._open_table", refuse)
        with pytest.raises(ResourceError, match="Cannot write .*out.csv.*No space left on device.*What was computed"):
            predict_to_file(run, [folder], out, shard_size=8)
    assert not out.exists()
    result = predict_to_file(run, [folder], out, shard_size=8)
    assert (result.rows, result.resumed, result.engine) == (32, 34, None)
    same = (whole[1] / "out.csv").read_text().replace(str(whole[1]), str(tmp_path))
    assert out.read_text() == same


def test_what_is_refused(run, folder, tmp_path, monkeypatch):
    out = tmp_path / "out.csv"
    out.write_text("mine")
    with pytest.raises(DataError, match="already exists and is never overwritten"):
        predict_to_file(run, [folder], out)
    assert out.read_text() == "mine"
    with pytest.raises(DataError, match="ends in .csv or .parquet"):
        predict_to_file(run, [folder], tmp_path / "out.xlsx")
    other = tmp_path / "other.csv"
    with monkeypatch.context() as patch:
        patch.setattr(ShardProcessor, "compute", lambda self, paths, names: 1 / 0)
        with pytest.raises(RunError, match=r"could not be classified(.|\n)*0-000.png to .*ZeroDivisionError"):
            predict_to_file(run, [folder / "day"], other)
    job = tmp_path / ".other.csv.job/00000/job.json"
    job.write_text(job.read_text().replace(str(run.path.resolve()), "/runs/another"))
    with pytest.raises(DataError, match=r"begun by another run(.|\n)*run is '/runs/another' there(.|\n)*rm -r"):
        predict_to_file(run, [folder], other)
    with (
        FileLock(tmp_path / ".other.csv.job/.lock"),
        pytest.raises(ResourceError, match="Another process is writing this table"),
    ):
        predict_to_file(run, [folder], other)


@pytest.mark.slow
def test_kill_9_loses_no_finished_shard(trained, folder, whole, tmp_path):
    out = tmp_path / "out.csv"
    code = (
        "import sys; from tlkeras.inference.sharded import predict_to_file;"
        "predict_to_file(sys.argv[1], [sys.argv[2]], sys.argv[3], shard_size=1)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(trained), str(folder), str(out)])
    records = tmp_path / ".out.csv.job/00000/records"
    while process.poll() is None and len(list(records.glob("[0-9]*.json"))) < 3:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(open_job(records.parent).list_done())
    assert 3 <= done < 34 and not out.exists()
    result = predict_to_file(open_run(str(trained), trained.parent), [folder], out, shard_size=1)
    assert (result.rows, result.resumed) == (32, done)
    assert {row["path"] for row in read(out)} == {
        row["path"].replace(str(whole[1]), str(tmp_path)) for row in read(whole[1] / "out.csv")
    }


def test_the_command(trained, folder, tmp_path):
    done = CliRunner().invoke(main, ["predict", str(trained), str(folder), "--out", str(tmp_path / "out.csv")])
    assert done.exit_code == 3, done.output
    assert "Wrote 32 predictions to" in done.stdout and "Files that could not be read (2)" in done.stdout
    assert "images/s" in done.stderr
    done = CliRunner().invoke(main, ["predict", str(trained), "x.png", "--url", "u", "--out", "x.csv"])
    assert done.exit_code == 2
