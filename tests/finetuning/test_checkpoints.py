"""Checkpoints: bit for bit, whole or absent after every kind of death and damage, and bounded in number."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import shutil
import subprocess
import sys
import time

import ml_dtypes
import numpy as np
import pytest

from tlkeras.errors import ResourceError
from tlkeras.finetuning.checkpoints import Checkpoint, Checkpoints

ARRAYS = {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "count": np.array(7)}


def save(folder, *steps: int, keep: int = 9) -> list:
    return [Checkpoints(folder, keep).save(step, ARRAYS, {"at": step}) for step in steps]


def load_step(folder) -> int | None:
    found = Checkpoints(folder).load_latest()
    return found.step if found else None


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def same_bits(first: np.ndarray, second: np.ndarray) -> bool:
    return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()


@pytest.mark.parametrize(
    "array",
    [
        np.array([0.1, -0.0, np.nan, -np.inf, 5e-324], np.float64),
        np.array([0x7FC00001, 0xFFC12345], np.uint32).view(np.float32),  # NaNs that carry bits
        np.array([1.5, 3e38, -np.inf], ml_dtypes.bfloat16),
        np.array(1.5, ml_dtypes.bfloat16),
        np.zeros((0, 4), ml_dtypes.bfloat16),
        np.array([[1.5, 448]], ml_dtypes.float8_e4m3fn),
        np.array([0.1, -np.inf], ml_dtypes.float8_e5m2),
        np.array(2**64 - 1, np.uint64),
        np.float16(0.1),
        np.zeros((3, 0), np.int8),
        np.array([True, False]),
        np.arange(12.0).reshape(3, 4)[:, ::2],
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array([1, 2], ">i4"),
        np.array([1 + 2j], np.complex64),
        np.array(["ü", "abc"]),
        np.array(["2026-01-01"], "datetime64[s]"),
        np.array([(1, 2.5)], [("a", "i4"), ("b", "f8")]),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_arrays_keep_every_bit(tmp_path, array):
    Checkpoints(tmp_path).save(0, {"x": array, "after it": ARRAYS["kernel"]}, {})
    arrays = Checkpoints(tmp_path).load_latest().arrays
    assert same_bits(arrays["x"], np.asarray(array))
    assert same_bits(arrays["after it"], ARRAYS["kernel"])


def test_objects_are_refused_and_leave_nothing(tmp_path):
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        Checkpoints(tmp_path).save(1, {"x": np.array([object()])}, {})
    assert names(tmp_path) == []


def test_names_state_and_order_come_back(tmp_path):
    arrays = {name: np.array(number) for number, name in enumerate(["z/b", "file", "a b", "../up", "ü"])}
    state = {"third": 1 / 3, "tiny": 5e-324, "zero": -0.0, "big": 2**100, "no": None, "list": [1, {"a": "ü"}]}
    Checkpoints(tmp_path).save(3, arrays, {**state, "worst": -math.inf, "unknown": math.nan})
    found = Checkpoints(tmp_path).load_latest()
    assert isinstance(found, Checkpoint) and found.step == 3
    assert list(found.arrays) == list(arrays)
    assert math.isnan(found.state.pop("unknown")) and found.state.pop("worst") == -math.inf
    assert found.state == state and math.copysign(1, found.state["zero"]) == -1


def test_no_checkpoint_is_none(tmp_path, caplog):
    assert Checkpoints(tmp_path / "nowhere").load_latest() is None
    assert Checkpoints(tmp_path).load_latest() is None
    assert not caplog.records


def test_layout_is_as_documented(tmp_path):
    [path] = save(tmp_path / "run" / "checkpoints", 123)
    assert path == tmp_path / "run" / "checkpoints" / "step-00000123"
    assert names(path) == ["arrays.npy", "manifest.json", "state.json"]
    with open(path / "arrays.npy", "rb") as file:
        assert [np.load(file).shape for _ in range(2)] == [(2, 3), ()]
    assert json.loads((path / "state.json").read_text())["state"] == {"at": 123}


@pytest.mark.parametrize(("keep", "kept"), [(1, [4]), (2, [3, 4]), (9, [1, 2, 3, 4])])
def test_the_newest_are_kept(tmp_path, keep, kept):
    save(tmp_path, 1, 2, 3, 4, keep=keep)
    assert names(tmp_path) == [f"step-{step:08d}" for step in kept]


def test_steps_are_ordered_as_numbers(tmp_path):
    save(tmp_path, 99_999_999, 100_000_000)
    assert load_step(tmp_path) == 100_000_000


@pytest.mark.parametrize("keep", [1, 2])
def test_a_step_may_be_saved_again(tmp_path, keep):
    checkpoints = Checkpoints(tmp_path, keep)
    save(tmp_path, 4)
    for number in range(3):
        checkpoints.save(5, {"x": np.array(number)}, {"number": number})
        found = checkpoints.load_latest()
        assert (found.step, found.arrays["x"], found.state["number"]) == (5, number, number)
        assert len(names(tmp_path)) == keep  # step 4 stays: a second copy of step 5 would be no second chance
    checkpoints.save(6, ARRAYS, {})
    assert load_step(tmp_path) == 6 and len(names(tmp_path)) == keep


def test_a_future_that_was_given_up_is_removed(tmp_path):
    save(tmp_path, 10, 20, 30)
    save(tmp_path, 15, keep=2)
    assert names(tmp_path) == ["step-00000010", "step-00000015"]


@pytest.mark.parametrize(("step", "keep"), [(-1, 2), (0, 0)])
def test_senseless_numbers_are_refused(tmp_path, step, keep):
    with pytest.raises(ValueError, match=r"(must not be negative|At least one).*Received: -?\d"):
        Checkpoints(tmp_path, keep).save(step, {}, {})


def truncate(path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_bit(path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lengthen(path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def become_folder(path) -> None:
    path.unlink()
    path.mkdir()


def become_other_json(path) -> None:
    path.write_text("[]")


@pytest.mark.parametrize(
    "damage",
    [os.remove, truncate, flip_bit, lengthen, become_folder, become_other_json],
    ids=lambda each: each.__name__,
)
@pytest.mark.parametrize("file", ["arrays.npy", "state.json", "manifest.json"])
def test_damaged_checkpoint_is_skipped(tmp_path, caplog, file, damage):
    save(tmp_path, 1, 2, 3)
    for name in ("step-00000002", "step-00000003"):
        damage(tmp_path / name / file)
    assert load_step(tmp_path) == 1
    assert len(caplog.records) == 2
    for record, name in zip(caplog.records, ("step-00000003", "step-00000002"), strict=True):
        assert record.levelname == "WARNING"
        assert f"damaged and was skipped: {tmp_path / name} (" in record.getMessage()
        assert record.getMessage().endswith("Loaded instead: step-00000001.")


@pytest.mark.parametrize("file", ["state.json", "manifest.json"])
def test_every_single_bit_is_watched(tmp_path, file):
    """Each flipped bit is noticed, or did not change what is read (the case of a letter in `\\u00fc`, say)."""
    save(tmp_path, 1)
    [path] = save(tmp_path, 2)
    whole = (path / file).read_bytes()
    for bit in range(8 * len(whole)):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        (path / file).write_bytes(content)
        found = Checkpoints(tmp_path).load_latest()
        assert found.state == {"at": found.step}, bit
        assert found.step == 1 or json.loads(content) == json.loads(whole), bit


def test_foreign_things_are_no_checkpoints(tmp_path, caplog):
    save(tmp_path, 1)
    (tmp_path / "step-00000009").write_text("a file")
    (tmp_path / "step-00000008").mkdir()
    shutil.copytree(tmp_path / "step-00000001", tmp_path / "step-00000007")
    (tmp_path / "step-00000001" / ".DS_Store").write_text("harmless")
    (tmp_path / "step-new").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    assert load_step(tmp_path) == 1
    messages = [record.getMessage() for record in caplog.records]
    assert [message.split(" (")[0][-13:] for message in messages] == [f"step-0000000{number}" for number in (9, 8, 7)]
    assert "it was saved at step 1" in messages[2]
    Checkpoints(tmp_path).clear()
    assert names(tmp_path) == ["notes.txt", "step-new"]


def test_a_warning_where_nothing_is_whole(tmp_path, caplog):
    [path] = save(tmp_path, 1)
    flip_bit(path / "arrays.npy")
    assert load_step(tmp_path) is None
    assert caplog.records[0].getMessage().endswith("(a checksum is wrong). Loaded instead: none, there is no other.")


def test_layout_of_another_version_is_skipped(tmp_path, caplog):
    [path] = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 2}))
    assert load_step(tmp_path) is None
    assert "manifest.json is not of format 1" in caplog.text


def test_leftovers_of_killed_writers_are_swept(tmp_path):
    save(tmp_path, 1)
    for leftover in (".7-ab-step-00000002", ".old-step-00000000", ".old-step-00000001.3"):
        shutil.copytree(tmp_path / "step-00000001", tmp_path / leftover)
    assert load_step(tmp_path) == 1
    save(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001", "step-00000002"]


def fill_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["mkdir", "fsync", "rename"])
@pytest.mark.parametrize("step", [2, 3])
def test_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch, call, step):
    save(tmp_path, 1, 2)
    with (
        monkeypatch.context() as patch,
        pytest.raises(ResourceError, match=r"Cannot write a checkpoint.*No space left.*resume"),
    ):
        patch.setattr(os, call, fill_disk)
        Checkpoints(tmp_path, keep=1).save(step, ARRAYS, {})
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    assert load_step(tmp_path) == 2


def test_disk_that_takes_only_half(tmp_path):
    """The kernel itself refuses to write in mid-array."""
    resource = pytest.importorskip("resource")
    save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(ResourceError, match="Cannot write a checkpoint to"):
            Checkpoints(tmp_path).save(2, {"x": np.zeros(10**6)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["step-00000001"]


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(ResourceError, match="Cannot write a checkpoint to .*x"):
        save(tmp_path / "x", 1)
    assert load_step(tmp_path / "x") is None


def test_old_checkpoint_that_resists_does_not_stop_the_training(tmp_path, monkeypatch):
    save(tmp_path, 1, 2)
    rename = os.rename
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", lambda old, new: fill_disk() if ".old-" in str(new) else rename(old, new))
        save(tmp_path, 3, keep=1)
    assert load_step(tmp_path) == 3
    save(tmp_path, 4, keep=1)
    assert names(tmp_path) == ["step-00000004"]


def test_ctrl_c_in_the_middle_leaves_nothing_half(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    save(tmp_path, 1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "fsync", interrupt)
        save(tmp_path, 2)
    assert names(tmp_path) == ["step-00000001"]


def test_all_is_on_the_disk_before_it_is_named(tmp_path, monkeypatch):
    calls = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append(os.fstat(handle).st_ino), fsync(handle)))
    monkeypatch.setattr(os, "rename", lambda old, new: (calls.append("rename"), rename(old, new)))
    [path] = save(tmp_path, 1)
    parts = [path / "arrays.npy", path / "state.json", path / "manifest.json", path]
    assert calls == [*(part.stat().st_ino for part in parts), "rename", tmp_path.stat().st_ino]


WRITER = """
import os, sys
from pathlib import Path
import numpy as np
from tlkeras.finetuning.checkpoints import Checkpoints

def save(checkpoints, step):
    checkpoints.save(step, {"a": np.full(size, step), "b": np.full(3, -step)}, {"step": step})

folder, keep, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
"""

FOREVER = """
step = 0
while True:
    step += 1
    save(Checkpoints(folder, keep), step)
    print(step, flush=True)
"""

EVERYWHERE = """
LEFT = None  # calls of the file system until death

def die_when_due(event, _):
    global LEFT
    if LEFT is not None and (event == "open" or event.startswith(("os.", "shutil."))):
        LEFT -= 1
        if LEFT < 0:
            os._exit(9)

sys.addaudithook(die_when_due)
for calls in range(1000):
    root = folder / str(calls)
    for step in (1, 2):
        save(Checkpoints(root, keep), step)
    if not os.fork():
        LEFT = calls
        save(Checkpoints(root, keep), int(sys.argv[4]))
        os._exit(0)
    if os.wait()[1] == 0:
        break
"""


def check_whole(folder, at_least: int) -> int:
    found = Checkpoints(folder).load_latest()
    assert found is not None and found.step >= at_least and found.state == {"step": found.step}
    assert (found.arrays["a"] == found.step).all() and (found.arrays["b"] == -found.step).all()
    return found.step


@pytest.mark.parametrize("keep", [1, 2])
def test_kill_at_random_moments(tmp_path, keep, caplog):
    """Whatever `kill -9` interrupts, all that `save` had returned for is there, and nothing is found damaged."""
    moments = random.Random(keep)
    for number in range(6):
        folder = tmp_path / str(number)
        command = [sys.executable, "-c", WRITER + FOREVER, str(folder), str(keep), "100000"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "1\n"
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        saved = [1, *map(int, process.communicate()[0].split())]
        check_whole(folder, at_least=saved[-1])
        save(folder, 10**6, keep=keep)
        assert len(names(folder)) <= keep
    assert not caplog.records


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("keep", "step"), [(1, 3), (2, 3), (2, 2), (2, 1)])
def test_death_before_each_call_of_the_file_system(tmp_path, keep, step, caplog):
    subprocess.run([sys.executable, "-c", WRITER + EVERYWHERE, tmp_path, str(keep), "9", str(step)], check=True)
    found = [check_whole(tmp_path / str(calls), at_least=1) for calls in range(len(names(tmp_path)))]
    assert len(found) > 15 and found[0] == 2 and found[-1] == step
    assert found == sorted(found, reverse=step < 2)  # once the new one is there, it stays
    assert not caplog.records
