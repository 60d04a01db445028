"""Images in folders of classes, and the reader of any source by its name."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tlkeras.config.recipe import Recipe, list_recipes, load_recipe
from tlkeras.data.headers import EXTENSIONS, SUPPORTED_FORMATS, InvalidImage, detect_format, to_printable
from tlkeras.data.sources.datasets import read_digits, read_elpv, read_tfds
from tlkeras.data.sources.manifests import SPLIT_ALIASES, read_manifest
from tlkeras.data.tables import ImageTable
from tlkeras.errors import DataError, list_some, suggest

BUILTIN_DATASETS = ("elpv", "sklearn-digits")
_ARCHIVES = (".zip", ".tar", ".tgz", ".tbz", ".txz", ".gz", ".bz2", ".xz", ".7z", ".rar")
_IGNORED = {"thumbs.db", "desktop.ini", "__macosx"}


def read_table(source: str, *, store: Path | None = None, tfds_data_dir: Path | None = None) -> ImageTable:
    """The table of a source: a folder with one folder per class, a CSV manifest, or a packaged set.

    Packaged sets are "tfds:NAME", "tfds:NAME/CONFIG", "elpv" and "sklearn-digits" ("./elpv" is a folder of that name).
    Images that are not files yet are written below `store`, once. A DataError lists all problems with the source.
    """
    if source in BUILTIN_DATASETS:
        return read_elpv() if source == "elpv" else read_digits(store)
    if source.startswith("tfds:"):
        return read_tfds(source, store, tfds_data_dir)
    path = os.path.expanduser(source)
    if os.path.isdir(path):
        return read_folder(source)
    if _is_manifest(path):
        return read_manifest(source)
    if os.path.isfile(path) and path.lower().endswith(_ARCHIVES):
        raise DataError("Archives are not read.", f"{source!r}", "Unpack it, and pass the folder.")
    rule = "The source is not a .csv manifest." if os.path.exists(path) else "There is no such source of images."
    kinds = "Pass a folder with one folder per class, a .csv manifest, tfds:NAME, elpv or sklearn-digits."
    parent, siblings = os.path.dirname(path), []
    with suppress(OSError):
        siblings = [os.path.join(parent, to_printable(name)) for name in os.listdir(parent or ".")][:100]
    near = suggest(source, [*BUILTIN_DATASETS, *siblings])
    raise DataError(rule, repr(source), f"{near} {kinds}" if near.startswith("Did") else kinds)


def is_data_source(reference: str) -> bool:
    """True for a folder, a manifest, a packaged set or a name of TensorFlow Datasets."""
    path = os.path.expanduser(reference)
    return reference in BUILTIN_DATASETS or reference.startswith("tfds:") or os.path.isdir(path) or _is_manifest(path)


def _is_manifest(path: str) -> bool:
    return os.path.isfile(path) and path.lower().endswith((".csv", ".tsv"))


def load_recipe_or_source(
    reference: str | Path | Recipe, overrides: Mapping[str, Any] | None = None
) -> tuple[Recipe, bool]:
    """A recipe, and True if it was given; for a source, see `is_data_source`, it is `linear_probe` on its images."""
    if isinstance(reference, Recipe) or not is_data_source(str(reference)) or reference in list_recipes():
        return load_recipe(reference, overrides), True
    source = str(reference)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(source).name).strip("-.") or "images"
    return load_recipe("linear_probe", {"name": name, "data.source": source, **(overrides or {})}), False


def read_folder(source: str) -> ImageTable:
    """Read `root/class/...` or, with splits given, `root/train/class/...`, `root/val/...` and `root/test/...`.

    The label is the name of the class folder, in Unicode's normal form C; images may lie in folders below it. Files of
    operating systems are ignored; `ImageTable.rejected` lists others without an image's name or content, links to
    folders or out of the root, pipes and devices. A DataError is raised if there is no image in a class folder.
    """
    root = os.path.realpath(os.path.expanduser(source))
    rejected: list[InvalidImage] = []
    labels: set[str] = set()
    rows: list[tuple[str, str, str]] = []
    for split, label, folder in _class_folders(root, rejected):
        labels.add(label)
        rows += [(path, label, split) for path in _walk(folder, root, rejected)]
    if not rows:
        received = f"{len(labels)} class folder(s) and no image" if labels else "no class folder"
        headline = f"No images found. Received: {source!r} with {received}. Put images into one folder per class."
        raise DataError.from_problems(headline, list_some([str(rejection) for rejection in rejected]))
    paths, names, splits = map(list, zip(*rows, strict=True))
    return ImageTable(
        source=source,
        root=Path(root),
        paths=paths,
        keys=[to_printable(path.removeprefix(root).lstrip(os.sep)).replace(os.sep, "/") for path in paths],
        columns={"label": names, "split": splits} if splits[0] else {"label": names},
        defaults={"label": "label"},
        classes={"label": tuple(sorted(labels))},
        rejected=tuple(rejected),
    )


def list_images(folder: str | os.PathLike[str]) -> list[str]:
    """The image files below a folder, in order."""
    return list(iter_image_files(folder, []))


def iter_image_files(folder: str | os.PathLike[str], rejected: list[InvalidImage]) -> Iterator[str]:
    """Yield the image files below a folder, in order; others are appended to `rejected`, as in `read_folder`."""
    root = os.path.realpath(folder)
    yield from _walk(root, root, rejected)


def _class_folders(root: str, rejected: list[InvalidImage]) -> Iterator[tuple[str, str, str]]:
    """Yield (split or "", label, folder)."""
    tops = _subfolders(root, root, rejected)
    words = [os.path.basename(top).lower() for top in tops]
    splits = [SPLIT_ALIASES.get(word, "") for word in words]
    if "train" in splits and len(set(splits) - {""}) > 1 and "" in splits:
        others = [to_printable(os.path.basename(top)) for top, split in zip(tops, splits, strict=True) if not split]
        way_out = "Move them away, or move the class folders up."
        raise DataError("Found other folders next to those of the splits.", ", ".join(list_some(others)), way_out)
    if "train" not in splits or "" in splits:
        yield from (("", _label(top), top) for top in tops)
        return
    for split, top in zip(splits, tops, strict=True):
        yield from ((split, _label(folder), folder) for folder in _subfolders(top, root, rejected))


def _label(folder: str) -> str:
    return unicodedata.normalize("NFC", to_printable(os.path.basename(folder)))


def _subfolders(folder: str, root: str, rejected: list[InvalidImage]) -> list[str]:
    folders = []
    for entry in _entries(folder, rejected):
        if entry.is_symlink():
            if problem := _check_link(entry, root):
                rejected.append(problem)
        elif entry.is_dir():
            folders.append(entry.path)
        elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
            rejected.append(InvalidImage(entry.path, "no-class", "not in a class folder"))
    return folders


def _walk(folder: str, root: str, rejected: list[InvalidImage]) -> Iterator[str]:
    folders = [folder]
    while folders:
        below = []
        for entry in _entries(folders.pop(), rejected):
            if not entry.is_symlink() and entry.is_dir():
                below.append(entry.path)
            elif problem := _check_entry(entry, root):
                rejected.append(problem)
            else:
                yield entry.path
        folders += reversed(below)


def _entries(folder: str, rejected: list[InvalidImage]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        rejected.append(InvalidImage(folder, "forbidden", f"the folder cannot be listed: {error.strerror}"))
        return []
    return sorted((entry for entry in shown if entry.name.lower() not in _IGNORED), key=lambda entry: entry.name)


def _check_entry(entry: os.DirEntry[str], root: str) -> InvalidImage | None:
    if entry.is_symlink():
        if problem := _check_link(entry, root):
            return problem
    elif not entry.is_file():
        return InvalidImage(entry.path, "special-file", "it is neither a file nor a folder")
    if os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
        return None
    try:
        with open(entry.path, "rb") as file:
            kind = detect_format(file.read(512))
    except OSError as error:
        return InvalidImage(entry.path, "forbidden", f"it cannot be opened: {error.strerror}")
    if kind in SUPPORTED_FORMATS:
        return None
    return InvalidImage(entry.path, "not-an-image", f"not a supported image ({kind})")


def _check_link(entry: os.DirEntry[str], root: str) -> InvalidImage | None:
    target = os.path.realpath(entry.path)
    if not target.startswith(root + os.sep):
        return InvalidImage(entry.path, "outside-root", "a link that leads out of the folder")
    if os.path.isdir(target):
        return InvalidImage(entry.path, "linked-folder", "a link to a folder")
    if not os.path.isfile(target):
        return InvalidImage(entry.path, "missing", "a link to a missing file")
    return None
