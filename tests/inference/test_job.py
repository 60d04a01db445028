"""Jobs: shards complete or absent, computed by any worker with the same result, given up after three attempts."""

import csv
import errno
import json
import os
import signal
import sys

import numpy as np
import pyarrow.parquet
import pytest

from tlkeras.data.headers import InvalidImage, Rendering
from tlkeras.errors import DataError, ResourceError, RunError
from tlkeras.inference.jobs import job as jobs
from tlkeras.inference.jobs.engines import run_processes
from tlkeras.inference.jobs.job import open_job, plan_job
from tlkeras.inference.jobs.worker import ShardProcessor, feature_table, process_shards

FACTS = {"kind": "features", "model": "abc", "size": 4}


class MeanEngine:
    """The mean of each channel, and a NaN for an image that is all black."""

    name = "mean"

    def run(self, batches):
        for index, images in batches:
            means = images.mean((1, 2)).astype(np.float32)
            yield index, [np.where(means.any(axis=1, keepdims=True), means, np.nan)]


@pytest.fixture
def photos(workplace):
    """32 images, then one that is no image, one cut off, one that the network cannot take."""
    from PIL import Image

    folder = workplace / "photos"
    (folder / "zz-junk.png").write_bytes(b"junk")
    whole = (folder / "day" / "0-000.png").read_bytes()
    (folder / "zz-cut.png").write_bytes(whole[:-200])
    Image.new("RGB", (32, 32)).save(folder / "zz-black.png")
    return folder


def list_photos(folder):
    return sorted(str(path) for path in folder.rglob("*.png"))


def plan(photos, out, size=10, facts=FACTS):
    return plan_job(out, facts, str(photos), lambda rejected: list_photos(photos), size)


def make_processor():
    return ShardProcessor(MeanEngine(), 8, Rendering(), feature_table("float16", 3))


def test_a_job_writes_every_image_once_and_lists_the_bad_ones(photos, tmp_path):
    job = plan(photos, tmp_path / "out")
    assert (job.images, job.shards) == (35, 4)
    advanced = []
    process_shards(job, make_processor(), advanced.append)
    summary = job.summarise()
    assert advanced == [10, 10, 10, 5]
    assert (summary.rows, summary.rejected, summary.done) == (32, 3, 4)
    table = pyarrow.parquet.read_table(tmp_path / "out" / "parts")
    assert table["image"].to_pylist() == [os.path.relpath(path, photos) for path in list_photos(photos)[:32]]
    with open(tmp_path / "out" / "rejected" / "00003.csv", newline="") as file:
        listed = [(row["path"], row["code"]) for row in csv.DictReader(file)]
    assert listed == [("zz-black.png", "not-finite"), ("zz-cut.png", "damaged"), ("zz-junk.png", "not-an-image")]
    assert [(bad.path, bad.code) for bad in job.list_rejected()] == listed
    row = table.slice(3, 1).to_pylist()[0]
    from PIL import Image

    pixels = np.asarray(Image.open(photos / row["image"]).resize((8, 8)))
    assert np.allclose(row["features"], pixels.mean((0, 1)), atol=4)
    assert json.loads((tmp_path / "out" / "done.json").read_text())["sha256"] == summary.sha256


def test_shards_in_any_order_and_done_twice_are_the_same_bytes(photos, tmp_path):
    first, second = plan(photos, tmp_path / "one", 20), plan(photos, tmp_path / "two", 20)
    process_shards(first, make_processor())
    for shard in (1, 0, 1):
        paths = second.read_paths(shard)
        second.finish(shard, *make_processor().compute(paths, [second.name(path) for path in paths]))
    assert first.summarise().sha256 == second.summarise().sha256
    assert all(first.part(shard).read_bytes() == second.part(shard).read_bytes() for shard in range(2))


def test_an_unfinished_job_is_resumed_and_damaged_parts_are_computed_again(photos, tmp_path):
    job = plan(photos, tmp_path / "out")
    process_shards(job, NamingProcessor())
    digest = job.summarise().sha256
    job.part(0).write_bytes(job.part(0).read_bytes()[:-1])
    content = bytearray(job.part(1).read_bytes())
    content[20] ^= 1
    job.part(1).write_bytes(content)
    job.part(2).unlink()
    again = plan(photos, tmp_path / "out")
    assert again.drop_damaged() == [0, 2]
    assert again.drop_damaged(thorough=True) == [1]
    advanced = []
    process_shards(again, NamingProcessor(), advanced.append)
    assert advanced == [10, 10, 10]
    assert again.summarise().sha256 == digest


class NamingProcessor:
    """Rows of names alone, without a network."""

    def compute(self, paths, names):
        return pyarrow.table({"image": names}), []


BOOM = ValueError("boom")


class BreakingProcessor(NamingProcessor):
    """Fails on one image, `times` times."""

    def __init__(self, name, times, error=BOOM):
        self.name, self.left, self.error = name, times, error

    def compute(self, paths, names):
        if self.name in names and self.left:
            self.left -= 1
            raise self.error
        return super().compute(paths, names)


def test_a_shard_that_fails_twice_is_done_and_one_that_fails_three_times_is_named(photos, tmp_path):
    job = plan(photos, tmp_path / "twice")
    process_shards(job, BreakingProcessor("day/0-012.png", 2))
    assert job.list_failures() == [] and job.summarise().done == 4
    job = plan(photos, tmp_path / "thrice")
    process_shards(job, BreakingProcessor("day/0-012.png", 3))
    (failure,) = job.list_failures()
    assert (failure.shard, failure.first, failure.error) == (1, "day/0-010.png", "ValueError: boom")
    summary = job.summarise()
    assert (summary.done, summary.sha256) == (3, None)
    job.forget_attempts()
    process_shards(job, NamingProcessor())
    assert job.summarise().done == 4


def test_a_full_disk_stops_the_worker_and_counts_as_no_attempt(photos, tmp_path):
    job = plan(photos, tmp_path / "out")
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ResourceError, match="Cannot write results.*No space left.*Finished shards are kept"):
        process_shards(job, BreakingProcessor("day/0-012.png", 1, full))
    assert job.list_done() == [0] and job.list_failures() == []
    process_shards(job, NamingProcessor())
    assert job.summarise().done == 4


def test_a_worker_waits_for_the_shard_of_another_until_that_one_dies(photos, tmp_path, monkeypatch):
    job = plan(photos, tmp_path / "out")
    claim = job.claim(2)
    assert claim.__enter__() is True
    seen = []

    def wait(seconds):
        seen.append(job.list_done())
        claim.__exit__(None, None, None)

    monkeypatch.setattr("tlkeras.inference.jobs.worker.time.sleep", wait)
    process_shards(job, NamingProcessor())
    assert seen == [[0, 1, 3]]
    assert job.list_done() == [0, 1, 2, 3]


def test_another_job_is_refused_with_every_difference(photos, tmp_path):
    plan(photos, tmp_path / "out")
    with pytest.raises(
        RunError, match=r"holds another job(.|\n)*model is 'abc' there and 'xyz' here\n.*size is 4 there"
    ):
        plan(photos, tmp_path / "out", facts={**FACTS, "model": "xyz", "size": 8})


def test_folders_with_other_things_in_them_are_left_alone(photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(RunError, match=r"already holds other files.*'thesis.tex'"):
        plan(photos, tmp_path / "out")
    with pytest.raises(DataError, match="No image was found"):
        plan_job(tmp_path / "none", FACTS, "nowhere", list, 10)
    with pytest.raises(RunError, match="holds no job that this version can read"):
        open_job(tmp_path / "none")
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="Cannot write the job's folder"):
        plan(photos, tmp_path / "file")


def test_a_plan_that_was_killed_is_made_again(photos, tmp_path, monkeypatch):
    def die(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "_write_json", die)
        with pytest.raises(MemoryError):
            plan(photos, tmp_path / "out", size=3)
    job = plan(photos, tmp_path / "out")
    assert [len(job.read_paths(shard)) for shard in range(job.shards)] == [10, 10, 10, 5]


def test_names_that_are_not_utf8_survive(tmp_path):
    root = tmp_path / "odd"
    root.mkdir()
    path = os.path.join(os.fsencode(root), b"line\nbreak \xff.png")
    job = plan_job(tmp_path / "out", FACTS, str(root), lambda rejected: [os.fsdecode(path)], 10)
    assert job.read_paths(0) == [os.fsdecode(path)]
    job.finish(0, pyarrow.table({"a": []}), [InvalidImage(os.fsdecode(path), "damaged", "it is cut off")])
    assert "break" in (tmp_path / "out" / "rejected" / "00000.csv").read_text()


WORKER = """
import os, signal, sys, time, pathlib
import pyarrow
from tlkeras.inference.jobs.job import open_job
folder = pathlib.Path(sys.argv[1])
job = open_job(folder)
while pending := job.list_pending():
    for shard in pending:
        with job.claim(shard) as free:
            if free and not job.is_done(shard):
                job.note_start(shard)
                if shard in (1, 3) and (shard == 3 or not (folder.parent / "died").exists()):
                    (folder.parent / "died").touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                job.finish(shard, pyarrow.table({"image": job.read_paths(shard)}), [])
    time.sleep(0.02)
"""


def test_killed_processes_are_replaced_and_a_shard_that_kills_them_is_given_up(photos, tmp_path):
    job = plan(photos, tmp_path / "out")
    run_processes(job, ["-c", WORKER, str(job.folder)], 2)
    assert job.list_done() == [0, 1, 2]
    (failure,) = job.list_failures()
    assert (failure.shard, failure.error) == (3, "the worker died")


def test_when_every_worker_fails_its_message_and_exit_code_are_raised(photos, tmp_path):
    job = plan(photos, tmp_path / "out")
    with pytest.raises(ResourceError, match=r"Every worker of the job has failed.*6, 6; no room here"):
        run_processes(job, ["-c", "import sys; print('no room here', file=sys.stderr); sys.exit(6)"], 2)
    died = f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})"
    with pytest.raises(RunError, match=r"exit codes -9; no message"):
        run_processes(job, ["-c", died], 1)
    assert sys.executable
