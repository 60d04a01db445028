"""Training sees the same order and pixels in every process, also when an epoch is taken up in the middle."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from tlkeras.data.augmentation.policies import make_policy
from tlkeras.data.pipeline import epoch_permutation
from tlkeras.finetuning.inputs import ActivationSource, ImageSource


@pytest.fixture
def source(plant, colours, encode):
    root = plant({f"{number}.png": encode(np.roll(colours, number, axis=1)) for number in range(12)})
    paths = [str(root / f"{number}.png") for number in range(12)]
    digests = [hashlib.sha256((root / f"{number}.png").read_bytes()).hexdigest() for number in range(12)]
    return ImageSource(paths, digests, 32, "stretch", make_policy("light"), seed=5)


def draw(epoch: int) -> list[np.ndarray]:
    return list(epoch_permutation(12, 5, epoch).reshape(-1, 3))


def test_an_epoch_is_taken_up_in_the_middle(source):
    whole = list(source.stream(draw(1), epoch=1))
    rest = list(source.stream(draw(1)[2:], epoch=1))
    assert len(whole) == 4 and len(rest) == 2
    for (rows, images), (rows_again, images_again) in zip(whole[2:], rest, strict=True):
        np.testing.assert_array_equal(rows, rows_again)
        np.testing.assert_array_equal(images, images_again)
    (_, other), *_ = source.stream(draw(1), epoch=2)
    assert not np.array_equal(whole[0][1], other)


SCRIPT = """
import hashlib, sys
from tlkeras.data.pipeline import epoch_permutation
from tlkeras.data.augmentation.policies import make_policy
from tlkeras.finetuning.inputs import ImageSource
paths = sys.argv[1:]
digests = [hashlib.sha256(open(path, "rb").read()).hexdigest() for path in paths]
source = ImageSource(paths, digests, 32, "stretch", make_policy("light"), seed=5)
total = hashlib.sha256()
for rows, images in source.stream(list(epoch_permutation(12, 5, 1).reshape(-1, 3)), 1):
    total.update(rows.tobytes() + images.tobytes())
print(total.hexdigest())
"""


@pytest.mark.slow
def test_another_process_sees_the_same(source):
    total = hashlib.sha256()
    for rows, images in source.stream(draw(1), epoch=1):
        total.update(rows.tobytes() + images.tobytes())
    command = [sys.executable, "-c", SCRIPT, *source.paths]
    for hash_seed in ("1", "2"):
        done = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": hash_seed})
        assert done.stdout.strip() == total.hexdigest()


def test_one_view_without_augmentation_is_cached_training():
    rows = np.arange(24.0).reshape(12, 2)
    views = [rows, rows + 100]
    batches = draw(0)
    plain = [values for _, values in ActivationSource(views[:1]).stream(batches, 7)]
    np.testing.assert_array_equal(np.concatenate(plain), rows[np.concatenate(batches)])
    second = ActivationSource(views, lambda positions, epoch: np.full(len(positions), epoch))
    read = [np.concatenate([values for _, values in second.stream(batches, epoch)]) for epoch in range(4)]
    np.testing.assert_array_equal(read[1], read[0] + 100)  # view (epoch mod V)
    np.testing.assert_array_equal(read[2], read[0])
    np.testing.assert_array_equal(read[3], read[1])
