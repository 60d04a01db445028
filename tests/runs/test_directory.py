"""Run directories: nothing overwritten, nothing half-written, one trainer each."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tlkeras.errors import ResourceError, RunError
from tlkeras.runs.directory import (
    create_run,
    find_resumable_run,
    list_runs,
    log_to_file,
    open_run,
    remove_run,
    rename_run,
)


def finish(root, name):
    run = create_run(root, name)
    run.finish()
    return run


def test_numbers_go_up_and_nothing_is_reused(tmp_path):
    names = [create_run(tmp_path, "x").name for _ in range(3)]
    assert names == ["x-01", "x-02", "x-03"]
    (tmp_path / "x-02").rename(tmp_path / "elsewhere")
    assert create_run(tmp_path, "x").name == "x-04"
    assert create_run(tmp_path, "x-quick").name == "x-quick-01"


def test_latest_is_the_last_that_finished(tmp_path):
    with pytest.raises(RunError, match="No finished runs in .*tlkeras train quickstart"):
        open_run("latest", tmp_path)
    first, second = finish(tmp_path, "a"), finish(tmp_path, "b")
    create_run(tmp_path, "c")
    assert open_run("latest", tmp_path).path == second.path
    for reference in ("a-01", str(first.path)):
        assert open_run(reference, tmp_path).path == first.path
    (second.path / "manifest.json").unlink()  # the pointer's run is gone: the newest finished one that is left
    assert open_run("latest", tmp_path).path == first.path


def test_unfinished_and_unknown_runs(tmp_path):
    create_run(tmp_path, "quickstart")
    with pytest.raises(RunError, match="quickstart-01 has not finished: it is killed"):
        open_run("quickstart-01", tmp_path)
    with pytest.raises(RunError, match="No run called 'quickstart-1'. Did you mean 'quickstart-01'?"):
        open_run("quickstart-1", tmp_path)


def test_damaged_manifest_is_said(tmp_path):
    run = finish(tmp_path, "a")
    (run.path / "manifest.json").write_text('{"state": ')
    with pytest.raises(RunError, match="a-01 has not finished: it is damaged"):
        open_run("a-01", tmp_path)


def test_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path):
    run = create_run(tmp_path, "a")
    run.write_text("x.txt", "old")
    with pytest.raises(ResourceError, match=r"Cannot write .*x.txt.*No space left"), run.replacing("x.txt") as aside:
        aside.write_text("half of the n")
        raise OSError(28, os.strerror(28))
    assert (run.path / "x.txt").read_text() == "old"
    assert sorted(path.name for path in run.path.iterdir()) == ["environment.json", "manifest.json", "x.txt"]


def test_tables_and_arrays_come_back(tmp_path):
    run = create_run(tmp_path, "a")
    run.write_table("t.csv", ("a", "b"), [(1, "x,y"), (2, "ü")])
    assert (run.path / "t.csv").read_text(encoding="utf-8") == 'a,b\n1,"x,y"\n2,ü\n'
    run.write_arrays("n.npz", values=np.arange(3))
    assert run.read_arrays("n.npz")["values"].tolist() == [0, 1, 2]
    (run.path / "n.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(RunError, match="n.npz of the run .* cannot be read"):
        run.read_arrays("n.npz")
    with pytest.raises(RunError, match="nothing.bin of the run .* cannot be read"):
        run.read_bytes("nothing.bin")


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        create_run(tmp_path, "a").write_json("x.json", {"a": float("nan")})


def test_second_trainer_is_kept_out(tmp_path):
    run = create_run(tmp_path, "a")
    imports = "import sys; from pathlib import Path; from tlkeras.runs.directory import Run"
    code = f"{imports}\nwith Run(Path(sys.argv[1])).locked(): pass"
    command = [sys.executable, "-c", code, str(run.path)]
    with run.locked():
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Another process is still writing this run" in refused.stderr
    subprocess.run(command, check=True)


def test_phases_add_up_and_are_kept(tmp_path):
    run = create_run(tmp_path, "a")
    for _ in range(2):
        with run.phase("work"):
            pass
    run.finish()
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert set(manifest["phases"]) == {"work"}
    assert manifest["state"] == "finished"


def test_list_is_by_age(tmp_path):
    assert list_runs(tmp_path / "nowhere") == ()
    for name in ("b", "a"):
        run = create_run(tmp_path, name)
        run.update_manifest(created={"b": "2026-01-01", "a": "2026-01-02"}[name])
    assert [run.name for run in list_runs(tmp_path)] == ["b-01", "a-01"]


def test_root_that_is_a_file(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(ResourceError, match="Cannot write a run directory"):
        create_run(tmp_path / "runs", "a")


def test_state_tells_the_killed_from_the_running(tmp_path):
    run = create_run(tmp_path, "a")
    with run.locked():
        assert run.read_state() == "running"
    assert run.read_state() == "killed"
    run.finish()
    assert run.read_state() == "finished"


def stop(root, name, state, created):
    run = create_run(root, name)
    run.update_manifest(state=state, created=created)
    return run


def test_latest_unfinished_is_the_newest_that_stopped(tmp_path):
    with pytest.raises(
        RunError, match=f"No run was interrupted.*Received: none in {tmp_path}. Start one with: tlkeras"
    ):
        find_resumable_run("latest", tmp_path)
    for number, state in enumerate(("failed", "interrupted", "running")):  # as nobody is at it, the last was killed
        run = stop(tmp_path, state, state, f"2026-01-0{number}")
        assert find_resumable_run("latest", tmp_path).path == run.path
    stop(tmp_path, "newer", "finished", "2026-01-05")
    damaged = stop(tmp_path, "damaged", "failed", "2026-01-06")
    (damaged.path / "manifest.json").write_text("{")
    with run.locked():
        assert find_resumable_run("latest", tmp_path).name == "interrupted-01"
    for reference in ("failed-01", str(tmp_path / "failed-01")):
        assert find_resumable_run(reference, tmp_path).path == tmp_path / "failed-01"


def test_what_cannot_be_resumed_says_why(tmp_path):
    run = finish(tmp_path, "done")
    with pytest.raises(
        RunError, match="done-01 has already finished, so there is nothing to resume.*tlkeras evaluate done-01"
    ):
        find_resumable_run("done-01", tmp_path)
    with pytest.raises(RunError, match="none in"):
        find_resumable_run("latest", tmp_path)
    with pytest.raises(RunError, match="No run called 'dome-01'. Did you mean 'done-01'?"):
        find_resumable_run("dome-01", tmp_path)
    (run.path / "manifest.json").write_text("[]")
    with pytest.raises(RunError, match="done-01 cannot be resumed: its manifest.json is damaged.*tlkeras train"):
        find_resumable_run("done-01", tmp_path)
    busy = create_run(tmp_path, "busy")
    with busy.locked():
        with pytest.raises(RunError, match="busy-01 is still running.*Wait for it"):
            find_resumable_run("busy-01", tmp_path)
        with pytest.raises(RunError, match=f"none in {tmp_path}, busy-01 is running"):
            find_resumable_run("latest", tmp_path)


def test_resumed_run_goes_on_where_it_was(tmp_path):
    created = stop(tmp_path, "a", "failed", "2026-01-01")
    created.update_manifest(phases={"extract": 1.5, "fit": 2.0}, error="OSError: no room", examples=7)
    for times in (1, 2):
        run = find_resumable_run("latest", tmp_path)
        run.phases["extract"] = 0.25
        with run.locked():
            run.resume()
            assert run.read_state() == "running"
            assert len(run.manifest["resumed"]) == times
        assert run.phases == {"extract": 1.5 + 0.25 * times, "fit": 2.0}
        assert run.read_state() == "killed"
        run.update_manifest(phases=run.phases)
    manifest = run.manifest
    assert (manifest["created"], manifest["process"], manifest["examples"]) == ("2026-01-01", os.getpid(), 7)
    assert "error" not in manifest
    run.finish()
    assert open_run("latest", tmp_path).manifest["phases"] == {"extract": 2.0, "fit": 2.0}


def test_run_that_finished_in_the_meantime_is_left_alone(tmp_path):
    create_run(tmp_path, "a")
    first, second = (find_resumable_run("latest", tmp_path) for _ in range(2))
    with first.locked():
        first.resume()
        with pytest.raises(RunError, match="Another process is still writing this run"), second.locked():
            pass
        first.finish()
    with second.locked(), pytest.raises(RunError, match="a-01 has already finished"):
        second.resume()
    assert second.read_state() == "finished"


@pytest.mark.parametrize("content", ["", "[]", "{}", "null"])
def test_damaged_run_does_not_hide_the_others(tmp_path, content):
    good, bad = finish(tmp_path, "a"), finish(tmp_path, "b")
    (bad.path / "manifest.json").write_text(content)
    (tmp_path / "latest").unlink()
    assert {run.name: run.read_state() for run in list_runs(tmp_path)} == {"a-01": "finished", "b-01": "damaged"}
    assert open_run("latest", tmp_path).path == good.path


def test_warnings_reach_the_log(tmp_path):
    import logging

    run = create_run(tmp_path, "a")
    with log_to_file(run):
        logging.getLogger("tlkeras.heads").warning("first")
        logging.getLogger("py.warnings").warning("second")
    assert [line.split()[-1] for line in (run.path / "log.txt").read_text().splitlines()] == ["first", "second"]


def test_runs_are_renamed_and_removed(tmp_path):
    first, second = create_run(tmp_path, "a"), create_run(tmp_path, "a")
    for run in (first, second):
        run.finish()
    renamed = rename_run("a-02", "best", tmp_path)
    assert renamed.path == tmp_path / "best" and open_run("latest", tmp_path) == renamed
    for name in ("a-01", "../out", "latest", ""):
        with pytest.raises(RunError):
            rename_run(renamed, name)
    assert remove_run("a-01", tmp_path) == "a-01" and list_runs(tmp_path) == (renamed,)
    with renamed.locked():
        renamed.update_manifest(state="running")
        for change in (lambda: remove_run(renamed), lambda: rename_run(renamed, "other")):
            with pytest.raises(RunError, match="still running"):
                change()
    assert renamed.path.is_dir()
