"""Hostile and careless inputs: each row an input made by code, with the expected outcome."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlkeras.data.decoding import decode_file
from tlkeras.data.headers import ImageError, InvalidImage
from tlkeras.data.inspection import read_header_and_digest, validate_images
from tlkeras.data.pipeline import make_image_dataset
from tlkeras.data.sources.folders import read_table
from tlkeras.data.tables import build_dataset
from tlkeras.errors import DataError

Encode = Callable[..., bytes]


def frames(image: np.ndarray, count: int, kind: str, e: Encode) -> bytes:
    others = [Image.fromarray(np.roll(image, shift, axis=1)) for shift in range(1, count)]
    return e(image, kind, save_all=True, append_images=others)


def patch(data: bytes, marker: bytes, offset: int, value: int) -> bytes:
    at = data.index(marker) + offset
    return data[:at] + bytes([value]) + data[at + 1 :]


def cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


def grow(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return np.resize(image, (height, width, 3))


def palette(image: np.ndarray, e: Encode) -> bytes:
    return e(Image.fromarray(image).quantize(8), transparency=3)


# The outcome of header check and decoder: "ok", or the code of the rejection. e encodes, c is a colour image.
IMAGES: dict[str, tuple[Callable[[Encode, np.ndarray], bytes], str]] = {
    "no bytes": (lambda e, c: b"", "empty"),
    "one byte": (lambda e, c: b"\xff", "not-an-image"),
    "random bytes": (lambda e, c: np.random.default_rng(0).bytes(5000), "not-an-image"),
    "text": (lambda e, c: b"404: not found", "not-an-image"),
    "HTML": (lambda e, c: b"<!DOCTYPE html><html></html>", "not-an-image"),
    "JPEG cut at 10 %": (lambda e, c: cut(e(c, "JPEG"), 0.1), "damaged"),
    "JPEG cut at 50 %": (lambda e, c: cut(e(c, "JPEG"), 0.5), "damaged"),
    "JPEG cut at 99 %": (lambda e, c: cut(e(c, "JPEG", quality=95), 0.99), "damaged"),
    "PNG cut": (lambda e, c: cut(e(c), 0.6), "damaged"),
    "PNG with a wrong checksum": (lambda e, c: patch(e(c), b"IDAT", 20, 0), "damaged"),
    "trailing garbage": (lambda e, c: e(c, "JPEG") + b"\0garbage" * 99, "ok"),
    "JPEG that is a ZIP too": (lambda e, c: e(c, "JPEG") + b"PK\x05\x06" + b"\0" * 18, "ok"),
    "progressive JPEG": (lambda e, c: e(c, "JPEG", progressive=True), "ok"),
    "12-bit JPEG": (lambda e, c: patch(e(c, "JPEG"), b"\xff\xc0", 4, 12), "damaged"),
    "JPEG of a lossless kind": (lambda e, c: patch(e(c, "JPEG"), b"\xff\xc0", 1, 0xC3), "damaged"),
    "CMYK JPEG, inverted as Adobe does": (lambda e, c: e(Image.fromarray(c).convert("CMYK"), "JPEG"), "ok"),
    "grey": (lambda e, c: e(c[..., 0]), "ok"),
    "1 bit": (lambda e, c: e(Image.fromarray(c).convert("1")), "ok"),
    "palette with a transparent colour": (lambda e, c: palette(c, e), "ok"),
    "grey with alpha": (lambda e, c: e(Image.fromarray(c).convert("LA")), "ok"),
    "colour with alpha": (lambda e, c: e(Image.fromarray(c).convert("RGBA")), "ok"),
    "16 bits": (lambda e, c: e(c[..., 0].astype(np.uint16) << 8), "ok"),
    "animated PNG": (lambda e, c: frames(c, 3, "PNG", e), "ok"),
    "animated GIF": (lambda e, c: frames(c, 3, "GIF", e), "ok"),
    "animated WebP": (lambda e, c: frames(c, 3, "WEBP", e), "ok"),
    "WebP": (lambda e, c: e(c, "WEBP", lossless=True), "ok"),
    "GIF of 10,000 frames": (lambda e, c: frames(grow(c, 90, 90), 10_000, "GIF", e), "ok"),
    "JPEG XL": (lambda e, c: b"\xff\x0a" + bytes(99), "unsupported"),
    "TIFF": (lambda e, c: e(c, "TIFF"), "ok"),
    "TIFF cut": (lambda e, c: cut(e(c, "TIFF", compression="tiff_lzw"), 0.6), "damaged"),
    "TIFF of floats": (lambda e, c: e(c[..., 0].astype(np.float32), "TIFF"), "unsupported"),
    "AVIF": (lambda e, c: e(c, "AVIF"), "ok"),
    "AVIF cut": (lambda e, c: cut(e(c, "AVIF"), 0.7), "damaged"),
    "JPEG 2000 cut": (lambda e, c: cut(e(c, "JPEG2000"), 0.7), "damaged"),
    "PPM cut": (lambda e, c: cut(e(c, "PPM"), 0.7), "damaged"),
    "TGA cut": (lambda e, c: cut(e(c, "TGA"), 0.7), "damaged"),
    "ICO cut": (lambda e, c: cut(e(c, "ICO", sizes=[(32, 32)]), 0.7), "damaged"),
    "SVG": (lambda e, c: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported"),
    "PDF": (lambda e, c: b"%PDF-1.7\n", "not-an-image"),
    "with a colour profile": (lambda e, c: e(c, "JPEG", icc_profile=b"\0" * 400), "ok"),
    "1 x 1": (lambda e, c: e(grow(c, 1, 1)), "ok"),
    "1 x 900": (lambda e, c: e(grow(c, 1, 900)), "ok"),
    "65,500 x 1": (lambda e, c: e(grow(c, 65_500, 1), "JPEG"), "ok"),
}


QUICK = [row for row in IMAGES if "10,000" not in row]


def write(folder: Path, name: str, data: bytes) -> str:
    (folder / name).write_bytes(data)
    return str(folder / name)


@pytest.mark.parametrize("row", QUICK)
def test_images(tmp_path, encode, colours, row):
    make, answer = IMAGES[row]
    check_image(write(tmp_path, "image.jpg", make(encode, colours)), answer)


@pytest.mark.slow
def test_an_image_of_ten_thousand_frames(tmp_path, encode, colours):
    make, answer = IMAGES["GIF of 10,000 frames"]
    check_image(write(tmp_path, "image.gif", make(encode, colours)), answer)


def check_image(path: str, answer: str) -> None:
    """Header and decoder agree; nothing but an ImageError is raised."""
    seen = read_header_and_digest(path)
    if answer == "ok":
        assert not isinstance(seen, InvalidImage), seen
        assert decode_file(path, 16, "stretch").shape == (16, 16, 3)
        return
    with pytest.raises(ImageError) as caught:
        decode_file(path, 16, "stretch")
    assert caught.value.code == answer and path in str(caught.value)
    assert not isinstance(seen, InvalidImage) or seen.code == answer


def test_a_stream_skips_what_the_check_rejects(tmp_path, encode, colours):
    paths = [write(tmp_path, f"{at}.jpg", IMAGES[row][0](encode, colours)) for at, row in enumerate(QUICK)]
    batches = make_image_dataset(paths, 16, "stretch", 4).as_numpy_iterator()
    assert np.concatenate([index for index, _ in batches]).tolist() == [
        at for at, row in enumerate(QUICK) if IMAGES[row][1] == "ok"
    ]


@pytest.mark.parametrize("side", [16_000, 30_000])
def test_bombs_are_refused_from_the_header(tmp_path, make_png, side):
    path = write(tmp_path, "bomb.png", make_png((side, side, 8, 6), b"\0" * 64))
    assert read_header_and_digest(path).code == "too-many-pixels"


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a", "a.png", "a.jpg.png.txt"])
def test_the_content_decides_whatever_the_name(plant, encode, colours, name):
    root = plant({f"cat/{name}": encode(colours), "cat/b.png": 1, "dog/a.png": 2, "dog/b.png": 3})
    found = validate_images(build_dataset(read_table(str(root))))
    assert f"cat/{name}" in found.keys
    odd = {os.path.basename(note.path) for note in found.warnings if note.code == "wrong-extension"}
    assert odd == ({name} if not name.endswith(".png") else set())


def test_orientation_is_applied_once(tmp_path, encode, make_exif, colours):
    files = [
        write(tmp_path, f"{at}.jpg", encode(colours, "JPEG", quality=95, exif=make_exif(at))) for at in range(1, 9)
    ]
    decoded = np.stack([decode_file(path, 32, "stretch") for path in files])
    assert len(np.unique(decoded, axis=0)) == 8
    ((_, streamed),) = make_image_dataset(files, 32, "stretch", 8).as_numpy_iterator()
    np.testing.assert_array_equal(streamed, decoded)


FOUR = {"cat/1.png": 1, "cat/2.png": 2, "dog/1.png": 3, "dog/2.png": 4}
LONG = "x" * 255


# Images of a tree besides `FOUR`, and the codes of rejected files; or the sentence of the error.
TREES: dict[str, tuple[dict[str, bytes | int], set[str] | str, dict[str, str]]] = {
    "nested folders": ({"cat/a/b/3.png": 5}, {"cat/a/b/3.png"}, {}),
    "a class without images": ({"owl/.keep": b""}, "no image: owl", {}),
    "a class with one image": ({"owl/1.png": 5}, {"owl/1.png"}, {}),
    "spaces and quotes": ({"a 'b\"/1.png": 5, "a 'b\"/2.png": 6}, {"a 'b\"/1.png", "a 'b\"/2.png"}, {}),
    "a line break": ({"a\nb/1.png": 5, "a\nb/2.png": 6}, {"a\nb/1.png", "a\nb/2.png"}, {}),
    "a leading dash": ({"-rf/1.png": 5, "-rf/2.png": 6}, {"-rf/1.png", "-rf/2.png"}, {}),
    "a formula": ({"=1+1/1.png": 5, "=1+1/2.png": 6}, {"=1+1/1.png", "=1+1/2.png"}, {}),
    "255 bytes": ({f"{LONG}/1.png": 5, f"{LONG}/2.png": 6}, {f"{LONG}/1.png", f"{LONG}/2.png"}, {}),
    "names that differ in case": ({"CAT/1.png": 5, "CAT/2.png": 6}, {"CAT/1.png", "CAT/2.png"}, {}),
    "hidden files": ({"cat/.9.png": 5, ".git/a.png": 6}, set(), {}),
    "what systems leave": ({"cat/Thumbs.db": b"", "__MACOSX/cat/._1.png": 5, "cat/.DS_Store": b"1"}, set(), {}),
    "a file next to the classes": ({"loose.png": 5}, set(), {"loose.png": "no-class"}),
    "other files": (
        {"cat/a.txt": b"a", "cat/b.xml": b"<?xml"},
        set(),
        dict.fromkeys(["cat/a.txt", "cat/b.xml"], "not-an-image"),
    ),
}


@pytest.mark.parametrize("row", TREES)
def test_trees(plant, row):
    extra, answer, rejected = TREES[row]
    root = plant(FOUR | extra)
    if isinstance(answer, str):
        with pytest.raises(DataError, match=answer):
            build_dataset(read_table(str(root)))
        return
    found = validate_images(build_dataset(read_table(str(root))))
    assert set(found.keys) == set(FOUR) | answer
    assert {os.path.relpath(bad.path, root): bad.code for bad in found.rejected} == rejected


def make_links(root: Path) -> None:
    (root.parent / "secret.png").write_bytes((root / "cat/1.png").read_bytes())
    (root / "cat/inside.png").symlink_to("1.png")
    (root / "cat/outside.png").symlink_to(root.parent / "secret.png")
    (root / "cat/loop").symlink_to(root)
    (root / "cat/self.png").symlink_to("self.png")
    (root / "stolen").symlink_to(root.parent)


def make_odd_names(root: Path) -> None:
    os.rename(root / "cat/1.png", root / "cat" / os.fsdecode(b"caf\xe9.png"))


def make_forms(root: Path) -> None:
    for form in ("NFC", "NFD"):
        folder = root / "cat" / unicodedata.normalize(form, "größe")
        folder.mkdir(exist_ok=True)
        (folder / f"{form}.png").write_bytes((root / "cat/1.png").read_bytes())


SYSTEM: dict[str, tuple[Callable[[Path], object], int, set[str]]] = {
    "links": (make_links, 6, {"loop", "missing"}),
    "a pipe": (lambda root: os.mkfifo(root / "cat/pipe.png"), 4, {"special-file"}),
    "names that are not UTF-8": (make_odd_names, 4, set()),
    "both normal forms": (make_forms, 6, set()),
    "a deep tree": (lambda root: os.makedirs(root / "cat" / "/".join(["d"] * 200)), 4, set()),
    "a file that vanished": (lambda root: (root / "cat/3.png").symlink_to("gone.png"), 4, {"missing"}),
}


@pytest.mark.skipif(sys.platform == "win32", reason="made by calls of POSIX")
@pytest.mark.parametrize("row", SYSTEM)
def test_what_systems_can_do_to_trees(plant, row):
    make, count, codes = SYSTEM[row]
    root = plant(FOUR)
    make(root)
    found = validate_images(build_dataset(read_table(str(root))))
    assert len(found) == count and {bad.code for bad in found.rejected} == codes


def test_files_that_change_while_they_are_read(plant, encode, colours):
    root = plant({f"{number}.png": encode(np.roll(colours, number)) for number in range(6)})
    paths = [str(root / f"{number}.png") for number in range(6)]
    os.remove(paths[1])
    Path(paths[3]).write_bytes(b"<html>")
    os.chmod(paths[4], 0)
    batches = make_image_dataset(paths, 16, "stretch", 2).as_numpy_iterator()
    found = [row for index, _ in batches for row in index.tolist()]
    assert found == [0, 2, 5] or (os.geteuid() == 0 and found == [0, 2, 4, 5])


HEAD = "path,label\n"
BODY = "a.png,cat\nb.png,cat\nc.png,dog\nd.png,dog\n"

# Bytes of a manifest, and how many images it has or the sentence of the error.
MANIFESTS: dict[str, tuple[bytes, int | str]] = {
    "plain": ((HEAD + BODY).encode(), 4),
    "byte order mark": (b"\xef\xbb\xbf" + (HEAD + BODY).encode(), 4),
    "Windows line ends": ((HEAD + BODY).replace("\n", "\r\n").encode(), 4),
    "semicolons": ((HEAD + BODY).replace(",", ";").encode(), 4),
    "quotes and spaces": (b'path , label\n"a.png"," cat"\nb.png,cat\nc.png,dog\nd.png,dog\n', 4),
    "empty lines": ((HEAD + "\n" + BODY + "\n,\n\n").encode(), 4),
    "nothing": (b"", "The manifest is empty"),
    "a header alone": (HEAD.encode(), "has a header but no rows"),
    "no path": (b"site,label\na.png,cat\n", "there is no column 'path', only site, label"),
    "no label": (b"path,kind\na.png,cat\nb.png,dog\n", "no column 'label'.* kind. Name .* --set data.label=kind"),
    "a column twice": (b"path,label,label\na.png,cat,cat\n", "column 'label' appears twice"),
    "too few fields": ((HEAD + "a.png\n" + BODY).encode(), "line 2: 1 fields instead of 2"),
    "an image twice": ((HEAD + BODY + "./a.png,dog\n").encode(), "line 6: the same image as line 2"),
    "a zero byte": ((HEAD + "a\0.png,cat\n" + BODY).encode(), "zero byte|line contains NUL"),
    "no path in a line": ((HEAD + " ,cat\n" + BODY).encode(), "line 2: the path is empty"),
    "an image that is missing": ((HEAD + BODY + "none.png,cat\n").encode(), 4),
    "Latin-1": ((HEAD + BODY).replace("cat", "kätzchen").encode("latin-1"), "not in UTF-8"),
    "an open quote": ((HEAD + '"a.png,cat\n' + BODY).encode(), "not valid CSV"),
    "one class": (b"path,label\na.png,cat\nb.png,cat\n", "only one class"),
    "a formula as a label": ((HEAD + BODY).replace("cat", "=1+1").encode(), 4),
    "an unknown split": (b"path,label,split\na.png,cat,trian\nb.png,dog,test\n", "Did you mean 'train'"),
    "a weight that is none": (b"path,label,weight\na.png,cat,-1\nb.png,dog,x\n", "a weight is a number, 0 or more"),
}


@pytest.mark.parametrize("row", MANIFESTS)
def test_manifests(plant, row):
    content, answer = MANIFESTS[row]
    root = plant({f"{name}.png": number for number, name in enumerate("abcd")} | {"set.csv": content})
    if isinstance(answer, int):
        dataset = build_dataset(read_table(str(root / "set.csv")))
        assert len(dataset) == answer and len(dataset.tasks[0].class_names) == 2
    else:
        with pytest.raises(DataError, match=answer):
            build_dataset(read_table(str(root / "set.csv")))


@pytest.mark.parametrize("name", ["set.zip", "set.tar", "set.tar.gz", "set.tgz", "SET.ZIP", "set.7z", "set.rar"])
def test_archives_are_never_unpacked(tmp_path, name):
    write(tmp_path, name, b"PK\x03\x04")
    with pytest.raises(DataError, match="Archives are not read.*Unpack it"):
        read_table(str(tmp_path / name))
    assert os.listdir(tmp_path) == [name]
