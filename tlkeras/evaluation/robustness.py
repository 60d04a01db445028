"""How answers hold when images get worse: standard corruptions at five strengths."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from PIL import Image
from scipy import ndimage

from tlkeras.features.engines import EngineBatch, make_engine
from tlkeras.progress import progress_bar

STRENGTHS = 5
_BATCH = 16
_SIDE = 224  # pixels for which widths of blur are given


def add_noise(image: np.ndarray, strength: int, random: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise to an image, uint8 [h, w, 3]."""
    deviation = (0.08, 0.12, 0.18, 0.26, 0.38)[strength - 1]
    return _as_image(image + random.standard_normal(image.shape, dtype=np.float32) * (255 * deviation))


def blur(image: np.ndarray, strength: int, random: np.random.Generator) -> np.ndarray:
    """Blur an image with a Gaussian, as wide for its size as the published widths for 224 pixels."""
    width = (1, 2, 3, 4, 6)[strength - 1] * min(image.shape[:2]) / _SIDE
    return ndimage.gaussian_filter(image, (width, width, 0), mode="reflect", truncate=3.0)


def lower_contrast(image: np.ndarray, strength: int, random: np.random.Generator) -> np.ndarray:
    """Bring all values nearer to each channel's mean."""
    factor = (0.4, 0.3, 0.2, 0.1, 0.05)[strength - 1]
    mean = image.mean(axis=(0, 1), keepdims=True, dtype=np.float32)
    return _as_image((image - mean) * factor + mean)


def compress(image: np.ndarray, strength: int, random: np.random.Generator) -> np.ndarray:
    """Write and read an image as JPEG of low quality."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=(25, 18, 15, 10, 7)[strength - 1])
    return np.asarray(Image.open(stream))


def rotate(image: np.ndarray, strength: int, random: np.random.Generator) -> np.ndarray:
    """Turn an image by a fixed angle to either side; what comes in at the corners is mirrored."""
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
no rotation; that turns by 5 to 30 degrees."""


def measure_robustness(
    model: keras.Model,
    images: np.ndarray,
    judge: Callable[[np.ndarray], float],
    *,
    output: int = 0,
    engine: str = "auto",
    seed: int = 0,
) -> dict[str, Any]:
    """Return what is left of a figure under each corruption and strength.

    Args:
        model: From images uint8 [n, h, w, 3] to probabilities.
        images: As the model sees them, uint8 [n, h, w, 3].
        judge: From probabilities [n, k] of the images to a figure such as accuracy.
        output: Which of the model's outputs.
        engine: As in `make_engine`.
        seed: Of noise and of the side to which images are turned.

    Returns:
        `images` (how many), `clean`, and `corruptions`: by name the figure at strengths 1 to 5.
    """
    variants = [("", 0), *((name, strength) for name in CORRUPTIONS for strength in range(1, STRENGTHS + 1))]
    count = len(images)
    predicted: dict[int, np.ndarray] = {}
    with progress_bar("Worsening images", len(variants) * count, "images") as advance:
        stream = _stream(images, variants, seed)
        for index, outputs in make_engine(model, engine).run(stream):
            predicted.update(zip(index.tolist(), outputs[output], strict=True))
            advance(len(index))
    figures = [
        judge(np.stack([predicted[place * count + row] for row in range(count)])) for place in range(len(variants))
    ]
    by_name = {
        name: [figure for (of, _), figure in zip(variants, figures, strict=True) if of == name] for name in CORRUPTIONS
    }
    return {"images": count, "clean": figures[0], "corruptions": by_name}


def _stream(images: np.ndarray, variants: list[tuple[str, int]], seed: int) -> Iterator[EngineBatch]:
    count = len(images)
    for place, (name, strength) in enumerate(variants):
        random = np.random.default_rng([seed, place])
        for start in range(0, count, _BATCH):
            chosen = images[start : start + _BATCH]
            worse = [CORRUPTIONS[name](image, strength, random) for image in chosen] if name else list(chosen)
            yield np.arange(start, start + len(chosen)) + place * count, np.stack(worse)


def _as_image(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
