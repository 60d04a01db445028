"""CSV manifests: a path per line, with columns of labels, splits, weights and others."""

from __future__ import annotations

import csv
import io
import os
import stat
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path

from tlkeras.data.headers import ByteRange, InvalidImage, parse_slice, to_printable
from tlkeras.data.tables import SPLITS, ImageTable
from tlkeras.errors import DataError, list_some, suggest

SPLIT_ALIASES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
FILE = "file"
"""The column with the path of a packed image before it was packed; see `tfrecords`."""
COLUMN_ROLES = ("label", "weight", "group", "domain")
_real_folder = cache(os.path.realpath)


def read_manifest(source: str) -> ImageTable:
    """Read a CSV file with a column "path" and any others, separated by commas, semicolons or tabs.

    Paths are relative to the file's folder and may not leave it, also through links; they may name slices of packed
    files. The columns "label", "split", "weight", "group" and "domain" have these roles by default. Missing images are
    listed in `ImageTable.rejected`; a DataError lists all other problems, with line numbers.
    """
    file = os.path.abspath(os.path.expanduser(source))
    root = os.path.realpath(os.path.dirname(file))
    header, lines = _read_lines(source, file)
    _raise_any(source, _check_header_line(header))
    wrong = [(number, len(fields)) for number, fields in lines if len(fields) != len(header)]
    _raise_any(source, [f"line {number}: {count} fields instead of {len(header)}" for number, count in wrong])
    numbers, rows = zip(*lines, strict=True)
    texts = dict(zip(header, zip(*rows, strict=True), strict=True))
    paths = [_resolve(text, root) for text in texts.pop("path")]
    columns = {name: [unicodedata.normalize("NFC", text.strip()) for text in column] for name, column in texts.items()}
    problems = _check_paths(numbers, paths)
    if "split" in columns:
        columns["split"] = _normalise_splits(numbers, columns["split"], problems)
    _raise_any(source, problems)
    files = list(map(str, paths))
    found = [_check_file(file) for file in files]
    kept, rejected = [row for row, problem in enumerate(found) if problem is None], tuple(filter(None, found))
    if not kept:
        reasons = list_some([str(rejection) for rejection in rejected])
        raise DataError.from_problems(f"No image of the manifest {source!r} exists.", reasons)
    return ImageTable(
        source=source,
        root=Path(root),
        paths=[files[row] for row in kept],
        keys=_make_keys(files, root, columns, kept),
        columns={name: [values[row] for row in kept] for name, values in columns.items()},
        defaults={role: role for role in COLUMN_ROLES if role in columns},
        rejected=rejected,
    )


def write_lines(file: Path, columns: Iterable[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a new manifest; a row is the path of an image and the texts in the columns."""
    with open(file, "x", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(["path", *columns])
        writer.writerows(rows)


def _raise_any(source: str, problems: list[str]) -> None:
    if problems:
        raise DataError.from_problems(f"The manifest {source!r} cannot be used.", list_some(problems))


def _make_keys(paths: list[str], root: str, columns: Mapping[str, list[str]], rows: Sequence[int]) -> list[str]:
    """The key of each image: its path, or the path of a packed image before it was packed."""
    unpacked = columns.get(FILE, [""] * len(paths))
    keys = [
        (unpacked[row] if parse_slice(paths[row]) else "")
        or to_printable(paths[row].removeprefix(root).lstrip(os.sep)).replace(os.sep, "/")
        for row in rows
    ]
    return keys if len(set(keys)) == len(keys) else _make_keys(paths, root, {}, rows)


def _read_lines(source: str, file: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and each line with its number in the file."""
    try:
        text = Path(file).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        received = f"{source!r}, byte {error.start}"
        raise DataError("The manifest is not in UTF-8.", received, "Save it as UTF-8.") from None
    except OSError as error:
        raise DataError("The manifest cannot be read.", f"{source!r}: {error.strerror}") from None
    first = text.split("\n", 1)[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
    try:
        lines = [(reader.line_num, fields) for fields in reader if any(field.strip() for field in fields)]
    except csv.Error as error:
        raise DataError("The manifest is not valid CSV.", f"{source!r}, line {reader.line_num}: {error}") from None
    if len(lines) < 2:
        rule = "The manifest has a header but no rows." if lines else "The manifest is empty."
        raise DataError(rule, repr(source), "Write a header and a line per image.")
    return [name.strip() for name in lines[0][1]], lines[1:]


def _check_header_line(header: Sequence[str]) -> list[str]:
    problems = [f"column {name!r} appears twice" for name in sorted(set(header)) if header.count(name) > 1]
    if "" in header:
        problems.append(f"column {list(header).index('') + 1} has no name")
    if "path" not in header:
        problems.append(f"there is no column 'path', only {', '.join(header)}")
    return problems


def _resolve(text: str, root: str) -> str | ValueError:
    """The absolute path of a field, or the reason why it cannot be used."""
    piece = parse_slice(text)
    file = text if piece is None else piece.file
    if not file.strip() or "\0" in file:
        return ValueError("the path is empty" if not file.strip() else "the path contains a zero byte")
    folder, name = os.path.split(os.path.join(root, file))
    path = os.path.join(_real_folder(folder), name)
    if os.path.islink(path) or name in ("", ".", ".."):
        path = os.path.realpath(path)
    if not path.startswith(root + os.sep):
        return ValueError(f"{file!r} lies outside the manifest's folder {to_printable(root)!r}")
    return path if piece is None else str(piece._replace(file=path))


def _check_paths(numbers: Sequence[int], paths: Sequence[str | ValueError]) -> list[str]:
    problems: list[str] = []
    seen: dict[str, int] = {}
    for number, path in zip(numbers, paths, strict=True):
        if isinstance(path, ValueError):
            problems.append(f"line {number}: {path}")
        elif seen.setdefault(path, number) != number:
            problems.append(f"line {number}: the same image as line {seen[path]}")
    return problems


def _normalise_splits(numbers: Sequence[int], words: Sequence[str], problems: list[str]) -> list[str]:
    """The words of `SPLITS`; "" in all lines or in none."""
    if not any(words):
        return list(words)
    for number, word in zip(numbers, words, strict=True):
        if not word:
            problems.append(f"line {number}: no split, though other lines have one")
        elif word.lower() not in SPLIT_ALIASES:
            problems.append(f"line {number}: unknown split {word!r}. {suggest(word.lower(), SPLITS)}")
    return [SPLIT_ALIASES.get(word.lower(), "") for word in words]


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
