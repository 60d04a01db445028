"""Images in few large TFRecord files, for file systems that are slow at many small ones."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from tlkeras.data.headers import ByteRange, ImageError, InvalidImage, read_image, to_printable
from tlkeras.data.issues import describe_issues
from tlkeras.data.sources.manifests import COLUMN_ROLES, FILE, write_lines
from tlkeras.data.tables import ImageTable
from tlkeras.errors import DataError, ResourceError, list_some
from tlkeras.files import atomic_folder
from tlkeras.progress import progress_bar
from tlkeras.results import Result

MANIFEST = "images.csv"
_SHARDS = "shards"
_HEAD, _FOOT = 12, 4  # bytes around a record: its length and that one's checksum; the record's checksum


@dataclass(frozen=True)
class PackResult(Result):
    """The path of the manifest of packed images; the number of images and of shards; files that were left out."""

    path: str
    images: int
    shards: int
    bytes: int
    rejected: tuple[InvalidImage, ...]

    def to_dict(self) -> dict[str, Any]:
        rejected = [{"path": to_printable(bad.path), "code": bad.code, "reason": bad.reason} for bad in self.rejected]
        return {**super().to_dict(), "rejected": rejected}


def write_tfrecords(table: ImageTable, folder: str | os.PathLike[str], shard_bytes: int = 128 * 2**20) -> PackResult:
    """Write the encoded images of a table, unchanged, into TFRecord files, with a manifest of them.

    A record is a `tf.train.Example` with "image/encoded", "image/filename" and the table's columns, as other programs
    read it. The manifest's paths are slices of these files; its keys and default roles are those of the table. The
    folder can be moved. A DataError is raised if it exists or no image can be read, a ResourceError if it cannot be
    written.
    """
    target = Path(os.path.abspath(os.path.expanduser(folder)))
    if target.exists():
        raise DataError("The folder for packed images already exists.", repr(str(folder)), "Choose another name.")
    try:
        with atomic_folder(target) as temporary:
            (temporary / _SHARDS).mkdir()
            packed, unreadable = _write_shards(table, temporary, shard_bytes)
            rejected = [*table.rejected, *unreadable]
            if not packed:
                raise DataError.from_problems("No image could be packed.", list_some(describe_issues(rejected)))
            further = [role for role in COLUMN_ROLES if role in table.defaults and role not in table.columns]
            roles = {role: table.columns[table.defaults[role]] for role in further}
            columns = {FILE: table.keys, **table.columns, **roles}
            rows = ([str(piece), *(values[row] for values in columns.values())] for row, piece in packed.items())
            write_lines(temporary / MANIFEST, columns, rows)
    except (OSError, tf.errors.OpError) as error:  # TensorFlow writes the records, and raises its own errors
        raise ResourceError("Packed images could not be written.", f"{folder} ({error})") from None
    files = list((target / _SHARDS).iterdir())
    size = sum(file.stat().st_size for file in files)
    return PackResult(str(target / MANIFEST), len(packed), len(files), size, tuple(rejected))


def _write_shards(table: ImageTable, folder: Path, shard_bytes: int) -> tuple[dict[int, ByteRange], list[InvalidImage]]:
    """The slice of each row of the table, its file relative to the folder, and the files that could not be read."""
    packed: dict[int, ByteRange] = {}
    rejected: list[InvalidImage] = []
    shard, offset, writer = 0, 0, _open_shard(folder, 0)
    try:
        with progress_bar("Packing", len(table), "images") as advance:
            for row, encoded in _read_images(table, rejected):
                record = _make_record(table, row, encoded)
                if offset and offset + len(record) > shard_bytes:
                    writer.close()
                    shard, offset = shard + 1, 0
                    writer = _open_shard(folder, shard)
                writer.write(record)
                packed[row] = ByteRange(_shard_name(shard), offset + _HEAD + record.index(encoded), len(encoded))
                offset += _HEAD + len(record) + _FOOT
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
    lists = {name: tf.train.BytesList(value=[value]) for name, value in sorted(values.items())}
    features = {name: tf.train.Feature(bytes_list=one) for name, one in lists.items()}
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)


def _open_shard(folder: Path, number: int) -> tf.io.TFRecordWriter:
    return tf.io.TFRecordWriter(str(folder / _shard_name(number)))


def _shard_name(number: int) -> str:
    return f"{_SHARDS}/{number:05d}.tfrecord"
