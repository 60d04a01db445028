"""Sets that come as packages: ELPV, scikit-learn's digits, and everything in TensorFlow Datasets."""

from __future__ import annotations

import contextlib
import csv
import importlib.util
import io
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from tlkeras.data.headers import detect_format
from tlkeras.data.sources.manifests import SPLIT_ALIASES, read_manifest
from tlkeras.data.tables import ImageTable
from tlkeras.errors import DataError, MissingExtraError, ResourceError, suggest
from tlkeras.progress import progress_bar

_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "GIF": "gif", "BMP": "bmp", "WebP": "webp"}
_CELLS_PER_MODULE = 60

# An image to be written: its path in the set, its bytes, its columns.
ImageRecord = tuple[str, bytes, dict[str, str]]


def read_elpv() -> ImageTable:
    """Read the 2,624 solar cells of the package elpv-dataset (Buerhop-Lutz et al. 2018, Deitsch et al. 2019).

    Columns:
        probability: Of a defect, as the file says: 0.0, 0.3333333333333333, 0.6666666666666666 or 1.0.
        defect: "defective" where the probability is at least 0.5.
        any_defect: "defective" where it is above 0, the label of Deitsch et al.
        cell_type: "mono" or "poly".
        certainty: The weight of Deitsch et al.: the probability where raters were unsure (1/3, 2/3), otherwise 1.
        module: Pseudo-modules to group by. The file has no module, but lists the cells of a module together: each run
            of one type is cut into the round(n / 60) nearly equal parts that modules of 60 cells would give. That
            makes the 44 modules (18 mono, 26 poly) of the publication; their borders within a run are approximate.

    Raises:
        MissingExtraError: The package is not installed.
    """
    found = importlib.util.find_spec("elpv_dataset")
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError("The source 'elpv'", "quickstart")
    root = Path(found.submodule_search_locations[0]).resolve() / "data"
    lines = [line.split() for line in (root / "labels.csv").read_text(encoding="utf-8").splitlines() if line.strip()]
    keys, probabilities, types = ([line[at] for line in lines] for at in range(3))
    chances = [float(text) for text in probabilities]
    classes = ("functional", "defective")
    return ImageTable(
        source="elpv",
        root=root,
        paths=[str(root / key) for key in keys],
        keys=keys,
        columns={
            "probability": probabilities,
            "defect": [classes[chance >= 0.5] for chance in chances],
            "any_defect": [classes[chance > 0] for chance in chances],
            "cell_type": types,
            "certainty": [text if 0 < chance < 1 else "1" for text, chance in zip(probabilities, chances, strict=True)],
            "module": _number_modules(types),
        },
        defaults={"label": "defect", "stratify": "cell_type"},
        classes={"defect": classes, "any_defect": classes, "cell_type": ("mono", "poly")},
        facts={
            "licence": "CC BY-NC-SA 4.0",
            "url": "https://github.com/zae-bayern/elpv-dataset",
            "citation": "Buerhop-Lutz et al., A Benchmark for Visual Identification of Defective Solar Cells in "
            "Electroluminescence Imagery, EU PVSEC 2018, doi:10.4229/35thEUPVSEC20182018-5CV.3.15; "
            "Deitsch et al., Automatic classification of defective photovoltaic module cells in "
            "electroluminescence images, Solar Energy 185 (2019), doi:10.1016/j.solener.2019.02.067",
        },
    )


def _number_modules(types: list[str]) -> list[str]:
    modules: list[str] = []
    number = 0
    for kind, run in groupby(types):
        length = len(list(run))
        for part in np.array_split(np.arange(length), max(1, round(length / _CELLS_PER_MODULE))):
            number += 1
            modules += [f"{kind}-{number:02d}"] * len(part)
    return modules


def read_digits(store: Path | None) -> ImageTable:
    """Read scikit-learn's 1,797 handwritten digits, 8x8 greys, as PNG files (0..16 becomes 0..255)."""

    def encode() -> Iterator[ImageRecord]:
        from PIL import Image
        from sklearn.datasets import load_digits

        digits = load_digits()
        for number, (image, target) in enumerate(zip(digits.images, digits.target, strict=True)):
            buffer = io.BytesIO()
            Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8)).save(buffer, "PNG")
            yield f"{target}/{number:04d}.png", buffer.getvalue(), {"label": str(target)}

    folder = _folder("sklearn-digits", store) / "sklearn-digits"
    _write_once(folder, ["label"], encode(), 1797)
    return replace(
        read_manifest(str(folder / "manifest.csv")),
        source="sklearn-digits",
        facts={
            "licence": "CC BY 4.0",
            "url": "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
            "citation": "Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning "
            "Repository 1998, doi:10.24432/C50P49",
        },
    )


def read_tfds(source: str, store: Path | None, data_dir: Path | None = None) -> ImageTable:
    """Read "tfds:NAME" or "tfds:NAME/CONFIG"; the encoded images are written below `store` once.

    Every class label becomes a column, as do scalar texts and whole numbers. The splits train, validation and test
    are read; where a set has none of them, all of its splits, without splits.

    Raises:
        DataError: Unknown name, no images, or a set that is not here and cannot be downloaded.
    """
    folder = _folder(source, store)
    builder = _prepare(source, data_dir)
    features = builder.info.features
    image = _find_image(source, features)
    columns = _choose_columns(features)
    splits = {name: SPLIT_ALIASES[name] for name in builder.info.splits if name in SPLIT_ALIASES}
    splits = splits or dict.fromkeys(builder.info.splits, "")
    folder = folder / "tfds" / builder.info.full_name
    total = sum(builder.info.splits[name].num_examples for name in splits)
    _write_once(folder, [*columns, "split"], _encode_tfds(builder, image, columns, splits), total)
    table = read_manifest(str(folder / "manifest.csv"))
    supervised = builder.info.supervised_keys or ()
    labels = {name: features[name].names for name in columns if hasattr(features[name], "names")}
    label = next((name for name in (*supervised[1:2], "label", *labels) if name in columns), "label")
    return replace(
        table,
        source=source,
        defaults={"label": label},
        classes={name: _used(names, table.columns[name]) for name, names in labels.items()},
        facts={
            "licence": str(getattr(builder.info.redistribution_info, "license", "") or "see the set's own page"),
            "url": str(builder.info.homepage),
            "citation": str(builder.info.citation),
            "version": str(builder.info.version),
        },
    )


def _used(names: list[str], values: list[str]) -> tuple[str, ...]:
    used = set(values)
    return tuple(name for name in names if name in used)


def _prepare(source: str, data_dir: Path | None) -> Any:
    import tensorflow_datasets as tfds

    name = source.removeprefix("tfds:")
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        raise DataError("There must be a TensorFlow dataset of that name.", source, suggest(name, known)) from None
    except ValueError as error:  # an unknown configuration
        raise DataError("A TensorFlow dataset is named tfds:NAME or tfds:NAME/CONFIG.", f"{source} ({error})") from None
    try:
        with contextlib.redirect_stdout(sys.stderr):  # it prints; standard output belongs to results
            builder.download_and_prepare()
    except Exception as error:  # a builder downloads and unpacks with code of its own
        raise DataError(
            f"The TensorFlow dataset {name!r} must be here or be downloadable.",
            f"{type(error).__name__}: {str(error).partition(chr(10))[0]}",
            f"Prepare it where there is a network, and copy it to {builder.data_dir}",
        ) from error
    return builder


def _find_image(source: str, features: Any) -> str:
    import tensorflow_datasets as tfds

    found = [name for name, feature in features.items() if isinstance(feature, tfds.features.Image)]
    if not found:
        raise DataError("A TensorFlow dataset must hold an image per example.", f"{source} with {', '.join(features)}")
    return found[0]


def _choose_columns(features: Any) -> dict[str, Callable[[Any], str]]:
    """Return, by name, how the value of a feature is written into a column."""
    import tensorflow_datasets as tfds

    def write(feature: Any) -> Callable[[Any], str]:
        if isinstance(feature, tfds.features.ClassLabel):
            return lambda value: feature.int2str(int(value)) if value >= 0 else ""
        return lambda value: value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

    return {
        name: write(feature)
        for name, feature in features.items()
        if feature.shape == () and np.dtype(feature.np_dtype).kind in "iuSO" and name not in ("path", "split")
    }


def _encode_tfds(
    builder: Any, image: str, columns: dict[str, Callable[[Any], str]], splits: dict[str, str]
) -> Iterator[ImageRecord]:
    import tensorflow_datasets as tfds

    decoders = {image: tfds.decode.SkipDecoding()}
    for name, split in splits.items():
        examples = builder.as_dataset(split=name, decoders=decoders, shuffle_files=False)
        for number, example in enumerate(tfds.as_numpy(examples)):
            data = example[image]
            path = f"{name}/{number // 1000:04d}/{number:07d}.{_EXTENSIONS.get(detect_format(data), 'bin')}"
            yield path, data, {**{column: write(example[column]) for column, write in columns.items()}, "split": split}


def _folder(source: str, store: Path | None) -> Path:
    if store is None:
        raise DataError(f"The images of {source!r} are written to files first.", "no folder for them", "Pass `store`.")
    return Path(store).expanduser()


def _write_once(folder: Path, names: list[str], entries: Iterable[ImageRecord], total: int) -> None:
    """Write images and their manifest aside, and rename the whole when it is complete."""
    if folder.is_dir():
        return
    aside = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    try:
        aside.mkdir(parents=True)
        with (
            open(aside / "manifest.csv", "w", encoding="utf-8", newline="") as file,
            progress_bar("Writing images", total, "images") as advance,
        ):
            writer = csv.writer(file)
            writer.writerow(["path", *names])
            for path, data, columns in entries:
                (aside / path).parent.mkdir(parents=True, exist_ok=True)
                (aside / path).write_bytes(data)
                writer.writerow([path, *(columns[name] for name in names)])
                advance(1)
        _rename(aside, folder)
    except OSError as error:
        raise ResourceError(f"Images must be written to {str(folder)!r}.", error.strerror or error) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _rename(aside: Path, folder: Path) -> None:
    try:
        os.rename(aside, folder)
    except OSError:
        # Another process has written the same meanwhile.
        if not folder.is_dir():
            raise
