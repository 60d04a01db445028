"""Files of tables, as spreadsheets, pandas and Windows write them, and the files that their cells name."""

import csv
import io
import json
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tlkeras.config.frames import ENCODED_IMAGE, format_cells, read_columns
from tlkeras.data.headers import EXTENSIONS, parse_slice, to_printable
from tlkeras.errors import DataError

PATH_COLUMNS = (
    *("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "imagepath"),
    *("image_file", "image_name", "image_id", "img", "img_path", "id"),
)
"""Columns with the path of the image, as people call them; the first one that a table has is taken."""
_SAMPLE, _MOST_FOLDERS = 100, 1000  # missing files, and folders, that are looked at for the cause


class ImageFinder:
    """Files below a folder, the root, by the cells of a table.

    A name is taken as it is written. If there is no such file, blanks around it, backslashes, letter case, Unicode's
    forms and a missing extension are overlooked where exactly one file fits; of a path of another machine that part is
    taken that lies below a root that was given. `rewritten` lists names that were found in this way.
    """

    def __init__(self, root: str, given: bool, follow: bool):
        self.root, self._given, self._follow = root, given, follow
        self._folders: dict[str, defaultdict[str, list[str]]] = {}
        self.rewritten: list[str] = []

    def find(self, text: str) -> str | ValueError:
        """The absolute path of a file, or of a slice of a packed one, or the reason why the cell names none."""
        piece = parse_slice(text)
        name = text if piece is None else piece.file
        if not name.strip() or "\0" in name:
            return ValueError("the path is empty" if not name.strip() else "the path contains a zero byte")
        if name == ENCODED_IMAGE:
            return ValueError("the cell holds an image and no path: write the images to files, and their paths here")
        path = os.path.join(self.root, name)
        if piece is None and not os.path.exists(path) and (near := self._find_near(name)):
            path = near
            self.rewritten.append(name)
        path = os.path.normpath(path) if self._follow else os.path.realpath(path)
        if not self._follow and not path.startswith(self.root + os.sep):
            return ValueError(f"{name!r} lies outside {to_printable(self.root)!r} (data.links: refuse)")
        return path if piece is None else str(piece._replace(file=path))

    def guess_cause(self, missing: Sequence[str], column: str) -> str:
        """The likeliest reason why files are missing, as a sentence with the way out."""
        first = missing[0].strip().replace("\\", "/")
        if place := self._find_elsewhere(os.path.basename(first)):
            names = missing[:: len(missing) // _SAMPLE + 1]
            for folder in _list_folders(place, first):
                finder = ImageFinder(os.path.join(self.root, folder), True, self._follow)
                found = sum(finder._find_near(name) is not None for name in names)
                if 2 * found > len(names):
                    root = os.path.join(self.root, folder).rstrip("/.") if self._given else folder
                    share = "them" if found == len(names) else f"{found / len(names):.0%} of them"
                    return f"There is {to_printable(place)}: --set data.root={to_printable(root)} finds {share}."
            return f"There is {to_printable(place)}, but most of these names are not there: correct the paths."
        if re.match(r"/|[A-Za-z]:", first):
            return "These are absolute paths of another place: --set data.root=FOLDER finds what lies below it."
        where = f"They are the column {column!r} (data.path) and were looked for in {to_printable(self.root)}"
        return f"{where}: --set data.root=FOLDER looks elsewhere."

    def _find_elsewhere(self, name: str) -> str | None:
        """A file of that name in the folders below the root, as a path from there."""
        for _, (folder, folders, _) in zip(range(_MOST_FOLDERS), os.walk(self.root), strict=False):
            folders.sort()
            if found := self._match(folder, name, True):
                return os.path.relpath(os.path.join(folder, found), self.root)
        return None

    def _find_near(self, name: str) -> str | None:
        plain = re.sub(r"^[A-Za-z]:(?=/)", "", name.strip().replace("\\", "/"))
        parts = [part for part in plain.split("/") if part not in ("", ".")]
        whole = self._follow_parts("/" if plain.startswith("/") else self.root, parts)
        below = (self._follow_parts(self.root, parts[at:]) for at in range(1, len(parts) if self._given else 1))
        return whole or next(filter(None, below), None)

    def _follow_parts(self, folder: str, parts: Sequence[str]) -> str | None:
        for at, part in enumerate(parts):
            found = part if part == ".." else self._match(folder, part, at == len(parts) - 1)
            if found is None:
                return None
            folder = os.path.join(folder, found)
        return folder if os.path.isfile(folder) else None

    def _match(self, folder: str, part: str, last: bool) -> str | None:
        """The only entry of a folder that has this name, or else that reads alike."""
        if folder not in self._folders:
            names = self._folders[folder] = defaultdict(list)
            with suppress(OSError):
                for entry in os.listdir(folder):
                    stem, extension = os.path.splitext(entry)
                    names[_fold(entry)].append(entry)
                    names[f"{_fold(stem)}/"] += [entry] if extension.lower() in EXTENSIONS else []
        names = self._folders[folder]
        found = names.get(_fold(part)) or (names.get(f"{_fold(part)}/", []) if last else [])
        same = [one for one in found if unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", part)]
        fitting = [part] if part in found else same or found
        return fitting[0] if len(fitting) == 1 else None


def _list_folders(place: str, written: str) -> list[str]:
    """Folders from which a file may have been written so: above as much as both paths share first, then the others."""
    there, parts = place.split("/"), written.split("/")
    same = 0
    for mine, theirs in zip(reversed(there), reversed(parts), strict=False):
        if _fold(os.path.splitext(mine)[0]) != _fold(os.path.splitext(theirs)[0]):
            break
        same += 1
    depths = sorted(range(len(there)), key=lambda depth: abs(len(there) - same - depth))
    return ["/".join(there[:depth]) or "." for depth in depths]


def _fold(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold().strip()


class Lines(NamedTuple):
    """A table as it is written."""

    header: list[str]
    rows: list[tuple[int, list[str]]]  # cells, with the number of their line
    notes: list[str]  # sentences on what was left out or decided


def read_lines(source: str, file: str, path: str | None) -> Lines:
    """The lines of a file; `path` names the column of the paths."""
    kind = os.path.splitext(file)[1].lower()
    if kind == ".parquet":
        header, rows = _read_parquet(source, file)
    elif kind in (".jsonl", ".ndjson"):
        header, rows = _read_json_lines(source, _read_text(source, file))
    else:
        header, rows = _read_csv(source, _read_text(source, file), path)
    if not rows:
        rule = "The manifest has a header but no rows." if header else "The manifest is empty."
        raise DataError(rule, repr(source), "Write a header and a line per image.")
    return _drop_unnamed(header, rows)


def find_path_column(header: Sequence[str], path: str | None) -> str | None:
    """The column of the paths: the one that is named, or else the first of `PATH_COLUMNS`, in any case."""
    if path is not None:
        return path if path in header else None
    found = {re.sub(r"[ -]", "_", name.strip().lower()): name for name in reversed(header)}
    return next((found[name] for name in PATH_COLUMNS if name in found), None)


def _read_text(source: str, file: str) -> str:
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise DataError("The manifest cannot be read.", f"{source!r}: {error.strerror}") from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or (len(data) > 8 and not (any(data[1:40:2]) and any(data[:40:2]))):
        way_out = "Save it as CSV UTF-8, or: iconv -f UTF-16 -t UTF-8 OLD > NEW"
        raise DataError("The manifest is in UTF-16 (Unicode text of Excel), not in UTF-8.", repr(source), way_out)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        way_out = (
            "It is probably Latin-1 or Windows-1252. Save it as UTF-8, or: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW"
        )
        raise DataError("The manifest is not in UTF-8.", f"{source!r}, byte {error.start}", way_out) from None


def _read_csv(source: str, text: str, path: str | None) -> tuple[list[str], list[tuple[int, list[str]]]]:
    told = re.match(r'"?sep=(.)"?[;,\t]*\r?\n', text, re.IGNORECASE)  # as Excel writes
    text, above = text[told.end() :] if told else text, 1 if told else 0
    first = re.split(r"[\r\n]", text, maxsplit=1)[0]

    def rank(delimiter: str) -> tuple[bool, int]:
        names = [name.strip(' "') for name in first.split(delimiter)]
        return len(names) > 1 and find_path_column(names, path) is not None, len(names)

    delimiter = told[1] if told else max(",;\t|", key=rank)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        lines = [(reader.line_num + above, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except csv.Error as error:
        received = f"{source!r}, line {reader.line_num + above}: {error}"
        raise DataError("The manifest is not valid CSV.", received) from None
    return [name.strip() for name in lines[0][1]] if lines else [], lines[1:]


def _read_parquet(source: str, file: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    from pyarrow import ArrowException, parquet

    try:
        columns = read_columns(parquet.read_table(file))
    except (OSError, ArrowException) as error:
        raise DataError("The manifest cannot be read.", f"{source!r}: {str(error).splitlines()[0]}") from None
    header = ["" if name.startswith("__index_level_") else name for name, _ in columns]
    cells = zip(*(cells for _, cells in columns), strict=True)
    return header, [(number, list(row)) for number, row in enumerate(cells, 1)]


def _read_json_lines(source: str, text: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    objects: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        with suppress(ValueError):
            found = json.loads(line) if line.strip() else None
            if found is None or isinstance(found, dict):
                objects |= {number: found} if found else {}
                continue
        way_out = "Write one object per line, of one image each."
        raise DataError("A line of the manifest is no JSON object.", f"{source!r}, line {number}", way_out)
    names = list(dict.fromkeys(name for one in objects.values() for name in one))
    columns = [format_cells([one.get(name) for one in objects.values()]) for name in names]
    return names, [(number, list(row)) for number, row in zip(objects, zip(*columns, strict=True), strict=True)]


def _drop_unnamed(header: list[str], lines: list[tuple[int, list[str]]]) -> Lines:
    """Without unnamed columns that are empty, as behind a trailing delimiter, or number the lines, as pandas does."""
    width = len(header)
    lines = [(number, cells if any(cells[width:]) else cells[:width]) for number, cells in lines]
    kept = [at for at, name in enumerate(header) if name or not _is_index([cells[at : at + 1] for _, cells in lines])]
    if len(kept) == width:
        return Lines(header, lines, [])
    lines = [(number, [*(cells[at] for at in kept if at < len(cells)), *cells[width:]]) for number, cells in lines]
    note = "A column without a name, of line numbers or nothing, is ignored."
    return Lines([header[at] for at in kept], lines, [note])


def _is_index(cells: Sequence[Sequence[str]]) -> bool:
    texts = [text.strip() for cell in cells for text in cell]
    return not any(texts) or (all(text.isdecimal() for text in texts) and len({*texts}) == len(cells))
