"""Heads at 1, 2, 5, 10 and 20 images a class, against scikit-learn's logistic regression and nearest class mean.

    python benchmarks/fewshot.py [--draws 5] [--heads linear ridge] [--images 1 2 5] [--sets elpv digits colours]

Features are those of the quickstart's backbone at 224 pixels. A draw takes so many images of each class to fit on and
measures on all others (of solar cells on as many of both classes). `LogisticRegressionCV` chooses C among the head's
own 17 values by up to five stratified folds and log loss; with one image a class nothing can be held out, and C is 1.
Nearest class mean is measured by accuracy alone: it has no probabilities. Both have standardised columns. Each cell is
the mean of the draws. Marked is what is more than one standard error of the paired differences behind the better
reference.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import log_loss
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import StandardScaler

from tlkeras.config.recipe import load_recipe
from tlkeras.config.schema.heads import FitConfig
from tlkeras.data.inspection import validate_images
from tlkeras.heads.deep import KerasHead
from tlkeras.heads.heads import HEADS, make_head
from tlkeras.heads.linear import STRENGTHS
from tlkeras.training import builders

REFERENCES = ("LogisticRegressionCV", "nearest class mean")
COLOURS, COLOUR_IMAGES = 15, 60
SOURCES = {"elpv": "elpv", "digits": "sklearn-digits", "colours": None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 2, 5, 10, 20])
    kinds = [kind for kind, head in HEADS.items() if head.input_kind == "vector"]
    parser.add_argument("--heads", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--sets", nargs="+", choices=[*SOURCES], default=[*SOURCES])
    options = parser.parse_args()
    warnings.filterwarnings("ignore")  # of references that do not converge at the weakest penalties
    for name in options.sets:
        X, y = extract(name)
        print(f"\n{name}: accuracy / log loss of {options.draws} draws\n")
        print("| head | " + " | ".join(f"{count} a class" for count in options.images) + " |")
        print("|---" * (len(options.images) + 1) + "|", flush=True)
        references = {
            count: [_measure_references(*one) for one in draw(X, y, count, options.draws)] for count in options.images
        }
        for number, reference in enumerate(REFERENCES):
            cells = [_format_cell(np.array(references[count])[:, number]) for count in options.images]
            print(f"| {reference} | {' | '.join(cells)} |", flush=True)
        for kind in options.heads:
            cells = [
                _format_cell(
                    np.array(
                        [_measure_head(kind, seed, *one) for seed, one in enumerate(draw(X, y, count, options.draws))]
                    ),
                    np.array(references[count]),
                )
                for count in options.images
            ]
            print(f"| `{kind}` | {' | '.join(cells)} |", flush=True)


def extract(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, d) and classes (n,) of a set."""
    with tempfile.TemporaryDirectory(prefix="tlkeras-") as folder:
        source = SOURCES[name] or str(draw_colours(Path(folder)))
        experiment = builders.prepare(load_recipe("quickstart", {"data.source": source, "backbone.size": 224}))
        dataset = validate_images(experiment.dataset)
        with builders.extract_features(replace(experiment, dataset=dataset)) as found:
            (task,) = dataset.tasks
            return np.asarray(found.outputs[0]), dataset.targets[task.name][found.kept]


def draw_colours(folder: Path) -> Path:
    """Class folders of one hue each, in noise."""
    random = np.random.default_rng(0)
    for colour in range(COLOURS):
        (folder / f"colour{colour:02}").mkdir()
        for number in range(COLOUR_IMAGES):
            hue = np.full((64, 64, 3), (colour * 255 // COLOURS, 180, 200), np.uint8)
            image = np.asarray(Image.fromarray(hue, "HSV").convert("RGB")) + random.normal(0, 40, (64, 64, 3))
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"colour{colour:02}/{number:02}.png")
    return folder


def draw(X: np.ndarray, y: np.ndarray, count: int, draws: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Features and classes to fit on, and to measure on, in equal numbers of each class."""
    classes = np.unique(y)
    held = min(np.bincount(y)) - count
    for seed in range(draws):
        random = np.random.default_rng(seed)
        order = [random.permutation(np.flatnonzero(y == label)) for label in classes]
        fit = np.concatenate([rows[:count] for rows in order])
        rest = np.concatenate([rows[count : count + held] for rows in order])
        yield X[fit], y[fit], X[rest], y[rest]


def _measure_references(X: np.ndarray, y: np.ndarray, held: np.ndarray, truth: np.ndarray) -> list[tuple[float, float]]:
    """Accuracy and log loss of logistic regression, and accuracy of the nearest class mean."""
    scaler = StandardScaler().fit(X)
    Z, H = scaler.transform(X).astype(float), scaler.transform(held).astype(float)
    basis = np.linalg.svd(Z, full_matrices=False)[2].T  # turned only: an L2 penalty does not see it
    count = np.bincount(y).max()
    if count > 1:
        model: Any = LogisticRegressionCV(
            Cs=STRENGTHS, cv=min(5, count), scoring="neg_log_loss", max_iter=500, use_legacy_attributes=False
        )
    else:
        model = LogisticRegression(max_iter=2000)
    probabilities = model.fit(Z @ basis, y).predict_proba(H @ basis)
    nearest = NearestCentroid().fit(Z, y).predict(H)
    return [_score(probabilities, truth), (float((nearest == truth).mean()), np.nan)]


def _measure_head(
    kind: str, seed: int, X: np.ndarray, y: np.ndarray, held: np.ndarray, truth: np.ndarray
) -> tuple[float, float]:
    """Accuracy and log loss of a head."""
    seeded = {"fitting": FitConfig(seed=seed)} if issubclass(HEADS[kind], KerasHead) else {"seed": seed}
    return _score(make_head(kind, **seeded).fit(X, y).predict_proba(held).astype(float), truth)


def _score(probabilities: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    shares = probabilities / probabilities.sum(axis=1, keepdims=True)
    return float((probabilities.argmax(axis=1) == truth).mean()), float(log_loss(truth, shares))


def _format_cell(values: np.ndarray, references: np.ndarray | None = None) -> str:
    """Means of accuracy and log loss, (draws, 2), each marked where it is behind the better of (draws, 2, 2)."""
    cells = []
    for number, (sign, digits) in enumerate(((1, 3), (-1, 2))):
        mark = ""
        if references is not None:
            means = sign * references[:, :, number].mean(axis=0)
            better = references[:, int(np.nanargmax(means)), number]
            behind = sign * (better - values[:, number])
            error = behind.std(ddof=1) / np.sqrt(len(behind)) if len(behind) > 1 else 0.0
            mark = "*" if behind.mean() > error else ""
        mean = values[:, number].mean()
        cells.append("-" if np.isnan(mean) else f"{mean:.{digits}f}{mark}")
    return " / ".join(cells)


if __name__ == "__main__":
    main()
