"""Images packed into few large files, for file systems that are slow at many small ones."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow as tf

from tlkeras.data.headers import ImageError, InvalidImage, read_image, to_printable
from tlkeras.data.sources.manifests import COLUMN_ROLES, FILE
from tlkeras.data.sources.tfrecord_slices import ByteRange
from tlkeras.data.tables import ImageTable
from tlkeras.errors import DataError, ResourceError, list_some
from tlkeras.progress import progress_bar

MANIFEST = "images.csv"
_SHARDS = "shards"
_HEAD, _FOOT = 12, 4  # bytes around a record: its length and that one's checksum; the record's checksum


def write_tfrecords(
    table: ImageTable, folder: str | os.PathLike[str], shard_bytes: int = 128 * 2**20
) -> dict[str, Any]:
    """Write all images of a table, their bytes as they are, into TFRecord files, and a manifest of them.

    A record is a `tf.train.Example` with "image/encoded", "image/filename" and the table's columns, as other programs
    read it. The manifest's paths are slices of these files, so that any image can be read by itself; its names are
    those from before. It can be moved with its folder.

    Args:
        table: What to pack; roles that its columns play by default they play in the manifest, too.
        folder: A new folder. What is interrupted leaves none.
        shard_bytes: About how large a file may become.

    Returns:
        `path` of the manifest, `images`, `shards`, `bytes` of all files, `rejected` (path and reason each).

    Raises:
        DataError: The folder is there already, or no image can be read.
        ResourceError: It cannot be written.
    """
    target = Path(os.path.abspath(os.path.expanduser(folder)))
    if target.exists():
        raise DataError("Packed images go into a new folder.", repr(str(folder)), "Choose another name.")
    aside = target.with_name(f"{target.name}.part-{os.getpid()}")
    try:
        (aside / _SHARDS).mkdir(parents=True)
        packed, rejected = _write_shards(table, aside, shard_bytes)
        if not packed:
            raise DataError.from_problems("No image could be packed.", list_some([str(bad) for bad in rejected]))
        _write_manifest(table, aside, packed)
        os.rename(aside, target)
    except (OSError, tf.errors.OpError) as error:  # TensorFlow writes the records, and fails in its own way
        raise ResourceError("Packed images must be writable.", f"{folder} ({error})") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    files = list((target / _SHARDS).iterdir())
    return {
        "path": str(target / MANIFEST),
        "images": len(packed),
        "shards": len(files),
        "bytes": sum(file.stat().st_size for file in files),
        "rejected": [{"path": to_printable(bad.path), "reason": bad.reason} for bad in rejected],
    }


def _write_shards(table: ImageTable, folder: Path, shard_bytes: int) -> tuple[dict[int, ByteRange], list[InvalidImage]]:
    """Return where each row of the table went, its file relative to the folder."""
    packed: dict[int, ByteRange] = {}
    rejected: list[InvalidImage] = []
    shard, at, writer = 0, 0, _open_shard(folder, 0)
    try:
        with progress_bar("Packing", len(table), "images") as advance:
            for row, encoded in _read_images(table, rejected):
                record = _make_record(table, row, encoded)
                if at and at + len(record) > shard_bytes:
                    writer.close()
                    shard, at = shard + 1, 0
                    writer = _open_shard(folder, shard)
                writer.write(record)
                packed[row] = ByteRange(_name_shard(shard), at + _HEAD + record.index(encoded), len(encoded))
                at += _HEAD + len(record) + _FOOT
                advance(1)
            advance(len(rejected))
    finally:
        writer.close()
    return packed, rejected


def _read_images(table: ImageTable, rejected: list[InvalidImage]) -> Iterator[tuple[int, bytes]]:
    for row, path in enumerate(table.paths):
        try:
            yield row, read_image(path)
        except ImageError as error:
            rejected.append(InvalidImage(path, error.code, error.reason))


def _make_record(table: ImageTable, row: int, encoded: bytes) -> bytes:
    texts = {name: values[row] for name, values in table.columns.items()} | {"image/filename": table.keys[row]}
    values = {name: text.encode() for name, text in texts.items()} | {"image/encoded": encoded}
    features = {
        name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value])) for name, value in sorted(values.items())
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)


def _open_shard(folder: Path, number: int) -> tf.io.TFRecordWriter:
    return tf.io.TFRecordWriter(str(folder / _name_shard(number)))


def _name_shard(number: int) -> str:
    return f"{_SHARDS}/{number:05d}.tfrecord"


def _write_manifest(table: ImageTable, folder: Path, packed: dict[int, ByteRange]) -> None:
    played = {
        role: table.columns[table.defaults[role]]
        for role in COLUMN_ROLES
        if role in table.defaults and role not in table.columns
    }
    columns = {FILE: table.keys, **table.columns, **played}
    with open(folder / MANIFEST, "x", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", *columns])
        writer.writerows([str(piece), *(values[row] for values in columns.values())] for row, piece in packed.items())
