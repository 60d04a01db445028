"""Robustness to common corruptions of images at five strengths."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import keras
import numpy as np
from PIL import Image
from scipy import ndimage

from tlkeras.features.engines import EngineBatch, make_engine
from tlkeras.progress import progress_bar
from tlkeras.results import Result

STRENGTHS = 5
_BATCH = 16
_REFERENCE_SIZE = 224  # pixels for which the widths of blur are published


@dataclass(frozen=True)
class RobustnessResult(Result):
    """A metric on clean and on corrupted images."""

    images: int
    clean: float
    corruptions: dict[str, list[float]]  # at strengths 1 to 5


def add_noise(image: np.ndarray, strength: int, random: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise to an image, uint8 [h, w, 3]."""
    deviation = (0.08, 0.12, 0.18, 0.26, 0.38)[strength - 1]
    return _as_image(image + random.standard_normal(image.shape, dtype=np.float32) * (255 * deviation))


def blur(image: np.ndarray, strength: int, random: np.random.Generator) -> np.ndarray:
    """Blur an image with a Gaussian, as wide for its size as the published widths for 224 pixels."""
    width = (1, 2, 3, 4, 6)[strength - 1] * min(image.shape[:2]) / _REFERENCE_SIZE
    return ndimage.gaussian_filter(image, (width, width, 0), mode="reflect", truncate=3.0)


def lower_contrast(image: np.ndarray, strength: int, random: np.random.Generator) -> np.ndarray:
    """Move all values towards each channel's mean."""
    factor = (0.4, 0.3, 0.2, 0.1, 0.05)[strength - 1]
    mean = image.mean(axis=(0, 1), keepdims=True, dtype=np.float32)
    return _as_image((image - mean) * factor + mean)


def compress(image: np.ndarray, strength: int, random: np.random.Generator) -> np.ndarray:
    """Encode and decode an image as JPEG of low quality."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=(25, 18, 15, 10, 7)[strength - 1])
    return np.asarray(Image.open(stream))


def rotate(image: np.ndarray, strength: int, random: np.random.Generator) -> np.ndarray:
    """Rotate an image by a fixed angle in either direction; the corners are filled by reflection."""
    angle = (5, 10, 15, 20, 30)[strength - 1] * random.choice([-1, 1])
    margin = min(image.shape[:2]) // 4
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    turned = np.asarray(Image.fromarray(padded).rotate(float(angle), Image.Resampling.BILINEAR))
    return turned[margin:-margin, margin:-margin] if margin else turned


CORRUPTIONS: dict[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "noise": add_noise,
    "blur": blur,
    "contrast": lower_contrast,
    "JPEG": compress,
    "rotation": rotate,
}
"""Strengths of noise, blur, contrast and JPEG are those of ImageNet-C (Hendrycks and Dietterich, ICLR 2019), which has
no rotation; here it is 5 to 30 degrees."""


def measure_robustness(
    model: keras.Model,
    images: np.ndarray,
    metric: Callable[[np.ndarray], float],
    *,
    output: int = 0,
    engine: str = "auto",
    seed: int = 0,
) -> RobustnessResult:
    """A metric of a model under each corruption and strength.

    Args:
        model: From images to probabilities.
        images: As the model sees them, uint8 [n, h, w, 3].
        metric: From probabilities of the images, [n, k], to a number such as the accuracy.
        output: Index of the model's output.
        engine: As in `make_engine`.
        seed: Of the noise and of the directions of rotation.
    """
    variants = [("", 0), *((name, strength) for name in CORRUPTIONS for strength in range(1, STRENGTHS + 1))]
    count = len(images)
    predicted: dict[int, np.ndarray] = {}
    with progress_bar("Corrupting images", len(variants) * count, "images") as advance:
        for index, outputs in make_engine(model, engine).run(_stream(images, variants, seed)):
            predicted.update(zip(index.tolist(), outputs[output], strict=True))
            advance(len(index))
    clean, *values = (
        metric(np.stack([predicted[number * count + row] for row in range(count)])) for number in range(len(variants))
    )
    by_name = {name: values[i * STRENGTHS : (i + 1) * STRENGTHS] for i, name in enumerate(CORRUPTIONS)}
    return RobustnessResult(count, clean, by_name)


def _stream(images: np.ndarray, variants: list[tuple[str, int]], seed: int) -> Iterator[EngineBatch]:
    """Batches of each variant of the images in turn, with their indices among all variants."""
    count = len(images)
    for number, (name, strength) in enumerate(variants):
        random = np.random.default_rng([seed, number])
        for start in range(0, count, _BATCH):
            chosen = images[start : start + _BATCH]
            variant = [CORRUPTIONS[name](image, strength, random) for image in chosen] if name else list(chosen)
            yield np.arange(start, start + len(chosen)) + number * count, np.stack(variant)


def _as_image(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
