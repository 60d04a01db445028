"""Features and predictions in shards, by processes and by Ray, one of them killed."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet
import pytest
from click.testing import CliRunner

import tlkeras
from tlkeras.cli.main import main
from tlkeras.inference.jobs.job import open_job

SMALL = ["--set", "backbone.name=tiny", "--set", "backbone.weights=none", "--shard-size", "8"]
COMMAND = [sys.executable, "-c", "from tlkeras.cli.main import main; main()"]
PATIENCE = 240.0  # seconds for one command on a busy machine


def extract(out, *more):
    return CliRunner().invoke(main, ["features", "extract", "photos", "--out", str(out), *SMALL, *more])


def test_features_are_those_that_training_sees(workplace):
    done = extract("out", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["images"], result["rows"], result["shards"], result["computed"]) == (32, 32, 4, 32)
    table = pyarrow.parquet.read_table("out/parts")
    from tlkeras.config.recipe import load_recipe
    from tlkeras.data.inspection import validate_images
    from tlkeras.training import builders

    recipe = load_recipe("mine.yaml")
    dataset = validate_images(builders.read_dataset(recipe))
    experiment = builders.Experiment(recipe, dataset, builders.build_feature_extractor(recipe))
    with builders.extract_features(experiment) as features:
        expected = np.asarray(features.outputs[0], np.float32)
    assert table["image"].to_pylist() == dataset.keys.tolist()
    np.testing.assert_allclose(np.array(table["features"].to_pylist(), np.float32), expected, atol=2e-3)
    again = extract("out")
    assert again.exit_code == 0 and "4 of 4 shards" in again.stdout and "0 in" in again.stdout


def test_predictions_in_shards_are_those_of_the_run(trained, tmp_path):
    photos = trained.parent.parent / "photos"
    result = tlkeras.predict_in_shards(str(trained), [photos], tmp_path / "out", shard_size=20)
    assert (result.rows, result.shards, result.unreadable) == (32, 2, ())
    rows = pyarrow.parquet.read_table(tmp_path / "out/parts").to_pylist()
    for row, expected in zip(rows, tlkeras.predict(str(trained), [photos]).predictions, strict=True):
        assert expected.path.endswith(row["image"]) and row["label"] == expected.label
        for best in expected.top:
            assert row[f"probability of {best.label}"] == pytest.approx(best.probability, abs=1e-4)


def test_shards_of_predictions_need_a_folder_and_an_engine(workplace):
    for options in (["--engine", "local"], ["--workers", "2"]):
        done = CliRunner().invoke(main, ["predict", "latest", "photos", *options])
        assert done.exit_code == 2 and "need a folder and an engine" in done.output


@pytest.mark.slow
def test_another_recipe_or_version_is_refused_by_what_differs(workplace):
    assert extract("out").exit_code == 0
    other = extract("out", "--set", "backbone.size=48")
    assert other.exit_code == 5 and "size is 32 there and 48 here" in other.output
    plan = json.loads((workplace / "out/job.json").read_text())
    plan["facts"]["versions"]["keras"] = "2.0"
    (workplace / "out/job.json").write_text(json.dumps(plan))
    older = extract("out")
    assert older.exit_code == 5 and "'keras': '2.0'" in older.output


def test_a_failing_shard_ends_in_exit_code_5_and_bad_engines_are_named(workplace, monkeypatch):
    from tlkeras.inference.jobs.worker import ShardProcessor

    compute = ShardProcessor.compute

    def fail(self, paths, names):
        if "day/0-009.png" in names:
            raise ValueError("boom")
        return compute(self, paths, names)

    monkeypatch.setattr(ShardProcessor, "compute", fail)
    done = extract("out")
    assert done.exit_code == 5
    assert "3 of 4 shards" in done.stdout and "day/0-008.png to day/0-015.png" in done.stdout and "boom" in done.stdout
    wrong = extract("other", "--engine", "rai")
    assert wrong.exit_code == 1 and "Did you mean 'ray'?" in wrong.output


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_extra_is_named(workplace):
    done = extract("out", "--engine", "ray")
    assert done.exit_code == 8 and 'pip install "tlkeras[ray]"' in done.output


def kill_one(folder, process, find):
    """Kill a worker as soon as the first shard is done; return its id."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        if list(folder.glob("records/[0-9]*.json")) and (found := find(process.pid)):
            os.kill(found, signal.SIGKILL)
            return found
        time.sleep(0.002)
    raise AssertionError("no worker was found")


def find_descendants(parent):
    children = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and read_parent(int(pid)) == parent]
    return [*children, *(grandchild for child in children for grandchild in find_descendants(child))]


def read_parent(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except OSError:
        return None


def find_process(parent):
    return next(iter(find_descendants(parent)), None)


def find_actor(parent):
    for pid in find_descendants(parent):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if b"ray::" in (name := file.read()) and b"MapWorker" in name:
                    return pid
        except OSError:
            continue
    return None


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    "engine, find",
    [
        ("local", find_process),
        pytest.param(
            "ray",
            find_actor,
            marks=pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason='needs "tlkeras[ray]"'),
        ),
    ],
)
def test_two_workers_one_of_them_killed_give_the_bytes_of_a_single_process(engine, find, workplace, draw_more_photos):
    draw_more_photos(workplace / "photos", count=600, seed=1)
    (workplace / "photos" / "day" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    assert extract("one").exit_code == 3
    with open("errors.txt", "wb") as errors:
        arguments = ["features", "extract", "photos", "--out", "two", *SMALL, "--engine", engine, "--workers", "2"]
        process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=errors)
        kill_one(workplace / "two", process, find)
        assert process.wait(PATIENCE) == 3, (workplace / "errors.txt").read_text()[-2000:]
    one, two = open_job(workplace / "one"), open_job(workplace / "two")
    assert one.shards == two.shards == 155
    for shard in range(one.shards):
        assert one.part(shard).read_bytes() == two.part(shard).read_bytes(), shard
    assert two.summarise().rejected == 1
    listed = [[path.name for path in (workplace / name / "rejected").iterdir()] for name in ("one", "two")]
    assert listed[0] == listed[1] and len(listed[0]) == 1
