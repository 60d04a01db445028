"""How answers hold when pictures get worse: standard corruptions at five strengths."""

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


def add_noise(picture: np.ndarray, strength: int, random: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise to a picture, uint8 [h, w, 3]."""
    deviation = (0.08, 0.12, 0.18, 0.26, 0.38)[strength - 1]
    return _as_picture(picture + random.standard_normal(picture.shape, dtype=np.float32) * (255 * deviation))


def blur(picture: np.ndarray, strength: int, random: np.random.Generator) -> np.ndarray:
    """Blur a picture with a Gaussian, as wide for its size as the published widths for 224 pixels."""
    width = (1, 2, 3, 4, 6)[strength - 1] * min(picture.shape[:2]) / _SIDE
    return ndimage.gaussian_filter(picture, (width, width, 0), mode="reflect", truncate=3.0)


def lower_contrast(picture: np.ndarray, strength: int, random: np.random.Generator) -> np.ndarray:
    """Bring all values nearer to each channel's mean."""
    factor = (0.4, 0.3, 0.2, 0.1, 0.05)[strength - 1]
    mean = picture.mean(axis=(0, 1), keepdims=True, dtype=np.float32)
    return _as_picture((picture - mean) * factor + mean)


def compress(picture: np.ndarray, strength: int, random: np.random.Generator) -> np.ndarray:
    """Write and read a picture as JPEG of low quality."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=(25, 18, 15, 10, 7)[strength - 1])
    return np.asarray(Image.open(stream))


def rotate(picture: np.ndarray, strength: int, random: np.random.Generator) -> np.ndarray:
    """Turn a picture by a fixed angle to either side; what comes in at the corners is mirrored."""
    angle = (5, 10, 15, 20, 30)[strength - 1] * random.choice([-1, 1])
    margin = min(picture.shape[:2]) // 4
    padded = np.pad(picture, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
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
    pictures: np.ndarray,
    judge: Callable[[np.ndarray], float],
    *,
    output: int = 0,
    engine: str = "auto",
    seed: int = 0,
) -> dict[str, Any]:
    """Return what is left of a figure under each corruption and strength.

    Args:
        model: From pictures uint8 [n, h, w, 3] to probabilities.
        pictures: As the model sees them, uint8 [n, h, w, 3].
        judge: From probabilities [n, k] of the pictures to a figure such as accuracy.
        output: Which of the model's outputs.
        engine: As in `make_engine`.
        seed: Of noise and of the side to which pictures are turned.

    Returns:
        `pictures` (how many), `clean`, and `corruptions`: by name the figure at strengths 1 to 5.
    """
    variants = [("", 0), *((name, strength) for name in CORRUPTIONS for strength in range(1, STRENGTHS + 1))]
    count = len(pictures)
    said: dict[int, np.ndarray] = {}
    with progress_bar("Worsening pictures", len(variants) * count, "pictures") as advance:
        stream = _stream(pictures, variants, seed)
        for index, outputs in make_engine(model, engine).run(stream):
            said.update(zip(index.tolist(), outputs[output], strict=True))
            advance(len(index))
    figures = [judge(np.stack([said[place * count + row] for row in range(count)])) for place in range(len(variants))]
    by_name = {
        name: [figure for (of, _), figure in zip(variants, figures, strict=True) if of == name] for name in CORRUPTIONS
    }
    return {"pictures": count, "clean": figures[0], "corruptions": by_name}


def _stream(pictures: np.ndarray, variants: list[tuple[str, int]], seed: int) -> Iterator[EngineBatch]:
    count = len(pictures)
    for place, (name, strength) in enumerate(variants):
        random = np.random.default_rng([seed, place])
        for start in range(0, count, _BATCH):
            chosen = pictures[start : start + _BATCH]
            worse = [CORRUPTIONS[name](picture, strength, random) for picture in chosen] if name else list(chosen)
            yield np.arange(start, start + len(chosen)) + place * count, np.stack(worse)


def _as_picture(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
