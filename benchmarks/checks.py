"""What `tlkeras check` finds of planted copies, leaks, wrong labels and outliers: precision and recall.

    python benchmarks/checks.py [--images 1000] [--seed 0]

Solar cells (ELPV) and windows cut from photographs (scikit-image, scikit-learn). Images that look the same without
planting are left out first, because nobody knows whether such a pair shows one thing. Then copies of 5 % are planted
in each way, half of them as leaks across a split; 5 % of the labels are flipped; 1 % of the other set are added as
outliers. Wrong labels are looked for in features of EfficientNet-Lite0, as `check` does it: ELPV with its
own labels (some of which are wrong), and photographs by what they were cut from. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import skimage.data
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_images

from tlkeras.backbones.builder import build_backbone
from tlkeras.data.quality.duplicates import find_duplicates
from tlkeras.data.quality.label_issues import find_outliers
from tlkeras.data.quality.near_duplicates import find_near_duplicates, read_thumbnails
from tlkeras.data.sources.folders import read_table
from tlkeras.data.tables import Dataset, build_dataset
from tlkeras.data.tasks import Task
from tlkeras.diagnostics.data_quality import find_data_issues
from tlkeras.features.extraction import extract_activations
from tlkeras.features.pooling import pool
from tlkeras.files import sha256

SHARE = 0.05
T, R = Image.Transpose, Image.Resampling
COPIES: dict[str, tuple[Callable[[Image.Image], Image.Image], int]] = {
    "JPEG, quality 75": (lambda image: image, 75),
    "JPEG, quality 40": (lambda image: image, 40),
    "half the size": (lambda image: image.resize((image.width // 2, image.height // 2), R.BICUBIC), 85),
    "twice the size": (lambda image: image.resize((image.width * 2, image.height * 2), R.BICUBIC), 85),
    "10 % brighter": (lambda image: ImageEnhance.Brightness(image).enhance(1.1), 85),
    "20 % less contrast": (lambda image: ImageEnhance.Contrast(image).enhance(0.8), 85),
    "mirrored": (lambda image: image.transpose(T.FLIP_LEFT_RIGHT), 85),
    "turned by a quarter": (lambda image: image.transpose(T.ROTATE_90), 85),
    "1 % cropped off each side": (lambda image: crop(image, 0.01), 85),
    "3 % cropped off each side": (lambda image: crop(image, 0.03), 85),
}


def crop(image: Image.Image, share: float) -> Image.Image:
    across, down = round(image.width * share), round(image.height * share)
    return image.crop((across, down, image.width - across, image.height - down))


def write_photographs(folder: Path, count: int) -> Path:
    """Write windows of photographs that overlap by less than a tenth, one class per photograph."""
    photographs = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea(), skimage.data.rocket()]
    photographs += [skimage.data.retina(), skimage.data.immunohistochemistry(), *load_sample_images().images]
    windows = []
    for label, pixels in enumerate(photographs):
        step = max(24, round((pixels.shape[0] * pixels.shape[1] * len(photographs) / count) ** 0.5))
        for top in range(0, pixels.shape[0] - step, step):
            for left in range(0, pixels.shape[1] - step, step):
                windows.append((label, pixels[top : top + step, left : left + step]))
    contrasted = [(label, window) for label, window in windows if window.std() > 12]
    for number, (label, window) in enumerate(contrasted):
        path = folder / str(label) / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(window)).resize((224, 224), R.BICUBIC).save(path)
    return folder


def drop_lookalikes(paths: list[str]) -> np.ndarray:
    """The rows without those that look like an earlier one, int64 [n]."""
    thumbnails, readable = read_thumbnails(paths)
    groups = find_near_duplicates(thumbnails, [sha256(paths[row]) for row in readable])
    doubled = {row for group in groups for row in group.rows[1:]}
    return np.array([row for place, row in enumerate(readable.tolist()) if place not in doubled])


def measure_copies(paths: Sequence[str], folder: Path, random: np.random.Generator) -> None:
    """Plant copies of each kind separately, and print a row for it; the seconds are those of the search."""
    plain, _ = read_thumbnails(paths)
    digests = [sha256(path) for path in paths]
    planted: dict[str, np.ndarray] = {}
    copies: list[str] = []
    for number, (way, (change, quality)) in enumerate(COPIES.items()):
        planted[way] = random.choice(len(paths), round(SHARE * len(paths)), replace=False)
        for row in planted[way]:
            copies.append(str(folder / f"{number}-{row}.jpg"))
            with Image.open(paths[row]) as image:
                change(image.convert("RGB")).save(copies[-1], quality=quality)
    drawn, _ = read_thumbnails(copies)
    for number, (way, chosen) in enumerate(planted.items()):
        part = slice(number * len(chosen), (number + 1) * len(chosen))
        splits = np.array(["train"] * len(paths) + ["test"] * len(chosen), dtype=object)
        started = time.perf_counter()
        every = np.array([*digests, *(sha256(path) for path in copies[part])], dtype=object)
        made = make_dataset([*paths, *copies[part]], len(paths), chosen)
        dataset = replace(made, digests=every, split=splits)
        found = find_duplicates(dataset, np.concatenate([plain, drawn[part]]))
        seconds = time.perf_counter() - started
        wanted = {(int(row), len(paths) + place) for place, row in enumerate(chosen)}
        pairs = {(one, other) for group in found for at, one in enumerate(group.rows) for other in group.rows[at + 1 :]}
        leaks = {pair for group in found if group.leaking for pair in wanted if set(pair) <= set(group.rows)}
        print_row(way, len(wanted), len(pairs & wanted), len(pairs), len(leaks), seconds)


def make_dataset(paths: list[str], plain: int, chosen: np.ndarray) -> Dataset:
    """Images of two classes; copies have the class of their image."""
    labels = np.arange(plain) % 2
    empty = np.full(len(paths), "", dtype=object)
    objects = np.array(paths, dtype=object)
    targets = {"label": np.concatenate([labels, labels[chosen]])}
    weights = np.ones(len(paths), np.float32)
    task = Task("label", ("a", "b"))
    return Dataset("planted", Path(), objects, objects, (task,), targets, weights, *[empty] * 6)


def print_row(name: str, planted: int, right: int, found: int, leaks: int | None, seconds: float) -> None:
    precision = f"{right / found:.3f}" if found else "-"
    leaking = "" if leaks is None else f"{leaks / planted:.3f}"
    print(
        f"| {name} | {planted} | {found} | {precision} | {right / planted:.3f} | {leaking} | {seconds:.1f} |",
        flush=True,
    )


def compute_features(paths: list[str]) -> np.ndarray:
    extractor = pool(build_backbone("efficientnet_lite0", weights="packaged"), "average")
    with extract_activations(
        extractor, Dataset.of_files(paths, [sha256(path) for path in paths]), [{"model": "benchmark"}]
    ) as features:
        return np.asarray(features.outputs[0], np.float32)


def measure_label_issues(title: str, dataset: Dataset, strange: list[str], random: np.random.Generator) -> None:
    """Flip labels and add outliers, and print a row for each."""
    paths = [*dataset.paths, *strange]
    features = compute_features(paths)
    (task,) = dataset.tasks
    labels = dataset.targets[task.name]
    chosen = random.choice(len(labels), round(SHARE * len(labels)), replace=False)
    flipped = labels.copy()
    flipped[chosen] = (labels[chosen] + random.integers(1, len(task.class_names), len(chosen))) % len(task.class_names)
    started = time.perf_counter()
    changed = Dataset(**{**dataset.__dict__, "targets": {task.name: flipped}})
    issues = find_data_issues(changed, np.arange(len(labels)), features[: len(labels)], changed.groups)
    position = {str(key): row for row, key in enumerate(changed.keys)}
    ranked = [position[image.key] for image in issues.mislabelled]
    seconds = time.perf_counter() - started
    found, first = set(ranked), set(ranked[: len(chosen)])
    right = set(chosen.tolist())
    print_row(f"{title}: 5 % of labels flipped", len(chosen), len(found & right), len(found), None, seconds)
    print_row(f"{title}: the same, as many as were flipped", len(chosen), len(first & right), len(first), None, seconds)
    started = time.perf_counter()
    odd = {outlier.row for outlier in find_outliers(features)}
    planted = set(range(len(labels), len(paths)))
    print_row(
        f"{title}: 1 % strangers", len(planted), len(odd & planted), len(odd), None, time.perf_counter() - started
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random = np.random.default_rng(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        photographs = build_dataset(read_table(str(write_photographs(Path(folder) / "windows", arguments.images))))
        cells = build_dataset(read_table("elpv"))
        sets = {}
        for title, dataset in (("ELPV", cells), ("photographs", photographs)):
            rows = np.sort(random.permutation(len(dataset))[: arguments.images])
            taken = dataset.take(rows)
            sets[title] = taken.take(drop_lookalikes(taken.paths.tolist()))
            print(f"{title}: {len(taken):,} images, {len(sets[title]):,} without lookalikes\n")
            print("| planted | number | pairs found | precision | recall | leaks found | seconds |")
            print("|---|---|---|---|---|---|---|")
            copies = Path(folder) / title
            copies.mkdir()
            measure_copies(sets[title].paths.tolist(), copies, random)
            print()
        print("| planted | number | found | precision | recall | | seconds |")
        print("|---|---|---|---|---|---|---|")
        for title, other in (("ELPV", "photographs"), ("photographs", "ELPV")):
            strange = sets[other].paths[: max(1, len(sets[title]) // 100)].tolist()
            measure_label_issues(title, sets[title], strange, random)


if __name__ == "__main__":
    main()
