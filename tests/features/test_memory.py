"""Features that do not fit into memory are refused before the work."""

import pytest

import tlkeras
from tlkeras.errors import ResourceError
from tlkeras.features import store


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 3 GB free, in a container that may use 2 GB more."""
    (tmp_path / "meminfo").write_text("MemTotal: 8000000 kB\nMemAvailable: 3000000 kB\n")
    (tmp_path / "memory.max").write_text("4000000000\n")
    (tmp_path / "memory.current").write_text("2000000000\n")
    monkeypatch.setattr(store, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(store, "_CONTROL_GROUP", tmp_path)
    return tmp_path


def test_the_narrower_of_machine_and_container_counts(machine):
    assert store.free_memory() == 2_000_000_000
    (machine / "memory.max").write_text("max\n")
    assert store.free_memory() == 3_072_000_000
    (machine / "meminfo").unlink()
    assert store.free_memory() is None
    store.check_memory(10**9, (10**6,))


def test_what_does_not_fit_is_told_with_its_size(machine):
    store.check_memory(90_000, (1000,))  # 22 bytes a value
    with pytest.raises(
        ResourceError, match=r"100,000 x 1,000 values need about 2\.2 GB, 2\.0 GB are free.*data\.limit"
    ):
        store.check_memory(100_000, (1000,))


def test_check_and_train_refuse_before_they_compute(workplace, machine):
    (machine / "memory.max").write_text("2000001000\n")
    (problem,) = tlkeras.check("mine.yaml").problems
    assert "32 x 16 values need" in problem
    with pytest.raises(ResourceError, match="not enough memory to fit a head"):
        tlkeras.train("mine.yaml")
