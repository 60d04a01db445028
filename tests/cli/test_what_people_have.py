"""The table of what people really have: each row an input made by code, a command, its exit code and what it says."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from tlkeras.cli.main import main

HEIC, AVIF, PSD = (bytes(3) + b"\x18ftypheic" + bytes(99), bytes(3) + b"\x1cftypavif" + bytes(99), b"8BPS" + bytes(99))
NAMES = [f"photos/{label}/0-{number:03d}.png" for label in ("day", "night") for number in range(16)]
LINES = [f"{path},{path.split('/')[1]}" for path in NAMES]

Make = Callable[[Path], object]


def move(**moves: str) -> Make:
    """Move folders of `photos`, such as day="train/day"; others stay."""

    def make(folder: Path) -> None:
        for old, new in moves.items():
            (folder / "photos" / new).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(folder / "photos" / old, folder / "photos" / new)

    return make


def splits(*names: str) -> Make:
    def make(folder: Path) -> None:
        shutil.move(folder / "photos", folder / "all")
        for at, name in enumerate(names):
            for label in ("day", "night"):
                (folder / "photos" / name / label).mkdir(parents=True)
                for path in sorted((folder / "all" / label).iterdir())[at :: len(names)]:
                    shutil.copy(path, folder / "photos" / name / label)

    return make


def table(text: str | bytes = "", name: str = "m.csv", row: str = "{line}", head: str = "path,label") -> Make:
    """A table, whole or by the form of a row; `{line}`, `{path}` and `{label}` are filled in."""

    def make(folder: Path) -> None:
        rows = [
            row.format(line=line, path=line.split(",")[0], label=line.split(",")[1], at=at)
            for at, line in enumerate(LINES)
        ]
        whole = text or "\n".join([head, *rows])
        (folder / name).write_bytes(whole if isinstance(whole, bytes) else whole.encode())

    return make


def files(**contents: bytes) -> Make:
    """Files in photos/day; "_" stands for the dot of a name."""

    def make(folder: Path) -> None:
        for name, content in contents.items():
            (folder / "photos/day" / name.replace("_", ".")).write_bytes(content)

    return make


def each(change: Callable[[Image.Image, int], Image.Image], suffix: str = ".png", **options) -> Make:
    """All images written again, changed."""

    def make(folder: Path) -> None:
        for at, path in enumerate(sorted((folder / "photos").rglob("*.png"))):
            image = change(Image.open(path), at)
            path.unlink()
            image.save(path.with_suffix(suffix), **options)

    return make


def both(*makes: Make) -> Make:
    return lambda folder: [make(folder) for make in makes]


def link(name: str, target: str) -> Make:
    return lambda folder: os.symlink(folder / target, folder / name)


def left_behind(folder: Path) -> None:
    for path in NAMES[:3]:
        thumb = folder / "photos/day/@eaDir" / os.path.basename(path) / "SYNOPHOTO_THUMB_M.jpg"
        thumb.parent.mkdir(parents=True)
        Image.open(folder / path).convert("RGB").save(thumb)
    (folder / "photos/lost+found").mkdir()
    (folder / "photos/Thumbs.db").write_bytes(b"x")


def rare(folder: Path) -> None:
    for number in range(6):
        for copy in range(2):
            target = folder / f"photos/r{number}/{copy}.png"
            target.parent.mkdir(exist_ok=True)
            Image.fromarray(np.random.default_rng(9 * number + copy).integers(0, 255, (32, 32, 3), np.uint8)).save(
                target
            )


def decomposed(folder: Path) -> None:
    for path in NAMES:
        (folder / path).rename(folder / path.replace("0-", unicodedata.normalize("NFD", "é")))


def hub_cache(folder: Path) -> None:
    for at, path in enumerate(NAMES):
        blob, name = folder / f"hub/blobs/{at}", folder / "hub/snapshots/abc" / path.removeprefix("photos/")
        for one in (blob, name):
            one.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / path, blob)
        name.symlink_to(blob)


def detection(folder: Path) -> None:
    for split in ("train", "val"):
        (folder / f"photos/labels/{split}").mkdir(parents=True)
        (folder / f"photos/labels/{split}/1.txt").write_text("0 .5 .5 1 1")
    move(day="images/train", night="images/val")(folder)


def per_split_tables(folder: Path) -> None:
    for split, start in (("train", 0), ("test", 1)):
        place = folder / "hub" / split
        place.mkdir(parents=True)
        for path in NAMES[start::2]:
            shutil.copy(folder / path, place / path.replace("/", "-"))
        rows = [{"file_name": path.replace("/", "-"), "label": path.split("/")[1]} for path in NAMES[start::2]]
        (place / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))


def turned(folder: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (folder / "in").mkdir()
    for suffix in ("jpg", "png", "webp"):
        Image.open(folder / NAMES[0]).save(folder / f"in/a.{suffix}", exif=exif.tobytes())


def mixed(folder: Path) -> None:
    (folder / "in").mkdir()
    for name, content in (("c.heic", HEIC), ("d.avif", AVIF), ("e.psd", PSD)):
        (folder / "in" / name).write_bytes(content)
    Image.open(folder / NAMES[0]).save(folder / "in/b.tif")
    os.symlink(folder / NAMES[1], folder / "in/a.png")
    os.symlink(folder / "gone.png", folder / "in/f.png")


def alpha(image: Image.Image, at: int) -> Image.Image:
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[at // 6 : 20 + at % 6, 4 + at % 5 : 20, 3] = 255
    return Image.fromarray(pixels)


def twelve_bits(image: Image.Image, at: int) -> Image.Image:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 16)


CHECK, TABLE = "check photos", "check m.csv"
CASES: dict[str, tuple[Make, str, int, tuple[str, ...]]] = {
    "A1 a folder of all kinds": (
        mixed,
        "predict RUN in",
        3,
        ("a.png", "b.tif", "read (4)", "HEIC needs", "AVIF header", "PSD", "missing file"),
    ),
    "A1 the same into a table": (mixed, "predict RUN in --out o.csv", 3, ("Wrote 2", "read (4)")),
    "A2 train and eval": (splits("train", "eval"), CHECK, 0, ("train 16", "test 16", "day")),
    "A2 seg_train and seg_test": (splits("seg_train", "seg_test"), CHECK, 0, ("train 16", "test 16")),
    "A2 parts of one set": (
        splits("fold1", "fold2"),
        CHECK,
        1,
        ("look like splits or parts", "Name them train, validation, test", "data.folders=classes"),
    ),
    "A3 numbers written otherwise": (
        table(
            row="{path},{at}",
            text="\n".join(
                ["path,label", *(f"{path},{('1', '1.0', '0', '2')[at // 8]}" for at, path in enumerate(NAMES))]
            ),
        ),
        TABLE,
        0,
        ("'1' (8), '1.0' (8)", "{'1.0': '1'}", "merges them"),
    ),
    "A3 missing labels": (
        table("\n".join(["path,label", *LINES[:-3], *(f"{path},nan" for path in NAMES[-3:])])),
        TABLE,
        0,
        ("Is 'nan' (3) a missing label?", "{'nan': ''}"),
    ),
    "A4 letter case": (
        both(
            lambda folder: (folder / "photos/Day").mkdir(),
            lambda folder: [shutil.move(folder / path, folder / "photos/Day") for path in NAMES[:4]],
        ),
        CHECK,
        0,
        ("'Day' (4), 'day' (12)", "merges them"),
    ),
    "A4 a class of the test split alone": (
        both(splits("train", "test"), lambda folder: (folder / "photos/test/day").rename(folder / "photos/test/Day")),
        CHECK,
        1,
        ("no training image (with a weight above 0) shows Day", "'Day' (8), 'day' (8)"),
    ),
    "A5 and B2 what systems leave behind": (
        left_behind,
        CHECK,
        0,
        ("32 from photos", "skipped: ", "@eaDir (1)", "lost+found (1)", "Thumbs.db (1)"),
    ),
    "A6 shapes in alpha, dropped": (
        each(alpha),
        f"{CHECK} --set data.background=drop",
        1,
        ("different files decode to one image", "set data.background"),
    ),
    "A6 shapes in alpha": (each(alpha), CHECK, 0, ("alpha is composited over", "are not plain RGB")),
    "A7 12 bits of 16": (each(twelve_bits), CHECK, 0, ("16-bit images hold values of", "0 to 4,095 are scaled")),
    "A8 orientation": (turned, "predict RUN in", 0, ("2 images have an EXIF orientation that is not applied", "a.png")),
    "A9 a dead server": (
        lambda folder: None,
        f"predict --url http://127.0.0.1:8400/v1/models/m {NAMES[0]}",
        9,
        ("cannot be reached",),
    ),
    "A10 classes that are numbers": (
        table("\n".join(["path,label", *(f"{path},{at // 3 + 1}" for at, path in enumerate(NAMES))])),
        TABLE,
        0,
        ("2 │", "11 │"),
    ),
    "B1 rare classes": (rare, f"{CHECK} --set data.validation=0.2", 0, ("r5",)),
    "B1 rare classes left out": (
        rare,
        f"{CHECK} --set data.min_images_per_class=3",
        0,
        ("left out, with fewer than 3 images", "r5 (2)"),
    ),
    "B2 an empty class": (
        lambda folder: (folder / "photos/dusk").mkdir(),
        CHECK,
        1,
        ("no image: dusk. Add images, or remove the class",),
    ),
    "B3 a cache of the hub": (hub_cache, "check hub", 0, ("32 from hub", "day")),
    "B3 a class that is a link": (
        both(move(night="../night"), link("photos/night", "night")),
        CHECK,
        0,
        ("16 of the images lie outside the folder",),
    ),
    "B3 links that are refused": (
        both(move(night="../night"), link("photos/night", "night")),
        f"{CHECK} --set data.links=refuse",
        1,
        ("class 'night' has no image", "data.links: refuse"),
    ),
    "B4 absolute paths elsewhere": (
        lambda folder: table(name="lists/m.csv", row=f"{folder}/{{line}}")((folder / "lists").mkdir() or folder),
        "check lists/m.csv",
        0,
        ("32 from lists/m.csv",),
    ),
    "B4 paths of another machine": (
        table(row="/kaggle/input/{line}"),
        TABLE,
        1,
        ("32 of 32 images are missing", "--set data.root=. finds them"),
    ),
    "B5 backslashes": (
        both(table(), lambda folder: (folder / "m.csv").write_text((folder / "m.csv").read_text().replace("/", "\\"))),
        TABLE,
        0,
        ("32 paths are spelled otherwise",),
    ),
    "B6 an index of pandas": (
        table(head=",path,label", row="{at},{line}"),
        TABLE,
        0,
        ("A column without a name", "is ignored"),
    ),
    "B7 blanks": (table(head="label, path", row="{label}, {path}"), TABLE, 0, ("32 paths are spelled otherwise",)),
    "B8 forms of Unicode": (
        both(decomposed, table("\n".join(["path,label", *(line.replace("0-", "é") for line in LINES)]))),
        TABLE,
        0,
        ("32 paths are spelled otherwise",),
    ),
    "B9 letter case of names": (
        table("\n".join(["path,label", *(line.replace(".png", ".PNG") for line in LINES)])),
        TABLE,
        0,
        ("32 paths are spelled otherwise",),
    ),
    "B10 file_name": (table(head="file_name,label"), TABLE, 0, ("32 from m.csv",)),
    "B10 names without extension": (
        table("\n".join(["id,label", *(line.replace(".png", "") for line in LINES)])),
        TABLE,
        0,
        ("32 paths are spelled",),
    ),
    "B10 another column": (
        table(head="picture,label"),
        TABLE,
        1,
        ("no column 'path', only picture, label", "--set data.path=picture"),
    ),
    "B11 a row per label": (
        table("\n".join(["path,label", *LINES, *(f"{path},any" for path in NAMES[:9])])),
        TABLE,
        1,
        ("--set 'data.separator=|' joins", "9 times, such as: line 34: the same image as line 2"),
    ),
    "B11 joined": (
        table("\n".join(["path,label", *LINES, *(f"{path},any" for path in NAMES[:9])])),
        f"{TABLE} --set data.separator=|",
        0,
        ("9 rows name an image that another row names", "any"),
    ),
    "B12 sep=;": (
        table("\n".join(["sep=;", "path;label", *(line.replace(",", ";") for line in LINES)])),
        TABLE,
        0,
        ("32 from m.csv",),
    ),
    "B12 decimal commas": (table(head="path;label;weight", row="{path};{label};0,5"), TABLE, 0, ("32 from m.csv",)),
    "B12 UTF-16": (
        table("\n".join(["path,label", *LINES]).encode("utf-16")),
        TABLE,
        1,
        ("in UTF-16", "iconv -f UTF-16"),
    ),
    "B12 Latin-1": (
        table("\n".join(["path,label", *LINES, "é.png,day"]).encode("latin-1")),
        TABLE,
        1,
        ("not in UTF-8", "Windows-1252"),
    ),
    "B13 a wrapper": (move(day="data/day", night="data/night"), CHECK, 0, ("The classes are the folders in", "day")),
    "B13 object detection": (detection, CHECK, 1, ("object detection or segmentation", "one folder per class")),
    "B14 too many pixels": (
        each(lambda image, at: image.resize((200, 200)) if at == 3 else image),
        f"{CHECK} --set data.max_pixels=9999",
        0,
        ("200 x 200 pixels are more than 9,999", "data.max_pixels sets the limit"),
    ),
    "B15 a long GIF": (
        lambda folder: Image.new("P", (640, 480)).save(
            folder / "photos/day/a.gif",
            save_all=True,
            append_images=[Image.new("P", (640, 480), at % 256) for at in range(1, 220)],
        ),
        CHECK,
        0,
        ("only the first of 220 frames is taken",),
    ),
    "B16 bytes before a JPEG, gzip": (
        files(a_jpg=b"\n\xff\xd8\xff\xe0" + bytes(99), b_jpg=gzip.compress(b"x")),
        CHECK,
        0,
        ("JPEG after other bytes", "gzip archive"),
    ),
    "B17 one kind, two names": (
        files(a_psd=PSD, b_jpg=PSD, c_heic=HEIC, d_jpg=HEIC),
        CHECK,
        0,
        (
            "a.psd: Photoshop (PSD) is not supported",
            "b.jpg: Photoshop (PSD) is not supported",
            "Convert them",
            "c.heic: HEIC needs",
            "d.jpg: HEIC needs",
        ),
    ),
    "B18 a column that is a number": (table(head="path,2024"), f"{TABLE} --set data.label=2024", 0, ("32 from m.csv",)),
    "X01b loose images": (
        lambda folder: [shutil.move(folder / path, folder / "photos" / path.replace("/", "-")) for path in NAMES],
        CHECK,
        1,
        ("32 files", "not in a class folder"),
    ),
    "X07 no header": (table(head=LINES[0]), TABLE, 1, ("The first line is no header: write `path,label` above it",)),
    "X07 a remark": (
        table("# mine\npath,label\n" + "\n".join(LINES)),
        TABLE,
        1,
        ("The first line is a remark: remove it",),
    ),
    "X07 a text file": (table(name="list.txt"), "check list.txt", 0, ("32 from list.txt",)),
    "X07 a table to train": (
        table(),
        "train m.csv --set backbone.name=tiny --set backbone.weights=none --set data.split_tolerance=0",
        0,
        ("m-01: ", "held-out images, 2 classes"),
    ),
    "X07 no label": (table(head="path,kind"), TABLE, 1, ("no column 'label'", "--set data.label=kind")),
    "X07 short lines": (table(head="path,label,site"), TABLE, 1, ("32 times, such as: line 2: 2 fields instead of 3",)),
    "X08b numbers": (table(row="{path},{at}.731"), TABLE, 1, ("32 classes are numbers", "kind: regression")),
    "X09b a blank as separator": (
        table(row="{path},{label} x"),
        f"{TABLE} --set 'data.separator= '",
        1,
        ("the absence of x",),
    ),
    "X12 a folder that is a number": (
        lambda folder: (folder / "photos").rename(folder / "2024"),
        "check 2024",
        0,
        ("32 from 2024",),
    ),
    "X12 a folder with a #": (
        lambda folder: (folder / "photos").rename(folder / "my photos #1"),
        "check x.yaml --set 'data.source=my photos #1'",
        0,
        ("32 from my photos #1",),
    ),
    "X29 a class whose files are missing": (
        table("\n".join(["path,label", *LINES, "x/1.png,owl", "x/2.png,owl"])),
        TABLE,
        1,
        ("class 'owl' has no image that can be used, of 2: No such file", "2 of 34 images are missing"),
    ),
    "X29b a class of TIFFs": (each(lambda image, at: image, ".tif"), CHECK, 0, ("32 images are read by way of PNG",)),
    "X29b a class of PSDs": (
        both(
            lambda folder: (folder / "photos/owl").mkdir(),
            lambda folder: [(folder / f"photos/owl/{at}.psd").write_bytes(PSD) for at in range(3)],
        ),
        CHECK,
        1,
        ("class 'owl' has no image that can be used, of 3: Photoshop (PSD)",),
    ),
    "hub: tables of splits": (
        per_split_tables,
        "check hub",
        0,
        ("train 16", "test 16", "labels are those of test/metadata.jsonl, train/metadata.jsonl"),
    ),
}

SMALL = ["--set", "backbone.name=tiny", "--set", "backbone.weights=none", "--set", "evaluation.bootstrap_samples=100"]
QUICK = tuple(
    name
    for name in CASES
    if name.startswith(("A1 a", "A8", "A9", "B4 paths", "B10 another", "X07 no", "X08b", "X29 ", "hub:"))
)


def follow(case: str, workplace: Path, trained: Path) -> None:
    make, command, code, words = CASES[case]
    make(workplace)
    (workplace / "x.yaml").write_text("data: {source: x}\n")
    quoted = [part.strip("'") for part in command.replace("data.separator= '", "data.separator=\0'").split(" ")]
    if "'data.source=" in command:
        quoted = [*command.split(" ")[:3], command.partition("'")[2].rstrip("'")]
    arguments = [part.replace("\0", " ").replace("RUN", str(trained)) for part in quoted]
    done = CliRunner().invoke(main, ["--quiet", *arguments, *(SMALL if arguments[0] == "check" else [])])
    assert done.exit_code == code, done.output
    said = " ".join(done.output.split())
    assert [word for word in words if word not in said] == [], done.output


@pytest.mark.parametrize("case", QUICK)
def test_a_case(case, workplace, trained):
    follow(case, workplace, trained)


@pytest.mark.slow
@pytest.mark.parametrize("case", [name for name in CASES if name not in QUICK])
def test_more_cases(case, workplace, trained):
    follow(case, workplace, trained)
