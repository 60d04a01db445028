"""However a folder is predicted: what is left out is listed with its reason, counts add up, the exit code is 3."""

import csv
import json
import os
import shutil

import pytest
from click.testing import CliRunner
from PIL import Image

import tlkeras
from tlkeras.cli.main import main

LEFT_OUT = {  # name -> code
    "b.psd": "unsupported",
    "c.heic": "unsupported",
    "d.avif": "damaged",
    "heic.jpg": "unsupported",
    "notes.txt": "not-an-image",
    "text.png": "not-an-image",
    "empty.png": "empty",
    "nothing": "empty",
    "gone.png": "missing",
    "pipe.png": "special-file",
    "deep/pipe": "special-file",
}
HEIC, AVIF = b"\0\0\0\x18ftypheic" + bytes(99), b"\0\0\0\x1cftypavif" + bytes(99)


pytestmark = pytest.mark.usefixtures("one_engine")


@pytest.fixture
def mixed(trained, tmp_path, monkeypatch):
    """The folder `in` with two images, one of them turned in EXIF alone, and with all that is left out."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    image = Image.open(next((trained.parent.parent / "photos/day").iterdir()))
    image.save(folder / "a.png")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(folder / "deep/turned.webp", exif=exif, lossless=True)
    for name, data in (
        ("b.psd", b"8BPS" + bytes(99)),
        ("c.heic", HEIC),
        ("d.avif", AVIF),
        ("heic.jpg", HEIC),
        ("text.png", b"404: not found"),
    ):
        (folder / name).write_bytes(data)
    (folder / "notes.txt").write_text("taken in May")
    for name in ("empty.png", "nothing"):
        (folder / name).touch()
    os.symlink("nowhere.png", folder / "gone.png")
    for name in ("pipe.png", "deep/pipe"):
        os.mkfifo(folder / name)
    return folder


def names(unreadable, folder):
    """Name to code of results that name files by path, or relative to the folder."""
    return {os.path.relpath(os.path.join(folder, one["path"]), folder): one["code"] for one in unreadable}


def call(*arguments):
    return CliRunner().invoke(main, ["--quiet", *map(str, arguments)])


SMALL = ["--set", "backbone.name=tiny", "--set", "backbone.weights=none"]
WAYS = {
    "predict": lambda run, folder: ["predict", run, folder],
    "table": lambda run, folder: ["predict", run, folder, "--out", "out.csv"],
    "shards": lambda run, folder: ["predict", run, folder, "--out", "out", "--engine", "local"],
    "shards of several": lambda run, folder: [
        "predict",
        run,
        folder,
        folder / "a.png",
        "--out",
        "o",
        "--engine",
        "local",
    ],
    "features": lambda run, folder: ["features", "extract", folder, "--out", "out", *SMALL],
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_left_out_is_listed(trained, mixed, way):
    done = call(*WAYS[way](trained, mixed), "--json")
    assert done.exit_code == 3, done.output
    result = json.loads(done.stdout)
    assert names(result["unreadable"], mixed) == LEFT_OUT
    assert all(one["reason"] for one in result["unreadable"])
    (note,) = result["notes"]
    assert "turned.webp: the EXIF orientation 6 of a WebP is not applied" in note
    rows = 3 if way == "shards of several" else 2
    if "rows" in result:
        assert result["rows"] == rows
    if "images" in result:
        assert result["images"] == rows + len(LEFT_OUT) == result["rows"] + result["rejected"]
        again = json.loads(call(*WAYS[way](trained, mixed), "--json").stdout)
        assert again["unreadable"] == result["unreadable"] and again["computed"] == 0
        listed = [row for path in sorted(mixed.parent.glob("o*/rejected/*.csv")) for row in read(path)]
        assert names(listed, mixed) == LEFT_OUT
    if way == "table":
        assert names(read(mixed.parent / "out.rejected.csv"), mixed) == LEFT_OUT


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("way", WAYS)
def test_it_is_printed_folded(trained, mixed, way):
    for number in range(20):
        shutil.copy(mixed / "c.heic", mixed / f"IMG_{number:04d}.HEIC")
    done = call(*WAYS[way](trained, mixed))
    assert done.exit_code == 3, done.output
    said = " ".join(done.stdout.split())
    assert "(31)" in said and "22 files" in said and "IMG_0000.HEIC, " in said and "IMG_0009" not in said
    assert "HEIC needs pillow-heif: pip install 'tlkeras[heic]'" in said
    assert "note: " in said and "EXIF orientation 6" in said
    assert len(done.stdout.splitlines()) < 45


def test_a_folder_that_cannot_be_listed(trained, mixed, monkeypatch):
    scan = os.scandir

    def refuse(folder):
        if os.fspath(folder).endswith("deep"):
            raise PermissionError(13, "Permission denied")
        return scan(folder)

    monkeypatch.setattr("tlkeras.data.sources.folders.os.scandir", refuse)
    done = call("predict", trained, mixed, "--json")
    assert done.exit_code == 3, done.output
    assert names(json.loads(done.stdout)["unreadable"], mixed)["deep"] == "forbidden"


@pytest.mark.parametrize("way", ["predict", "table", "shards", "features"])
def test_a_folder_without_any_image_says_what_is_there(trained, tmp_path, monkeypatch, way):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for number in range(30):
        (tmp_path / f"in/{number}.heic").write_bytes(HEIC)
    done = call(*WAYS[way](trained, tmp_path / "in"))
    assert done.exit_code == 3
    said = " ".join(done.output.split())
    assert "30 files" in said and "pip install 'tlkeras[heic]'" in said, said


def test_a_job_below_the_images_does_not_list_itself(trained, mixed):
    done = call("predict", trained, mixed, "--out", mixed / "out", "--engine", "local", "--json")
    assert done.exit_code == 3, done.output
    assert names(json.loads(done.stdout)["unreadable"], mixed) == LEFT_OUT


def test_python_lists_it_too(trained, mixed):
    found = tlkeras.predict(trained, [mixed])
    assert len(found.predictions) == 2 and {one.path.removeprefix(f"{mixed}/") for one in found.unreadable} == set(
        LEFT_OUT
    )
    assert found.to_dict()["notes"] == list(found.notes) and "EXIF" in found.notes[0]
    with pytest.raises(tlkeras.errors.DataError, match="there: it does not exist"):
        tlkeras.predict(trained, [mixed, "there"])
