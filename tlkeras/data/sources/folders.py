"""Images in folders of classes, and the reader of any source by its name."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from tlkeras.config.frames import Frame, is_frame
from tlkeras.config.recipe import TABLE_SUFFIXES, Recipe, list_recipes, load_recipe
from tlkeras.data.cells import sort_names
from tlkeras.data.headers import EXTENSIONS, InvalidImage, detect_format, explain_format, explain_os_error, to_printable
from tlkeras.data.issues import describe_issues
from tlkeras.data.sources.datasets import read_digits, read_elpv, read_tfds
from tlkeras.data.sources.manifests import DEFAULTS, SourceOptions, build_table, read_manifest
from tlkeras.data.sources.metadata_files import find_metadata, has_labels, join_metadata
from tlkeras.data.sources.table_files import Lines
from tlkeras.data.splits import find_split
from tlkeras.data.tables import ImageTable
from tlkeras.errors import DataError, RecipeError, list_some, suggest

DEFAULT_RECIPE = "linear_probe"
BUILTIN_DATASETS = ("elpv", "sklearn-digits")
_ARCHIVES = (".zip", ".tar", ".tgz", ".tbz", ".txz", ".gz", ".bz2", ".xz", ".7z", ".rar")
_SPREADSHEETS = (".xls", ".xlsx", ".xlsm", ".ods", ".numbers")
_ANNOTATIONS = {"labels", "annotations"}
_AS_CLASSES = "If first-level folders are classes, whatever their names: --set data.folders=classes."


# Hidden files, and what Windows, macOS, Linux and network drives put beside people's files.
_SYSTEM_FILES = re.compile(
    r"\..*|~\$.*|thumbs\.db|ehthumbs\w*\.db|desktop\.ini|\$recycle\.bin|system volume information|found\.\d{3}|icon\r"
    r"|__macosx|__pycache__|network trash folder|temporary items|lost\+found|#sharebin|@(tmp|appdata|system)"
    r"|[@#].*(eadir|thumb|recycle|recently|snapshot).*",
    re.IGNORECASE,
)


@dataclass
class FileTree:
    """The files below a folder, the root, in order; what is left out is collected on the way."""

    root: str  # without links
    follow: bool = True  # links out of the root, and to folders
    rejected: list[InvalidImage] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)  # hidden files and those of systems, by name
    outside: int = 0  # images that links outside the root lead to

    def list_folders(self, folder: str) -> list[str]:
        """The folders in a folder; images beside them are rejected."""
        folders = []
        for entry in self._list_entries(folder):
            if problem := self._check_link(entry):
                self.rejected.append(problem)
            elif entry.is_dir():
                folders.append(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                self.rejected.append(InvalidImage(entry.path, "no-class", "not in a class folder"))
        return folders

    def look_into(self, folder: str) -> tuple[list[str], int]:
        """The folders in a folder, and the number of images beside them; nothing is collected."""
        other = FileTree(self.root, self.follow)
        folders = other.list_folders(folder)
        return folders, sum(bad.code == "no-class" for bad in other.rejected)

    def walk(self, folder: str) -> Iterator[str]:
        """Yield the images in a folder and those below it."""
        folders, seen = [folder], set()
        while folders:
            current, below = folders.pop(), []
            place = os.path.realpath(current)
            if place in seen:
                self.rejected.append(InvalidImage(current, "linked-folder", "a link to a folder that was already read"))
                continue
            seen.add(place)
            for entry in self._list_entries(current):
                if problem := self._check_link(entry):
                    self.rejected.append(problem)
                elif entry.is_dir():
                    below.append(entry.path)
                elif problem := _check_file(entry):
                    self.rejected.append(problem)
                else:
                    self.outside += not self._holds(os.path.realpath(entry.path) if entry.is_symlink() else place)
                    yield entry.path
            folders += reversed(below)

    def list_notes(self) -> list[str]:
        """Sentences on skipped files and on images outside the root."""
        notes = []
        if self.skipped:
            names = ", ".join(f"{to_printable(name)} ({count})" for name, count in self.skipped.most_common(5))
            more = ", ..." if len(self.skipped) > 5 else ""
            notes.append(f"Hidden files and those that systems leave behind are skipped: {names}{more}.")
        if self.outside:
            way_out = "`data.links: refuse` leaves them out"
            notes.append(f"{self.outside:,} of the images lie outside the folder, where links lead; {way_out}.")
        return notes

    def _list_entries(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self.rejected.append(InvalidImage(folder, "forbidden", f"the folder cannot be listed: {error.strerror}"))
            return []
        hidden = {entry.name for entry in found if _SYSTEM_FILES.fullmatch(entry.name)}
        self.skipped.update("._*" if name.startswith("._") else name for name in hidden)
        return [entry for entry in found if entry.name not in hidden]

    def _holds(self, target: str) -> bool:
        return f"{target}/".startswith(f"{self.root.rstrip('/')}/")

    def _check_link(self, entry: os.DirEntry[str]) -> InvalidImage | None:
        if not entry.is_symlink():
            return None
        target, here = os.path.realpath(entry.path), os.path.realpath(os.path.dirname(entry.path))
        if not os.path.exists(entry.path):
            return InvalidImage(entry.path, "missing", "a link to a missing file")
        if not self.follow and not self._holds(target):
            return InvalidImage(entry.path, "outside-root", "a link that leads out of the folder (data.links: refuse)")
        if any(f"{folder}/".startswith(f"{target.rstrip('/')}/") for folder in (here, self.root)):
            return InvalidImage(entry.path, "loop", "a link to a folder that holds it")
        if os.path.isdir(target) and not self.follow:
            return InvalidImage(entry.path, "linked-folder", "a link to a folder (data.links: refuse)")
        return None


def _check_file(entry: os.DirEntry[str]) -> InvalidImage | None:
    if not entry.is_file():
        return InvalidImage(entry.path, "special-file", "it is not a regular file")
    if os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
        return None
    try:
        with open(entry.path, "rb") as file:
            start = file.read(512)
        refusal = explain_format(detect_format(start)) if start else ("empty", "the file is empty")
    except OSError as error:
        refusal = explain_os_error(error)
    return InvalidImage(entry.path, *refusal) if refusal else None


def read_table(
    source: str,
    *,
    store: Path | None = None,
    tfds_data_dir: Path | None = None,
    options: SourceOptions = DEFAULTS,
) -> ImageTable:
    """The table of a source: a folder with one folder per class, a manifest, or a packaged set.

    Packaged sets are "tfds:NAME", "tfds:NAME/CONFIG", "elpv" and "sklearn-digits" ("./elpv" is a folder of that name).
    Images that are not files yet are written below `store`, once. A DataError lists all problems with the source.
    """
    if source in BUILTIN_DATASETS:
        return read_elpv() if source == "elpv" else read_digits(store)
    if source.startswith("tfds:"):
        return read_tfds(source, store, tfds_data_dir)
    path = os.path.expanduser(source)
    if os.path.isdir(path):
        return read_folder(source, options)
    if _is_manifest(path):
        return read_manifest(source, options)
    if os.path.isfile(path) and path.lower().endswith(_ARCHIVES):
        raise DataError("Archives are not read.", f"{source!r}", "Unpack it, and pass the folder.")
    if os.path.isfile(path) and path.lower().endswith(_SPREADSHEETS):
        raise DataError("Spreadsheets are not read.", f"{source!r}", "Save it as CSV UTF-8, and pass that.")
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
    if os.path.isdir(path) or _is_manifest(path) or path.lower().endswith(_SPREADSHEETS):
        return True
    return reference in BUILTIN_DATASETS or reference.startswith("tfds:")


def _is_manifest(path: str) -> bool:
    return os.path.isfile(path) and path.lower().endswith(TABLE_SUFFIXES)


@runtime_checkable
class RecipeSource(Protocol):
    """Images that know which recipe they are for, as `load_data` returns them."""

    def make_recipe(self, *, overrides: Mapping[str, Any] | None = None) -> Recipe: ...


def load_recipe_or_source(
    reference: str | Path | Recipe | RecipeSource | Frame, overrides: Mapping[str, Any] | None = None
) -> tuple[Recipe, bool]:
    """A recipe, and True if it was given; for a source, see `is_data_source`, it is `linear_probe` on its images."""
    if isinstance(reference, RecipeSource):
        return reference.make_recipe(overrides=overrides), False
    if is_frame(reference):
        return load_recipe(DEFAULT_RECIPE, {"name": "frame", "data.source": reference, **(overrides or {})}), False
    if not isinstance(reference, str | Path | Recipe):
        rule = "This takes a recipe, a folder, a table, a frame, or what load_data returns."
        raise RecipeError(rule, type(reference).__name__, "Of images in memory: tlkeras.load_data(images).")
    if isinstance(reference, Recipe) or not is_data_source(str(reference)) or reference in list_recipes():
        return load_recipe(reference, overrides), True
    return load_recipe(DEFAULT_RECIPE, {**list_overrides(str(reference)), **(overrides or {})}), False


def list_overrides(source: str) -> dict[str, str]:
    """What makes a recipe one for a source, which it is named after: values by dotted key."""
    path = Path(source)
    bare = path.stem if path.suffix.lower() in TABLE_SUFFIXES else path.name
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", bare).strip("-.") or "images"
    return {"name": name, "data.source": source}


def read_folder(source: str, options: SourceOptions = DEFAULTS) -> ImageTable:
    """Read `root/class/...` or, with splits given, `root/train/class/...`, `root/val/...` and `root/test/...`.

    The label is the name of the class folder, in Unicode's normal form C; images may lie in folders below it. Files of
    operating systems are skipped; `ImageTable.rejected` lists what else is left out, see `FileTree`. A DataError is
    raised if there is no image in a class folder, or if the folders look like splits and are not named so.
    """
    root = os.path.realpath(os.path.expanduser(source))
    tree = FileTree(root, options.links == "follow")
    top = root if options.folders == "classes" else _unwrap(tree)
    place, metadata = _read_metadata(source, tree, top, options)
    if metadata and has_labels(metadata, options):
        return _build_from_metadata(source, tree, place, metadata, options)
    folders = _class_folders(tree, top, options)
    lost = ["" if bad.code in ("loop", "no-class") else _label(bad.path) for bad in tree.rejected]
    rows: list[tuple[str, str, str]] = []
    for split, label, folder in folders:
        rows += [(path, label, split) for path in tree.walk(folder)]
        lost += [label] * (len(tree.rejected) - len(lost))
    if not rows and metadata:
        return _build_from_metadata(source, tree, place, metadata, options)
    if not rows:
        classes = len({label for _, label, _ in folders})
        received = f"{classes} class folder(s) and no image" if classes else "no class folder"
        headline = f"No images found. Received: {source!r} with {received}. Put images into one folder per class."
        reasons = list_some(describe_issues(tree.rejected))
        hint = f" {_AS_CLASSES}" if tree.look_into(top)[0] else ""
        raise DataError.from_problems(headline + hint, reasons)
    _check_depth(tree, folders, {label for _, label, _ in rows})
    paths, names, splits = map(list, zip(*rows, strict=True))
    notes = [f"The classes are the folders in {to_printable(top)!r}."] if top != root else []
    if metadata:
        notes.append("The table `metadata` has no column 'label' and is not used; data.label names another column.")
    return ImageTable(
        source=source,
        root=Path(root),
        paths=paths,
        keys=[to_printable(path.removeprefix(root).lstrip(os.sep)).replace(os.sep, "/") for path in paths],
        columns={"label": names, "split": splits} if splits[0] else {"label": names},
        defaults={"label": "label"},
        classes={"label": sort_names({*names} | {label for _, label, _ in folders} - {*lost})},
        rejected=tuple(tree.rejected),
        lost={"label": lost},
        notes=(*notes, *tree.list_notes()),
    )


def _read_metadata(source: str, tree: FileTree, top: str, options: SourceOptions) -> tuple[str, Lines | None]:
    """The tables `metadata` of the root, of its folders of splits, or of what it wraps, and the folder of paths."""
    inner = tree.look_into(top)[0]
    places = [] if options.folders == "classes" else [tree.root, top, *(inner if len(inner) == 1 else ())]
    found = ((place, files) for place in places if (files := find_metadata(place)))
    place, files = next(found, ("", []))
    return place, join_metadata(source, files, place, options) if files else None


def _build_from_metadata(source: str, tree: FileTree, place: str, lines: Lines, options: SourceOptions) -> ImageTable:
    """The table of a folder of images by its tables `metadata`, with a note on images that these lack."""
    table = build_table(source, lines, place, options)
    known = {*map(os.path.realpath, table.paths)}
    others = [path for path in tree.walk(tree.root) if os.path.realpath(path) not in known]
    told = f"Images that the table lacks are left out: {len(others):,}, such as "
    notes = [f"{told}{to_printable(path)}." for path in others[:1]]
    return replace(table, notes=(*table.notes, *notes))


def iter_image_files(
    folder: str | os.PathLike[str], rejected: list[InvalidImage], follow: bool = True
) -> Iterator[str]:
    """Yield the image files below a folder, in order; others are appended to `rejected`, as in `read_folder`."""
    tree = FileTree(os.path.realpath(folder), follow, rejected)
    yield from tree.walk(tree.root)


def _unwrap(tree: FileTree) -> str:
    """The folder with the class folders or splits: below folders that hold nothing but one folder of folders."""
    folder = tree.root
    while True:
        folders, images = tree.look_into(folder)
        if {"blobs", "snapshots"} <= {*map(os.path.basename, folders)}:  # a cache of the Hugging Face hub
            folders = [os.path.join(folder, "snapshots")]
        inner, below = tree.look_into(folders[0]) if folders else ([], 0)
        if len(folders) != 1 or images or below or not inner or find_split(os.path.basename(folders[0])):
            return folder
        folder = folders[0]


def _class_folders(tree: FileTree, folder: str, options: SourceOptions) -> list[tuple[str, str, str]]:
    tops = tree.list_folders(folder)
    names = [_label(top) for top in tops]
    classes = [("", name, top) for name, top in zip(names, tops, strict=True)]
    splits = list(map(find_split, names))
    if options.folders == "classes":
        return classes
    if "train" in splits and "" not in splits:
        pairs = zip(splits, tops, strict=True)
        return [(split, _label(one), one) for split, top in pairs for one in tree.list_folders(top)]
    looks = [tree.look_into(top) for top in tops]
    inner = [frozenset() if images else frozenset(_label(one).lower() for one in found) for found, images in looks]
    # A class may be called "train": it holds images, a split holds class folders.
    if "train" in splits and inner[splits.index("train")] and len({*splits}) > 2:
        others = [name for name, split in zip(names, splits, strict=True) if not split]
        way_out = f"Move them away, or move the class folders up. {_AS_CLASSES}"
        raise DataError("Found other folders next to those of the splits.", ", ".join(list_some(others)), way_out)
    if len(tops) > 1 and inner[0] and len({*inner}) == 1 and not _ANNOTATIONS & {*map(str.lower, names)}:
        rule = "All folders hold the same folders and no images: they look like splits or parts, not like classes."
        received = f"{', '.join(list_some(names))}, with {', '.join(list_some(sorted(inner[0])))} in each"
        raise DataError(rule, received, f"Name them train, validation, test; or pass one of them. {_AS_CLASSES}")
    return classes


def _check_depth(tree: FileTree, folders: list[tuple[str, str, str]], found: set[str]) -> None:
    """Raise a DataError if the folders are those of object detection, or if the classes lie one level deeper."""
    names = {label.lower() for _, label, _ in folders}
    if _ANNOTATIONS & names and names <= {*_ANNOTATIONS, "images", "image"}:
        rule = "These are folders of object detection or segmentation (as YOLO has them), not of classes."
        way_out = "Put the images into one folder per class, or write a .csv with a path and a label per line."
        raise DataError(rule, ", ".join(sorted(names)), way_out)
    filled = [folder for _, label, folder in folders if label in found]
    inner, images = tree.look_into(filled[0])
    if len(filled) == 1 and len(inner) > 1 and not images:
        received = f"{to_printable(filled[0])!r} with {', '.join(list_some([_label(one) for one in inner]))}"
        way_out = "Pass that folder, or remove those beside it."
        raise DataError("All images lie in one folder, whose folders look like the classes.", received, way_out)


def _label(folder: str) -> str:
    return unicodedata.normalize("NFC", to_printable(os.path.basename(folder)))
