"""Data sets from packages: ELPV, scikit-learn's digits, and TensorFlow Datasets."""

import contextlib
import csv
import importlib.util
import io
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from importlib.resources import files
from itertools import count, groupby
from pathlib import Path
from typing import Any

import numpy as np

from tlkeras.data.headers import detect_format
from tlkeras.data.sources.manifests import read_manifest, write_lines
from tlkeras.data.splits import SPLIT_WORDS
from tlkeras.data.tables import ImageTable
from tlkeras.errors import DataError, MissingExtraError, ResourceError, suggest
from tlkeras.files import atomic_folder
from tlkeras.progress import progress_bar

_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "GIF": "gif", "BMP": "bmp", "WebP": "webp"}
_CELLS_PER_MODULE = 60

ImageRecord = tuple[str, bytes, dict[str, str]]
"""An image to write: its path in the data set, its bytes, its columns."""


def _read_facts(source: str) -> dict[str, str]:
    with (files("tlkeras.data.sources") / "datasets.csv").open(encoding="utf-8") as file:
        return next(row for row in csv.DictReader(file) if row.pop("source") == source)


def read_elpv() -> ImageTable:
    """The 2,624 solar cells of the package elpv-dataset (Buerhop-Lutz et al. 2018, Deitsch et al. 2019).

    The probability of a defect is as in the file, 0.0, 0.3333333333333333, 0.6666666666666666 or 1.0; a cell is
    defective from 0.5 on, or, by the label `any_defect` of Deitsch et al., above 0. Certainty is their weight: the
    probability where raters were unsure (1/3, 2/3), otherwise 1. Modules are pseudo-modules to group by: the file lists
    the cells of a module together, so that each run of n cells of one type is cut into round(n / 60) nearly equal
    parts. These are the 44 modules (18 mono, 26 poly) of the publication; their borders within a run are approximate.
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
        facts=_read_facts("elpv"),
    )


def _number_modules(types: list[str]) -> list[str]:
    modules: list[str] = []
    numbers = count(1)
    for _, run in groupby(types):
        cells = list(run)
        for part in np.array_split(cells, max(1, round(len(cells) / _CELLS_PER_MODULE))):
            modules += [f"{part[0]}-{next(numbers):02d}"] * len(part)
    return modules


def read_digits(store: Path | None) -> ImageTable:
    """Scikit-learn's 1,797 handwritten digits, 8x8 grey, as PNG files (0..16 becomes 0..255)."""

    def encode() -> Iterator[ImageRecord]:
        from PIL import Image
        from sklearn.datasets import load_digits

        digits = load_digits()
        for number, (image, target) in enumerate(zip(digits.images, digits.target, strict=True)):
            buffer = io.BytesIO()
            Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8)).save(buffer, "PNG")
            yield f"{target}/{number:04d}.png", buffer.getvalue(), {"label": str(target)}

    source = "sklearn-digits"
    folder = _folder(source, store) / source
    _write_once(folder, ["label"], encode(), 1797)
    return replace(read_manifest(str(folder / "manifest.csv")), source=source, facts=_read_facts(source))


def read_tfds(source: str, store: Path | None, data_dir: Path | None = None) -> ImageTable:
    """The images of "tfds:NAME" or "tfds:NAME/CONFIG"; the encoded images are written below `store` once.

    Class labels, scalar texts and whole numbers become columns. The splits train, validation and test are read, or all
    images without a split. A DataError is raised for an unknown name, no images, or a failed preparation.
    """
    import tensorflow_datasets as tfds

    folder = _folder(source, store)
    builder = _prepare(source, data_dir)
    features = builder.info.features
    images = [name for name, feature in features.items() if isinstance(feature, tfds.features.Image)]
    if not images:
        raise DataError("The TensorFlow dataset has no images.", f"{source} with {', '.join(features)}")
    columns = _choose_columns(features)
    splits = {name: SPLIT_WORDS[name] for name in builder.info.splits if name in SPLIT_WORDS}
    splits = splits or dict.fromkeys(builder.info.splits, "")
    folder = folder / "tfds" / builder.info.full_name
    total = sum(builder.info.splits[name].num_examples for name in splits)
    _write_once(folder, [*columns, "split"], _encode_tfds(builder, images[0], columns, splits), total)
    table = read_manifest(str(folder / "manifest.csv"))
    supervised = builder.info.supervised_keys or ()
    labels = {name: features[name].names for name in columns if hasattr(features[name], "names")}
    label = next((name for name in (*supervised[1:2], "label", *labels) if name in columns), "label")
    return replace(
        table,
        source=source,
        defaults={"label": label},
        classes={name: tuple(filter(set(table.columns[name]).__contains__, names)) for name, names in labels.items()},
        facts={
            "licence": str(getattr(builder.info.redistribution_info, "license", "") or "see the data set's own page"),
            "url": str(builder.info.homepage),
            "citation": str(builder.info.citation),
            "version": str(builder.info.version),
        },
    )


def _prepare(source: str, data_dir: Path | None) -> Any:
    import tensorflow_datasets as tfds

    name = source.removeprefix("tfds:")
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        raise DataError("Unknown TensorFlow dataset.", source, suggest(name, known)) from None
    except ValueError as error:  # an unknown configuration
        way_out = "Write tfds:NAME or tfds:NAME/CONFIG."
        raise DataError("Unknown configuration of a TensorFlow dataset.", f"{source} ({error})", way_out) from None
    try:
        with contextlib.redirect_stdout(sys.stderr):  # it prints; standard output belongs to results
            builder.download_and_prepare()
    except Exception as error:  # a builder downloads and unpacks with code of its own
        rule = f"The TensorFlow dataset {name!r} is not prepared and could not be downloaded."
        received = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        way_out = f"Prepare it on a machine with a network, and copy it to {builder.data_dir}"
        raise DataError(rule, received, way_out) from error
    return builder


def _choose_columns(features: Any) -> dict[str, Callable[[Any], str]]:
    import tensorflow_datasets as tfds

    def formatter(feature: Any) -> Callable[[Any], str]:
        if isinstance(feature, tfds.features.ClassLabel):
            return lambda value: feature.int2str(int(value)) if value >= 0 else ""
        return lambda value: value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

    return {
        name: formatter(feature)
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
            texts = {column: format_value(example[column]) for column, format_value in columns.items()}
            yield path, data, {**texts, "split": split}


def _folder(source: str, store: Path | None) -> Path:
    if store is None:
        raise DataError(f"The images of {source!r} are written to files first.", "no folder", "Pass `store`.")
    return Path(store).expanduser()


def _write_once(folder: Path, names: list[str], entries: Iterable[ImageRecord], total: int) -> None:
    def write_images(temporary: Path, advance: Callable[[int], None]) -> Iterator[list[str]]:
        for path, data, columns in entries:
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
            (temporary / path).write_bytes(data)
            yield [path, *(columns[name] for name in names)]
            advance(1)

    if folder.is_dir():
        return
    try:
        with atomic_folder(folder) as temporary, progress_bar("Writing images", total, "images") as advance:
            write_lines(temporary / "manifest.csv", names, write_images(temporary, advance))
    except OSError as error:
        if not folder.is_dir():  # otherwise another process has written the same in the meantime
            raise ResourceError(f"Cannot write images to {str(folder)!r}.", error.strerror or error) from None
