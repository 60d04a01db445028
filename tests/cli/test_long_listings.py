"""What holds of many files is said in one line, whichever command says it."""

import json
import shutil

import pytest
from click.testing import CliRunner

from tlkeras.cli.main import main

PSD, HEIC = b"8BPS" + bytes(99), b"\0\0\0\x18ftypheic" + bytes(99)
SMALL = ["--set", "backbone.name=tiny", "--set", "backbone.weights=none"]


def flat(folder):
    shutil.move(folder / "photos", folder / "old")
    (folder / "photos").mkdir()
    for number, path in enumerate(sorted((folder / "old").rglob("*.png"))):
        shutil.copy(path, folder / f"photos/{number:02d}.png")


def of(data, name, count=40):
    def write(folder):
        for number in range(count):
            (folder / "photos/day" / name.format(number)).write_bytes(data)

    return write


def only(data, name):
    def write(folder):
        shutil.rmtree(folder / "photos")
        for label in ("day", "night"):
            (folder / "photos" / label).mkdir(parents=True)
            for number in range(20):
                (folder / "photos" / label / name.format(number)).write_bytes(data)

    return write


def table(row):
    def write(folder):
        names = sorted(str(path.relative_to(folder)) for path in (folder / "photos").rglob("*.png"))
        lines = [row.format(path=path, label=path.split("/")[1]) for path in names]
        (folder / "photos.csv").write_text("\n".join(["path,label,weight", *lines]))

    return write


CASES = {  # what is wrong -> input, source, exit codes of check and train, words of the one line
    "loose images": (flat, "photos", 1, 3, "32 files", "00.png, 01.png, 02.png: not in a class folder"),
    "PSD alone": (only(PSD, "{}.psd"), "photos", 1, 3, "40", "Photoshop (PSD) is not supported"),
    "PSD named JPEG": (only(PSD, "{}.jpg"), "photos", 1, 3, "40 files", "Photoshop (PSD) is not supported", "Convert"),
    "empty alone": (only(b"", "{}.jpg"), "photos", 1, 3, "40 files", "the file is empty", "fetch them again"),
    "HEIC beside images": (of(HEIC, "i{:02d}.heic"), "photos", 0, 0, "40 files", "HEIC needs pillow-heif: pip install"),
    "HEIC named JPEG": (of(HEIC, "i{:02d}.jpg"), "photos", 0, 0, "40 files", "HEIC needs pillow-heif: pip install"),
    "texts": (of(b"404: not found", "i{:02d}.jpg"), "photos", 0, 0, "40 files", "not an image (text)", "downloads"),
    "no such files": (table("x/{path},{label},1"), "photos.csv", 1, 3, "32 of 32 images are missing", "data.root"),
    "wrong weights": (table("{path},{label},heavy"), "photos.csv", 1, 3, "32 times", "'weight' of", "is 'heavy'"),
}


@pytest.mark.parametrize("case", CASES)
def test_check_and_train(workplace, case):
    change, source, checked, trained, *words = CASES[case]
    change(workplace)
    done = CliRunner().invoke(main, ["--quiet", "check", source, *SMALL])
    assert done.exit_code == checked, done.output
    said = " ".join(done.output.split())
    assert all(word in said for word in words), done.output
    assert len(done.output.splitlines()) < 40
    done = CliRunner().invoke(main, ["--quiet", "train", "mine.yaml", "--set", f"data.source={source}"])
    assert done.exit_code == trained, done.output
    if trained:
        assert all(word in done.output for word in words) and len(done.output.splitlines()) < 5


@pytest.mark.parametrize("name", ["i{}.heic", "i{}.jpg", "i{}", "i{}.dat"])
def test_one_kind_of_file_has_one_code_whatever_its_name(workplace, name):
    of(HEIC, name, 3)(workplace)
    done = CliRunner().invoke(main, ["--quiet", "check", "photos", *SMALL, "--json"])
    codes = {(one["code"], one["reason"]) for one in json.loads(done.stdout)["rejected"]}
    assert codes == {("unsupported", "HEIC needs pillow-heif: pip install 'tlkeras[heic]'")}


def test_missing_rows_of_a_table_are_told_by_extraction(workplace):
    (workplace / "photos.csv").write_text("path,label\nphotos/day/0-000.png,a\nphotos/day/gone.png,a\n")
    done = CliRunner().invoke(main, ["features", "extract", "photos.csv", "--out", "out", *SMALL, "--json"])
    assert done.exit_code == 3, done.output
    result = json.loads(done.stdout)
    assert (result["images"], result["rows"], result["rejected"]) == (2, 1, 1)
    assert [(one["path"], one["code"]) for one in result["unreadable"]] == [("photos/day/gone.png", "missing")]
