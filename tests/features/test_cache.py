"""The cache of activations: complete or absent, shared by processes, bounded, and never silently lossy."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

import tlkeras
from tlkeras.errors import DataError, ResourceError
from tlkeras.features import store as store_module
from tlkeras.features.cache import ActivationCache, Namespace
from tlkeras.files import cache_folder

NAMESPACE = Namespace({"weights": "abc", "cut": "top", "size": 32}, (3,), "float16")


def digest(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def digests(*numbers: int) -> list[str]:
    return [digest(number) for number in numbers]


def rows(*numbers: int) -> np.ndarray:
    """Row i is [i, i + 0.5, -i]: exact in float16."""
    return np.array([[number, number + 0.5, -number] for number in numbers], np.float32)


def write(root, *numbers: int, namespace: Namespace = NAMESPACE) -> None:
    """Make one shard."""
    with ActivationCache(root).open(namespace) as store, store.writer() as writer:
        writer.add(digests(*numbers), rows(*numbers))


def read(root, *numbers: int) -> np.ndarray:
    with ActivationCache(root).open(NAMESPACE) as store:
        return store.gather(store.locate(digests(*numbers)))


def find(root, pattern: str) -> list:
    return sorted((root / "activations" / NAMESPACE.key).glob(pattern))


def run_python(code: str, *args: object, **options) -> subprocess.Popen:
    """Start the code with this module's names in reach."""
    prelude = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); from test_cache import *\n"
    return subprocess.Popen([sys.executable, "-c", prelude + textwrap.dedent(code), *map(str, args)], **options)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 3)])
def test_returns_what_was_added(tmp_path, dtype, shape):
    namespace = Namespace({}, shape, dtype)
    values = np.arange(5 * np.prod(shape)).reshape(5, *shape)
    with ActivationCache(tmp_path).open(namespace) as store:
        assert not store.known(digests(0, 1)).any()
        with store.writer() as writer:
            writer.add(digests(0, 1, 2), values[:3])
            writer.add(digests(3, 4), values[3:])
        ids = store.locate(digests(4, 9, 0, 4))
        assert (ids >= 0).tolist() == [True, False, True, True]
        gathered = store.gather(ids[[0, 2, 3]])
    assert gathered.dtype == dtype
    assert np.array_equal(gathered, values[[4, 0, 4]])
    with ActivationCache(tmp_path).open(namespace) as again:
        assert len(again) == 5 and again.known(digests(0, 1, 2, 3, 4)).all()


def test_a_shard_is_laid_out_as_documented(tmp_path):
    write(tmp_path, 1, 2)
    [path] = find(tmp_path, "*.shard")
    content = path.read_bytes()
    assert content[:8] == b"tlkshrd1" and len(content) == 64 + 2 * (6 + 32)
    assert np.frombuffer(content, "<f2", 6, 64).tolist() == [1, 1.5, -1, 2, 2.5, -2]
    assert content[76:].hex() == "".join(digests(1, 2))


def test_digests_with_zero_bytes_are_distinguished(tmp_path):
    names = ["00" * 32, "00" * 31 + "01", "01" + "00" * 31, "0100" + "00" * 29 + "01"]
    with ActivationCache(tmp_path).open(NAMESPACE) as store, store.writer() as writer:
        writer.add(names, rows(1, 2, 3, 4))
    with ActivationCache(tmp_path).open(NAMESPACE) as store:
        assert store.gather(store.locate(names[::-1]))[:, 0].tolist() == [4, 3, 2, 1]
        assert not store.known(["0100" + "00" * 28 + "0100"]).any()


def test_digests_must_be_sha256(tmp_path):
    with ActivationCache(tmp_path).open(NAMESPACE) as store, pytest.raises(ValueError, match="SHA-256 in hex"):
        store.known(["ab"])


def test_ids_outlive_later_shards(tmp_path):
    write(tmp_path, 1, 2)
    with ActivationCache(tmp_path).open(NAMESPACE) as store:
        ids = store.locate(digests(1, 2))
        for number in range(3, 9):
            write(tmp_path, number)
        store.refresh()
        assert len(store) == 8
        assert np.array_equal(store.gather(ids), rows(1, 2))


@pytest.mark.parametrize("ids", [[-1], [2], [0, 5]])
def test_unknown_ids_are_refused(tmp_path, ids):
    write(tmp_path, 1, 2)
    with ActivationCache(tmp_path).open(NAMESPACE) as store, pytest.raises(IndexError, match="below 2"):
        store.gather(np.array(ids))


def test_small_shards_bound_what_can_be_lost(tmp_path):
    with ActivationCache(tmp_path).open(NAMESPACE) as store:
        with store.writer(shard_bytes=12) as writer:
            for number in range(5):
                writer.add(digests(number), rows(number))
            assert len(find(tmp_path, "*.shard")) == 2
        with store.writer(shard_seconds=0.0) as writer:
            writer.add(digests(7), rows(7))
            assert len(find(tmp_path, "*.shard")) == 4
    assert np.array_equal(read(tmp_path, *range(5)), rows(*range(5)))


def test_large_shards_are_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "_MAPPED", 1)
    write(tmp_path, 1, 2)
    with ActivationCache(tmp_path).open(NAMESPACE) as store:
        assert not store._shards[0].rows.flags.owndata
        assert np.array_equal(store.gather(store.locate(digests(2))), rows(2))


def test_facts_make_the_key():
    keys = {
        Namespace(facts, shape, dtype).key
        for facts in ({"cut": "top"}, {"cut": "block_3"}, {"cut": "top", "view": 1})
        for shape in ((3,), (3, 1))
        for dtype in ("float16", "float32")
    }
    assert len(keys) == 12
    assert Namespace({"a": 1, "b": (2, 3)}, (3,)).key == Namespace({"b": [2, 3], "a": 1}, (3,)).key


def test_a_namespace_holds_floats():
    with pytest.raises(ValueError, match=r"Activations are float16 or float32. Received: 'int8'"):
        Namespace({}, (3,), "int8")


# What may not be stored


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_refuses_what_is_not_finite(tmp_path, value):
    bad = rows(1, 2)
    bad[1, 2] = value
    with ActivationCache(tmp_path).open(NAMESPACE) as store, store.writer() as writer:
        writer.add(digests(0), rows(0))
        with pytest.raises(DataError, match=r"infinity for b.png"):
            writer.add(digests(1, 2), bad, ["a.png", "b.png"])
    with ActivationCache(tmp_path).open(NAMESPACE) as store:
        assert store.known(digests(0, 1, 2)).tolist() == [True, False, False]


def test_refuses_what_float16_cannot_hold(tmp_path):
    large = np.array([[65504.0, -65504.0, 0.0], [0.0, -65505.0, 0.0]])
    with ActivationCache(tmp_path).open(NAMESPACE) as store, store.writer() as writer:
        with pytest.raises(
            DataError, match=r"65,504, the limit of float16. Received: 65,505 for b. Store them as float32"
        ):
            writer.add(digests(1, 2), large, ["a", "b"])
        writer.add(digests(1), large[:1])
    wide = Namespace({}, (3,), "float32")
    with ActivationCache(tmp_path).open(wide) as store, store.writer() as writer:
        writer.add(digests(1, 2), large)


# Damage


def _cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def _empty(content: bytes) -> bytes:
    return b""


def _flip(place: int):
    return lambda content: content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


DAMAGE = {
    "cut in half": _cut,
    "empty": _empty,
    "longer": lambda content: content + b"\0",
    "other magic": _flip(0),
    "other count": _flip(8),
    "other width": _flip(16),
    "other checksum": _flip(24),
    "a row's byte": _flip(70),
    "a digest's byte": _flip(-5),
    "not a shard": lambda content: b"x" * len(content),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_shard_is_set_aside_and_never_read(tmp_path, kind):
    write(tmp_path, 1, 2)
    write(tmp_path, 3)
    path = next(path for path in find(tmp_path, "*.shard") if store_module.count_rows(path) == 2)
    damaged = DAMAGE[kind](path.read_bytes())
    path.unlink()  # a new file, so that the check of this process does not count for it
    path.write_bytes(damaged)
    with pytest.warns(RuntimeWarning, match="set aside"), ActivationCache(tmp_path).open(NAMESPACE) as store:
        assert store.known(digests(1, 2, 3)).tolist() == [False, False, True]
    assert [path.read_bytes() for path in find(tmp_path, "*.damaged")] == [damaged]
    write(tmp_path, 1, 2)
    assert np.array_equal(read(tmp_path, 2, 3), rows(2, 3))
    ActivationCache(tmp_path).prune()
    assert not find(tmp_path, "*.damaged")


def test_a_checked_shard_is_not_checked_again(tmp_path, monkeypatch):
    write(tmp_path, 1)
    read(tmp_path, 1)
    monkeypatch.setattr(store_module.zlib, "crc32", None)
    assert np.array_equal(read(tmp_path, 1), rows(1))


def test_a_damaged_description_is_written_again(tmp_path):
    write(tmp_path, 1)
    [path] = find(tmp_path, "space.json")
    path.write_text("{")
    assert ActivationCache(tmp_path).list_entries()[0].rows == 1
    assert np.array_equal(read(tmp_path, 1), rows(1))
    assert json.loads(path.read_text())["facts"] == dict(NAMESPACE.facts)


# Death, disks, other processes


def test_kill_in_the_middle_of_writing(tmp_path):
    """Whole shards stay, the half-written one is ignored, and the next to open removes it."""
    code = """
        with ActivationCache(sys.argv[1]).open(NAMESPACE) as store, store.writer() as writer:
            writer.add(digests(1, 2), rows(1, 2))
            writer._seal()
            writer.add(digests(3), rows(3))
            writer._file._file.flush()
            print("ready", flush=True)
            time.sleep(60)
    """
    child = run_python(code, tmp_path, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"ready\n"
    assert len(find(tmp_path, "*.tmp")) == 1
    with ActivationCache(tmp_path).open(NAMESPACE) as store:  # next to the living writer
        assert store.known(digests(1, 2, 3)).tolist() == [True, True, False]
        assert len(find(tmp_path, "*.tmp")) == 1
    child.send_signal(signal.SIGKILL)
    child.wait()
    with ActivationCache(tmp_path).open(NAMESPACE) as store:
        assert store.known(digests(1, 2, 3)).tolist() == [True, True, False]
        assert not find(tmp_path, "*.tmp")
    assert not find(tmp_path, "*.lock")


def test_an_unfinished_description_of_a_dead_process_is_removed(tmp_path):
    write(tmp_path, 1)
    [path] = find(tmp_path, "space.json")
    left = path.with_name(".1-abcd-space.json")
    left.write_text("{")
    write(tmp_path, 2)
    assert not left.exists() and path.exists()


def test_two_processes_write_at_once(tmp_path):
    code = """
        with ActivationCache(sys.argv[1]).open(NAMESPACE) as store, store.writer(shard_bytes=60) as writer:
            for number in range(int(sys.argv[2]), int(sys.argv[2]) + 100):
                writer.add(digests(number), rows(number))
    """
    children = [run_python(code, tmp_path, start) for start in (0, 50)]
    assert [child.wait() for child in children] == [0, 0]
    with ActivationCache(tmp_path).open(NAMESPACE) as store:
        assert len(store) == 200  # the middle ones twice, which does no harm
        assert np.array_equal(store.gather(store.locate(digests(*range(150)))), rows(*range(150)))


def test_interruption_keeps_what_was_added(tmp_path):
    with ActivationCache(tmp_path).open(NAMESPACE) as store, pytest.raises(KeyboardInterrupt), store.writer() as writer:
        writer.add(digests(1), rows(1))
        raise KeyboardInterrupt
    assert np.array_equal(read(tmp_path, 1), rows(1))


def test_a_full_disk_keeps_what_was_sealed(tmp_path):
    """The limit on file size stands in for the disk: it fails in the middle of a write as a full one does."""
    code = """
        import resource
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        namespace = Namespace({}, (1024,), "float16")
        values = np.ones((40, 1024), np.float16)
        with ActivationCache(sys.argv[1]).open(namespace) as store:
            with store.writer() as writer:
                writer.add(digests(0), values[:1])
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
            try:
                with store.writer() as writer:
                    writer.add(digests(*range(1, 41)), values)
            except ResourceError as error:
                print(error)
            print(len(store), sorted(path.suffix for path in store.folder.glob("*")))
    """
    child = run_python(code, tmp_path, stdout=subprocess.PIPE, text=True)
    message, state = child.communicate()[0].splitlines()
    assert message.startswith("The disk of the cache is full. Received: File too large at")
    assert "tlkeras cache prune" in message
    assert state == "1 ['.json', '.lock', '.shard']"


@pytest.mark.parametrize(("code", "words"), [(errno.ENOSPC, "is full"), (errno.EIO, "Cannot write to")])
def test_a_disk_that_fails_at_the_last_moment(tmp_path, monkeypatch, code, words):
    def fail(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    with ActivationCache(tmp_path).open(NAMESPACE) as store:
        monkeypatch.setattr(store_module.os, "fsync", fail)
        with pytest.raises(ResourceError, match=words), store.writer() as writer:
            writer.add(digests(1), rows(1))
    assert not find(tmp_path, "*.shard") and not find(tmp_path, "*.tmp")


def test_a_folder_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match=r"Cannot write to the cache folder.*Not a directory.*Set TLKERAS_CACHE"):
        ActivationCache(tmp_path / "file").open(NAMESPACE)


# Disk space


def test_budget_is_checked_before(tmp_path):
    write(tmp_path, 1, 2)
    [namespace] = ActivationCache(tmp_path).list_entries()
    cache = ActivationCache(tmp_path, budget_bytes=namespace.bytes + 1000)
    cache.check_space(1000)
    with pytest.raises(ResourceError, match=r"budget of 1,\d+ bytes. Received: 1,001 bytes in addition to \d+ bytes"):
        cache.check_space(1001)


def test_disk_is_checked_before(tmp_path):
    with pytest.raises(ResourceError, match=r"do not fit the disk. Received: 1,000,000,000.0 GB .*TLKERAS_CACHE"):
        ActivationCache(tmp_path / "not" / "there").check_space(10**18)
    assert not (tmp_path / "not").exists()


def test_lists_entries_last_used_first(tmp_path):
    other = Namespace({"weights": "def"}, (3,), "float32")
    write(tmp_path, 1, 2)
    write(tmp_path, 3, namespace=other)
    _age(tmp_path, other, 3600)
    first, second = ActivationCache(tmp_path).list_entries()
    assert (first.key, first.rows, second.key, second.rows) == (NAMESPACE.key, 2, other.key, 1)
    assert first.facts == {**NAMESPACE.facts, "shape": [3], "dtype": "float16"}
    assert first.bytes == sum(path.stat().st_size for path in find(tmp_path, "*.*"))
    assert first.last_used == pytest.approx(time.time(), abs=60)
    assert ActivationCache(tmp_path / "empty").list_entries() == []


def _age(root, namespace: Namespace, seconds: float) -> None:
    moment = time.time() - seconds
    os.utime(root / "activations" / namespace.key / "space.json", (moment, moment))


def test_prunes_by_age_and_by_size(tmp_path):
    namespaces = [Namespace({"number": number}, (3,)) for number in range(4)]
    for age, namespace in enumerate(namespaces):
        write(tmp_path, 1, namespace=namespace)
        _age(tmp_path, namespace, 3600 * age)
    cache = ActivationCache(tmp_path)
    assert cache.prune() == []
    assert [namespace.key for namespace in cache.prune(unused_seconds=2.5 * 3600)] == [namespaces[3].key]
    size = cache.list_entries()[0].bytes
    assert [namespace.key for namespace in cache.prune(max_bytes=2 * size)] == [namespaces[2].key]
    assert [namespace.key for namespace in cache.prune(max_bytes=0)] == [namespaces[1].key, namespaces[0].key]
    assert cache.list_entries() == [] and ActivationCache(tmp_path / "empty").prune(max_bytes=0) == []


def test_never_prunes_what_is_in_use(tmp_path):
    write(tmp_path, 1)
    store = ActivationCache(tmp_path).open(NAMESPACE)
    assert ActivationCache(tmp_path).prune(max_bytes=0) == []
    assert np.array_equal(store.gather(store.locate(digests(1))), rows(1))
    store.close()
    assert len(ActivationCache(tmp_path).prune(max_bytes=0)) == 1


def test_verbs_give_objects_each_time(tmp_path, monkeypatch):
    monkeypatch.setenv("TLKERAS_CACHE", str(tmp_path))
    write(tmp_path, 1, 2)
    for _ in range(2):
        listed = tlkeras.list_cache()
        kept = tlkeras.prune_cache(unused_days=1)
    assert (listed.root, listed.spaces[0].rows) == (str(tmp_path), 2)
    assert listed.to_dict()["spaces"][0]["facts"]["cut"] == "top" and kept.to_dict() == {"removed": [], "bytes": 0}
    assert tlkeras.prune_cache(max_gb=0).bytes == listed.bytes > 0


def test_root_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("TLKERAS_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path == ActivationCache().root
    monkeypatch.delenv("TLKERAS_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "tlkeras"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "tlkeras"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == tmp_path / "Library" / "Caches" / "tlkeras"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_folder() == tmp_path / "local" / "tlkeras"


def test_needs_no_tensorflow():
    code = "import tlkeras.features.cache, sys; assert not {'tensorflow', 'keras'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
