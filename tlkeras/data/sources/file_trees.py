"""Folders with all that lies below them: links are followed, what systems leave behind is skipped."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tlkeras.data.headers import EXTENSIONS, InvalidImage, detect_format, explain_format, explain_os_error, to_printable

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
            refusal = explain_format(detect_format(file.read(512)))
    except OSError as error:
        refusal = explain_os_error(error)
    return InvalidImage(entry.path, *refusal) if refusal else None
