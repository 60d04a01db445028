"""Issues of many files in few sentences: what holds of many is said once, with examples and the way out."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from tlkeras.data.headers import EXTENSIONS, ImageWarning, to_printable

EXAMPLES = 3
_HINTS = {
    "damaged": "Interrupted copies and downloads leave such files: fetch them again.",
    "empty": "Interrupted copies and downloads leave such files: fetch them again.",
    "forbidden": "Allow yourself to read them: chmod -R u+rX FOLDER.",
    "missing": "Were they moved or renamed, or is the folder another one?",
    "outside-root": "`data.links: follow` reads them.",
    "unsupported": "Convert them to JPEG or PNG.",
}
"""The likeliest cause of an issue, or the way out, by its code."""
_DOWNLOAD = "Named like images, such files are mostly failed downloads: fetch them again."
_ODDITIES = {
    "wrong-extension": "have the wrong extension",
    "transcoded": "are read by way of PNG",
    "turned": "are turned by their EXIF orientation",
    "orientation-ignored": "have an EXIF orientation that is not applied",
    "mode": "are not plain RGB",
    "deep": "have 16 bits, which become 8 as data.depth_range says",
    "upper-bits": "have 16 bits, of which the upper 8 are kept",
    "animated": "have several frames or pages, of which the first is used",
    "tiny": "are very small",
    "huge": "are very large",
}


class FileIssue(Protocol):
    """Any remark on a file: its path, a code for programs, and a reason as half a sentence."""

    @property
    def path(self) -> str: ...
    @property
    def code(self) -> str: ...
    @property
    def reason(self) -> str: ...


def describe_issues(issues: Iterable[FileIssue]) -> list[str]:
    """Sentences on files: one for all with the same reason, largest group first, and one for each of few others.

    Reasons are the same if they differ in numbers alone, or in what a parser said of a damaged file. The hint of a code
    stands in its first sentence.
    """
    groups: dict[tuple[str, str], list[FileIssue]] = {}
    for issue in issues:
        kind = _shorten(issue.reason) if issue.code == "damaged" else re.sub(r"\d[\d,.]*", "#", issue.reason)
        groups.setdefault((issue.code, kind), []).append(issue)
    ordered = sorted(groups.values(), key=lambda group: -len(group) if len(group) > EXAMPLES else 0)
    lines, hinted = [], set()
    for group in ordered:
        hint = _find_hint(group)
        found = (
            [_fold(group)] if len(group) > EXAMPLES else [f"{to_printable(one.path)}: {one.reason}" for one in group]
        )
        if hint and hint not in hinted:
            found[0] = f"{found[0].rstrip('.')}. {hint}"
            hinted.add(hint)
        lines += found
    return lines


def describe_warnings(warnings: Sequence[ImageWarning]) -> Iterator[str]:
    """A sentence per kind of odd file, most common first, with an example."""
    for code, count in Counter(warning.code for warning in warnings).most_common():
        first = next(warning for warning in warnings if warning.code == code)
        yield f"{first}." if count == 1 else f"{count:,} images {_ODDITIES[code]} (e.g. {first})."


def _fold(group: Sequence[FileIssue]) -> str:
    """One sentence on files of the same kind."""
    folder = _common_folder([issue.path for issue in group])
    names = [to_printable(issue.path[len(folder) :].lstrip(os.sep)) for issue in group[:EXAMPLES]]
    where = f" in {to_printable(folder)}" if folder else ""
    reasons = {_shorten(issue.reason) if issue.code == "damaged" else issue.reason for issue in group}
    if len(reasons) == 1:
        return f"{len(group):,} files{where}, such as {', '.join(names)}: {reasons.pop()}"
    examples = (f"{name} ({issue.reason})" for name, issue in zip(names, group, strict=False))
    return f"{len(group):,} files{where}, such as {', '.join(examples)}"


def _shorten(reason: str) -> str:
    """The reason without what a parser said in brackets."""
    return reason.partition(" (")[0]


def _common_folder(paths: Sequence[str]) -> str:
    """The folder that all files are in or below, "" if there is none."""
    try:
        folder = os.path.commonpath([os.path.dirname(path) for path in paths])
    except ValueError:  # relative and absolute paths
        return ""
    return "" if folder == os.sep else folder


def _find_hint(group: Sequence[FileIssue]) -> str | None:
    if group[0].code == "not-an-image":
        promised = any(os.path.splitext(issue.path)[1].lower() in EXTENSIONS for issue in group)
        return _DOWNLOAD if promised else None
    return None if "pip install" in group[0].reason else _HINTS.get(group[0].code)
