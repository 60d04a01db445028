"""Issues of many files in few sentences."""

import pytest

from tlkeras.data.headers import InvalidImage
from tlkeras.data.issues import describe_issues
from tlkeras.errors import fold_alike


def many(count, code, reason, name="/photos/{}.jpg"):
    return [InvalidImage(name.format(at), code, reason.format(at)) for at in range(count)]


@pytest.mark.parametrize(
    ("issues", "lines"),
    [
        ([], []),
        (many(1, "no-class", "not in a class folder"), ["/photos/0.jpg: not in a class folder"]),
        (many(2, "empty", "the file is empty"), None),
        (
            many(2000, "no-class", "not in a class folder"),
            ["2,000 files in /photos, such as 0.jpg, 1.jpg, 2.jpg: not in a class folder"],
        ),
        (
            many(4, "unsupported", "HEIC is not supported", "a{}.heic"),
            ["4 files, such as a0.heic, a1.heic, a2.heic: HEIC is not supported. Convert them to JPEG or PNG."],
        ),
        (
            many(4, "too-many-pixels", "{}000 x 9000 pixels are too many"),
            [
                "4 files in /photos, such as 0.jpg (0000 x 9000 pixels are too many), "
                "1.jpg (1000 x 9000 pixels are too many), 2.jpg (2000 x 9000 pixels are too many)"
            ],
        ),
        (
            many(4, "damaged", "its PNG header cannot be read (at byte {})"),
            [
                "4 files in /photos, such as 0.jpg, 1.jpg, 2.jpg: its PNG header cannot be read. "
                "Interrupted copies and downloads leave such files: fetch them again."
            ],
        ),
        (
            many(4, "not-an-image", "not an image (HTML)"),
            [
                "4 files in /photos, such as 0.jpg, 1.jpg, 2.jpg: not an image (HTML). "
                "Named like images, such files are mostly failed downloads: fetch them again."
            ],
        ),
        (
            many(4, "not-an-image", "not an image (text)", "/photos/{}.txt"),
            ["4 files in /photos, such as 0.txt, 1.txt, 2.txt: not an image (text)"],
        ),
    ],
)
def test_sentences(issues, lines):
    found = describe_issues(issues)
    if lines is None:
        lines = ["/photos/0.jpg: the file is empty", "/photos/1.jpg: the file is empty"]
        found[0] = found[0].partition(". ")[0]
    assert found == lines


def test_the_largest_group_stands_first_and_a_hint_once():
    issues = [
        *many(3, "empty", "the file is empty"),
        *many(4, "unsupported", "TIFF is not supported", "t/{}.tif"),
        *many(9, "unsupported", "HEIC is not supported", "/h/{}.heic"),
    ]
    found = describe_issues(issues)
    assert [line[:7] for line in found] == ["9 files", "4 files", *["/photos"] * 3]
    assert sum("Convert them" in line for line in found) == 1
    assert describe_issues([*issues, InvalidImage("/h/odd\udcff.heic", "unsupported", "HEIC is not supported")])


def test_sentences_that_differ_in_names_and_numbers_are_folded():
    lines = [f"line {at}: the same image as line {at - 1}" for at in range(2, 50)]
    more = ["line 7: unknown split 'tset'. Did you mean 'test'?", "no column 'path'"]
    assert fold_alike([*lines, *more]) == [
        "48 times, such as: line 2: the same image as line 1; line 3: the same image as line 2; "
        "line 4: the same image as line 3.",
        *more,
    ]
    assert fold_alike(lines[:3]) == lines[:3]
