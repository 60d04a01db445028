"""Manifests: a table with the path of an image per line, and columns of labels, splits, weights and others."""

import csv
import os
import shlex
import stat
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from tlkeras.data.cells import split_cell
from tlkeras.data.headers import EXTENSIONS, ByteRange, InvalidImage, parse_slice, to_printable
from tlkeras.data.sources.table_files import ImageFinder, Lines, find_path_column, read_lines
from tlkeras.data.splits import find_split
from tlkeras.data.tables import SPLITS, ImageTable
from tlkeras.errors import DataError, fold_alike, suggest

FILE = "file"
"""The column with the path of a packed image before it was packed; see `tfrecords`."""
COLUMN_ROLES = ("label", "weight", "group", "domain")
_NAMED = 3  # of missing files


@dataclass(frozen=True)
class SourceOptions:
    """How a source is read; each is a key of a recipe's section `data`."""

    root: str | None = None  # the folder that paths of a manifest start from, by default its own
    path: str | None = None  # the column with these paths
    links: Literal["follow", "refuse"] = "follow"  # links and paths that lead out of the folder
    folders: Literal["auto", "classes"] = "auto"  # whether folders may be splits
    columns: tuple[str, ...] = ()  # those that are used; rows of one image that differ in others are equal
    separators: Mapping[str, str] = field(default_factory=dict)  # of labels, by column, "" for the default one


DEFAULTS = SourceOptions()


class _Rows(NamedTuple):
    numbers: Sequence[int]  # of lines
    written: Sequence[str]  # cells with the paths
    files: list[str]
    columns: dict[str, list[str]]


def read_manifest(source: str, options: SourceOptions = DEFAULTS) -> ImageTable:
    """Read a CSV, Parquet or JSON Lines file with a column of paths, see `PATH_COLUMNS`, and any others.

    Paths are relative to the file's folder, or absolute; they may name slices of packed files. The columns "label",
    "split", "weight", "group" and "domain", in any case, have these roles by default. Equal rows are merged. Missing
    images are listed in `ImageTable.rejected`; a DataError lists all other problems, with line numbers.
    """
    file = os.path.abspath(os.path.expanduser(source))
    return build_table(source, read_lines(source, file, options.path), os.path.dirname(file), options)


def build_table(source: str, lines: Lines, folder: str, options: SourceOptions) -> ImageTable:
    """The table of lines that were read from files in a folder, as `read_manifest` returns it."""
    finder = ImageFinder(_find_root(folder, options.root), options.root is not None, options.links == "follow")
    problems: list[str] = []
    rows, column, notes = _read_rows(source, lines, options.path, finder, problems)
    first = _merge_rows(rows, options, problems)
    _raise_any(source, problems)
    found = {row: _check_file(rows.files[row]) for row in first}
    kept, missing = ([row for row, bad in found.items() if bool(bad) is lost] for lost in (False, True))
    if repeated := len(rows.files) - len(first):
        notes.append(f"{repeated:,} rows name an image that another row names, and are merged with it.")
    if names := finder.rewritten:
        notes.append(
            f"{len(names):,} paths are spelled otherwise than their files, such as {names[0]!r}; they were found."
        )
    if missing:
        names = [to_printable(rows.written[row]) for row in missing]
        some = ", ".join(map(repr, names[:_NAMED])) + (", ..." if len(names) > _NAMED else "")
        notes.append(
            f"{len(names):,} of {len(first):,} images are missing: {some}. {finder.guess_cause(names, column)}"
        )
    if not kept:
        reasons = list(map(str, found.values()))[:_NAMED]
        raise DataError.from_problems(f"No image of the manifest {source!r} exists. {notes[-1]}", reasons)
    paths, root = [rows.files[row] for row in kept], finder.root
    if not all(path.startswith(root + os.sep) for path in paths):
        root = os.path.commonpath(list(map(os.path.dirname, paths)))
    return ImageTable(
        source=source,
        root=Path(root),
        paths=paths,
        keys=_make_keys(rows.files, root, rows.columns, kept),
        columns={name: [values[row] for row in kept] for name, values in rows.columns.items()},
        defaults={role: name for role in COLUMN_ROLES if (name := _find_role(role, rows.columns))},
        rejected=tuple(bad for bad in found.values() if bad),
        lost={name: [values[row] for row in missing] for name, values in rows.columns.items()},
        notes=tuple(notes),
    )


def _find_root(folder: str, root: str | None) -> str:
    """The folder that paths start from: `data.root`, seen from the manifest's folder or from the working directory."""
    tried = [os.path.join(base, os.path.expanduser(root or "")) for base in (folder, os.getcwd())]
    if found := next(filter(os.path.isdir, tried), None):
        return os.path.realpath(found)
    raise DataError("data.root is not a folder.", repr(root), f"Looked for {' and '.join(tried)}.")


def _find_role(role: str, columns: Mapping[str, list[str]]) -> str:
    return role if role in columns else next((name for name in columns if name.lower() == role), "")


def _read_rows(
    source: str, table: Lines, path: str | None, finder: ImageFinder, problems: list[str]
) -> tuple[_Rows, str, list[str]]:
    """The rows, the name of the column with their paths, and sentences on what was left out."""
    header, lines = table.header, table.rows
    column = find_path_column(header, path)
    _raise_any(source, _check_header_line(header, column, path))
    wrong = [(number, len(cells)) for number, cells in lines if len(cells) != len(header)]
    _raise_any(source, [f"line {number}: {count} fields instead of {len(header)}" for number, count in wrong])
    numbers, rows = zip(*lines, strict=True)
    texts = dict(zip(header, zip(*rows, strict=True), strict=True))
    written = texts.pop(str(column))
    texts.pop("path", None)  # another column of that name, which cleaned and packed manifests give to the paths
    files = list(map(finder.find, written))
    outside = zip(numbers, files, strict=True)
    problems += [f"line {number}: {file}" for number, file in outside if isinstance(file, ValueError)]
    columns = {name: [unicodedata.normalize("NFC", text.strip()) for text in cells] for name, cells in texts.items()}
    if split := _find_role("split", columns):
        columns["split"] = _normalise_splits(numbers, columns.pop(split), problems)
    return _Rows(numbers, written, list(map(str, files)), columns), str(column), [*table.notes]


def _merge_rows(rows: _Rows, options: SourceOptions, problems: list[str]) -> list[int]:
    """Positions of the first row of each image; labels of its further rows are joined to its own."""
    first: dict[str, int] = {}
    label = _find_role("label", rows.columns)
    separators = {name or label: separator for name, separator in options.separators.items()}
    used = [name for name in rows.columns if name in options.columns or name.lower() in (*COLUMN_ROLES, "split")]
    several = False
    for row, file in enumerate(rows.files):
        at = first.setdefault(file, row)
        for name in used if at != row else ():
            cells = rows.columns[name]
            if separator := separators.get(name):
                parts = [part for one in (at, row) for part in split_cell(cells[one], separator)]
                cells[at] = separator.join(dict.fromkeys(parts))
            elif cells[at] != cells[row]:
                where = f"line {rows.numbers[row]}: the same image as line {rows.numbers[at]}"
                problems.append(f"{where} with another {name!r}: {cells[row]!r}, not {cells[at]!r}")
                several = several or name in (label, *options.columns)
    if several and not separators:
        problems.insert(0, "If images have several labels, --set 'data.separator=|' joins those of such rows.")
    return list(first.values())


def write_lines(file: Path, columns: Iterable[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a new manifest; a row is the path of an image and the texts in the columns."""
    with open(file, "x", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(["path", *columns])
        writer.writerows(rows)


def _raise_any(source: str, problems: list[str]) -> None:
    if problems:
        raise DataError.from_problems(f"The manifest {source!r} cannot be used.", fold_alike(problems))


def _make_keys(paths: list[str], root: str, columns: Mapping[str, list[str]], rows: Sequence[int]) -> list[str]:
    """The key of each image: its path, or the path of a packed image before it was packed."""
    unpacked = columns.get(FILE, [""] * len(paths))
    keys = [
        (unpacked[row] if parse_slice(paths[row]) else "")
        or to_printable(paths[row].removeprefix(root).lstrip(os.sep)).replace(os.sep, "/")
        for row in rows
    ]
    return keys if len(set(keys)) == len(keys) else _make_keys(paths, root, {}, rows)


def _check_header_line(header: Sequence[str], column: str | None, path: str | None) -> list[str]:
    problems = [f"column {name!r} appears twice" for name in sorted(set(header)) if header.count(name) > 1]
    if "" in header:
        problems.append(f"column {list(header).index('') + 1} has no name")
    if column is None:
        wanted = f"{path!r} (data.path)" if path else "'path'"
        way_out = suggest(path, header) if path else _explain_header(header)
        problems.append(f"there is no column {wanted}, only {', '.join(header)}. {way_out}")
    return problems


def _explain_header(header: Sequence[str]) -> str:
    """The way out where no column of paths is found."""
    if os.path.splitext(header[0])[1].lower() in EXTENSIONS:
        return "The first line is no header: write `path,label` above it."
    if header[0].startswith("#"):
        return "The first line is a remark: remove it."
    if len(header) == 1:
        return "Separate the columns by commas, semicolons, tabs or bars."
    return f"Name it: --set data.path={shlex.quote(header[0] or 'COLUMN')}"


def _normalise_splits(numbers: Sequence[int], words: Sequence[str], problems: list[str]) -> list[str]:
    if not any(words):
        return list(words)
    for number, word in zip(numbers, words, strict=True):
        if not word:
            problems.append(f"line {number}: no split, though other lines have one")
        elif not find_split(word):
            problems.append(f"line {number}: unknown split {word!r}. {suggest(word.lower(), SPLITS)}")
    return [find_split(word) for word in words]


def _check_file(path: str) -> InvalidImage | None:
    piece = parse_slice(path) or ByteRange(path)
    try:
        status = os.stat(piece.file)
    except OSError as error:
        code = "forbidden" if isinstance(error, PermissionError) else "missing"
        return InvalidImage(path, code, error.strerror or "it cannot be found")
    if not stat.S_ISREG(status.st_mode):
        return InvalidImage(path, "special-file", "it is not a regular file")
    if piece.length >= 0 and not piece.find_size(status):
        return InvalidImage(path, "missing", "its TFRecord file ends before it")
    return None
