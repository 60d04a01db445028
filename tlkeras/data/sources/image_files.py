"""The files that the cells of a table name, however they are written."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress

from tlkeras.data.headers import EXTENSIONS, parse_slice, to_printable


class ImageFinder:
    """Files below a folder, the root, by the cells of a table.

    A name is taken as it is written. If there is no such file, blanks around it, backslashes, letter case, Unicode's
    forms and a missing extension are overlooked where exactly one file fits; of an absolute path of another machine
    that part is taken that lies below a root that was given. `rewritten` lists names that were found in this way.
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
        path = os.path.join(self.root, name)
        if piece is None and not os.path.exists(path) and (near := self._find_near(name)):
            path = near
            self.rewritten.append(name)
        path = os.path.normpath(path) if self._follow else os.path.realpath(path)
        if not self._follow and not path.startswith(self.root + os.sep):
            return ValueError(f"{name!r} lies outside {to_printable(self.root)!r} (data.links: refuse)")
        return path if piece is None else str(piece._replace(file=path))

    def guess_cause(self, missing: str, column: str) -> str:
        """The likeliest reason why a file is missing, as a sentence with the way out."""
        written = missing.strip().replace("\\", "/")
        name = _fold(os.path.basename(written))
        for _, (folder, folders, _) in zip(range(1000), os.walk(self.root), strict=False):
            folders.sort()
            if found := self._match(folder, name, True):
                place = os.path.relpath(os.path.join(folder, found), self.root)
                above = place.removesuffix(written) if place.endswith("/" + written) else os.path.dirname(place)
                above = above.rstrip("/") if not self._given else os.path.join(self.root, above)
                return f"There is {to_printable(place)}: --set data.root={to_printable(above or '.')} looks there."
        if re.match(r"/|[A-Za-z]:", written):
            return "These are absolute paths of another place: --set data.root=FOLDER finds what lies below it."
        where = f"They are the column {column!r} (data.path) and were looked for in {to_printable(self.root)}"
        return f"{where}: --set data.root=FOLDER looks elsewhere."

    def _find_near(self, name: str) -> str | None:
        plain = re.sub(r"^[A-Za-z]:(?=/)", "", name.strip().replace("\\", "/"))
        parts = [part for part in plain.split("/") if part not in ("", ".")]
        if not plain.startswith("/"):
            return self._follow_parts(self.root, parts)
        below = (self._follow_parts(self.root, parts[at:]) for at in range(1, len(parts) if self._given else 1))
        return self._follow_parts("/", parts) or next(filter(None, below), None)

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


def _fold(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold().strip()
