"""Rings of tests, a cache of their own, and one small trained run that many tests share."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: more threads would only wait for each other
    for _pool in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(_pool, "1")

from pathlib import Path

import numpy as np
import pytest

TINY = """\
data: {source: photos, test: 0.25, split_tolerance: 0}
backbone: {name: tiny, weights: none}
evaluation: {bootstrap_samples: 100}
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run the long ring, on real data")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two processes for the whole ring, none beside this one for a file or a test: each imports TensorFlow anew."""
    return 0 if config.getoption("file_or_dir", None) else 2


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--run-slow"):
        return
    skip = pytest.mark.skip(reason="long ring: needs --run-slow")
    for item in items:
        if item.get_closest_marker("slow"):  # not `keywords`: the names of folders are among them
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Keep the tests away from the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TLKERAS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def draw_photos(folder: Path, count: int = 16, seed: int = 0) -> Path:
    """Write class folders of 32-pixel PNGs: bright ones in `day`, dark ones in `night`."""
    from PIL import Image

    random = np.random.default_rng(seed)
    for label, low in (("day", 120), ("night", 0)):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = random.integers(low, low + 130, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{seed}-{number:03d}.png")
    return folder


@pytest.fixture(scope="session")
def draw_more_photos():
    """The function that `workplace` and `trained` are made with."""
    return draw_photos


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A current folder with `photos/` and the recipe `mine.yaml` for them."""
    monkeypatch.chdir(tmp_path)
    draw_photos(tmp_path / "photos")
    (tmp_path / "mine.yaml").write_text(TINY)
    return tmp_path


@pytest.fixture(scope="session")
def exported(trained, tmp_path_factory):
    """What `export` returned of the shared run; its folder of versions is named `photos`. Do not change it."""
    import tlkeras

    return tlkeras.export(str(trained), tmp_path_factory.mktemp("models") / "photos")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The path of a finished run on generated images; read it, do not change it."""
    import tlkeras

    folder = tmp_path_factory.mktemp("trained")
    draw_photos(folder / "photos")
    (folder / "mine.yaml").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = tlkeras.evaluate(tlkeras.train("mine.yaml"))
    return folder / result.path
