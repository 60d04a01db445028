"""Files and folders are written complete or not at all."""

import hashlib

import pytest

from tlkeras.files import atomic_folder, atomic_write, sha256


def test_a_file_appears_when_it_is_complete(tmp_path):
    target = tmp_path / "a.csv"
    target.write_text("old")
    with atomic_write(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
        assert temporary.parent == tmp_path and temporary.suffix == ".csv"
    assert target.read_text() == "new" and list(tmp_path.iterdir()) == [target]


def test_a_failure_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.csv"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_a_file_that_cannot_be_written_raises(tmp_path):
    with pytest.raises(OSError), atomic_write(tmp_path / "none" / "a") as temporary:
        temporary.write_text("")


def test_a_folder_appears_when_it_is_complete(tmp_path):
    with atomic_folder(tmp_path / "new") as temporary:
        (temporary / "a").write_text("1")
        assert not (tmp_path / "new").exists()
    assert (tmp_path / "new" / "a").read_text() == "1" and len(list(tmp_path.iterdir())) == 1


def test_a_failure_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError), atomic_folder(tmp_path / "new") as temporary:
        (temporary / "a").write_text("1")
        raise ValueError
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_is_not_replaced(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine").write_text("precious")
    with pytest.raises(OSError), atomic_folder(tmp_path / "new"):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "mine"]


@pytest.mark.parametrize("size", [0, 1, 2**20, 2**21 + 3])
def test_digest_of_a_file(tmp_path, size):
    content = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "a").write_bytes(content[:size])
    assert sha256(tmp_path / "a") == hashlib.sha256(content[:size]).hexdigest()
