"""Tables `metadata` in folders of images, as the Hugging Face hub has them: one for all images, or one per split."""

import os
from collections.abc import Sequence

from tlkeras.config.recipe import TABLE_SUFFIXES
from tlkeras.data.sources.manifests import COLUMN_ROLES, SourceOptions
from tlkeras.data.sources.table_files import Lines, find_path_column, read_lines
from tlkeras.data.splits import find_split


def find_metadata(folder: str) -> list[str]:
    """The tables of a folder, or of those folders in it that are splits; "._metadata.csv" is none."""
    places = [folder, *sorted(entry.path for entry in _list_folders(folder) if find_split(entry.name))]
    found = [os.path.join(place, f"metadata{suffix}") for place in places for suffix in TABLE_SUFFIXES]
    return list(filter(os.path.isfile, found))


def _list_folders(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if entry.is_dir()]
    except OSError:
        return []


def join_metadata(source: str, files: Sequence[str], folder: str, options: SourceOptions) -> Lines:
    """The lines of all tables, with paths from the folder; the first folders are the splits if all are so named."""
    tables = [
        (os.path.relpath(os.path.dirname(file), folder), read_lines(source, file, options.path)) for file in files
    ]
    header = list(dict.fromkeys(name for _, table in tables for name in table.header))
    column = find_path_column(header, options.path)
    rows, folders = [], []
    for place, table in tables:
        for number, cells in table.rows:
            texts = dict(zip(table.header, cells, strict=False))
            if column in texts and place != ".":
                texts[column] = os.path.join(place, texts[column].strip())
            folders.append(texts.get(column or "", "").replace("\\", "/").partition("/")[0])
            rows.append((number, [texts.get(name, "") for name in header]))
    notes = [note for _, table in tables for note in table.notes]
    names = [os.path.relpath(file, folder) for file in files]
    notes.append(f"The labels are those of {', '.join(names)}, not of folders (data.folders: classes takes these).")
    splits = list(map(find_split, folders))
    if all(splits) and "split" not in map(str.lower, header):
        header = [*header, "split"]
        rows = [(number, [*cells, split]) for (number, cells), split in zip(rows, splits, strict=True)]
    return Lines(header, rows, notes)


def has_labels(lines: Lines, options: SourceOptions) -> bool:
    """Whether the table has a column of labels: the one that is named, or `label`."""
    used = set(lines.header) & set(options.columns)
    return bool(used) or COLUMN_ROLES[0] in map(str.lower, lines.header)
