"""Covering parts of an image: each part once, with the mean colour."""

import numpy as np

from tlkeras.serving.handlers import GRID, occlude


def test_every_pixel_is_covered_and_the_rest_is_left():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    covered = occlude(image)
    assert covered.shape == (GRID * GRID, 32, 32, 3)
    changed = (covered != image).any(axis=3)
    assert changed.any(axis=0).all()
    assert (changed.mean(axis=(1, 2)) <= 0.25**2 + 1e-9).all()
    # the first centre is pixel 2, covered 4 to each side: rows and columns 0 to 5
    assert not changed[0, 6:].any() and not changed[0, :, 6:].any()
    assert (covered[0, :6, :6] == image.mean(axis=(0, 1)).round()).all()
