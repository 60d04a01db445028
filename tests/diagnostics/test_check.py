"""`tlkeras check` on planted cases, from a folder and from a recipe: table, JSON, page, manifest, exit code."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import tlkeras
from tlkeras.cli.main import main
from tlkeras.data.inspection import validate_images
from tlkeras.data.sources.folders import read_table
from tlkeras.data.tables import build_dataset
from tlkeras.diagnostics import check_cache, data_quality
from tlkeras.features.cache import ActivationCache

SMALL = ("--set", "backbone.name=tiny", "--set", "backbone.weights=none")


def check(*arguments: object):
    return CliRunner().invoke(main, ["--quiet", "check", *map(str, arguments)])


@pytest.fixture(scope="module")
def planted(tmp_path_factory, draw_more_photos):
    """64 images, and one of everything that `check` looks for."""
    root = draw_more_photos(tmp_path_factory.mktemp("planted") / "photos", count=32)
    shutil.copy(root / "day/0-000.png", root / "day/again.png")
    shutil.copy(root / "day/0-001.png", root / "night/which.png")
    with Image.open(root / "day/0-002.png") as image:
        image.resize((48, 48), Image.Resampling.BICUBIC).transpose(Image.Transpose.ROTATE_90).save(
            root / "day/turned.jpg"
        )
        image.convert("LA").save(root / "day/alpha.png")
    shutil.move(root / "night/0-031.png", root / "day/wrong.png")
    (root / "night/cut.png").write_bytes((root / "night/0-000.png").read_bytes()[:900])
    (root / "night/empty.png").write_bytes(b"")
    with Image.open(root / "night/0-000.png") as image:
        image.save(root / "night/named.jpg", "PNG", optimize=True)
        image.resize((16, 16)).save(root / "night/tiny.png")
    return root


@pytest.fixture(scope="module")
def report(planted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    done = check(planted, *SMALL, "--html", folder / "check.html", "--fix", planted / "clean.csv", "--json")
    assert done.exit_code == 1, done.output
    return json.loads(done.stdout) | {"html": (folder / "check.html").read_text()}


def keys(images):
    return [image["key"] for image in images]


def test_files_are_sorted_by_what_is_wrong(report):
    assert {bad["path"].split("/")[-1]: bad["code"] for bad in report["rejected"]} == {
        "cut.png": "damaged",
        "empty.png": "empty",
    }
    odd = {(found["path"].split("/")[-1], found["code"]) for found in report["remarks"]}
    assert odd == {("named.jpg", "wrong-extension"), ("tiny.png", "tiny"), ("alpha.png", "mode")}


def test_classes_are_counted(report):
    day, night = report["classes"]
    assert (day["class"], day["images"]) == ("day", 36) and day["train"] + day["test"] == 36
    assert night["images"] == 34 and night["share"] == pytest.approx(34 / 70)


def test_copies_are_grouped(report):
    exact = {tuple(keys(group["images"])): group for group in report["copies"] if group["kind"] == "exact"}
    assert set(exact) == {("day/0-000.png", "day/again.png"), ("day/0-001.png", "night/which.png")}
    assert exact["day/0-001.png", "night/which.png"]["conflicting"]
    assert "1 image appears 2 times with different labels (day, night). Keep one." in report["problems"]
    near = [set(keys(group["images"])) for group in report["copies"] if group["kind"] == "near"]
    assert {"night/0-000.png", "night/named.jpg"} in near


def test_the_wrong_label_comes_first(report):
    assert report["mislabelled"][0] | {"score": 0} == report["mislabelled"][0] | {
        "key": "day/wrong.png",
        "label": "day",
        "suggested": "night",
        "score": 0,
    }
    assert {"day/wrong.png", "night/which.png"} == set(keys(report["mislabelled"]))


def test_the_page_is_self_contained(report):
    page = report["html"]
    assert page.startswith("<!doctype html>") and "http" not in page and "<script" not in page
    assert page.count("data:image/jpeg;base64,") >= 8
    for text in ("Copies with different labels", "Labels that look wrong", "day/wrong.png", "cut.png"):
        assert text in page


def test_the_cleaned_manifest_is_advisable(report, planted):
    assert report["manifest"]["left_out"] == {"the same bytes again": 1, "the same bytes have several labels": 2}
    done = check(planted / "clean.csv", *SMALL, "--json")
    assert done.exit_code == 0, done.output
    assert "identical files" not in done.stdout
    assert (planted / "night/which.png").exists()


def test_recipes_are_checked_with_their_training(planted, tmp_path):
    (tmp_path / "mine.yaml").write_text(f"data: {{source: {planted}}}\nbackbone: {{name: tiny, weights: none}}\n")
    done = check(tmp_path / "mine.yaml")
    assert done.exit_code == 1
    for text in ("Copies that mislead", "Labels that look wrong", "to compute", "problem:", "not advisable"):
        assert text in done.stdout


def test_what_takes_long_needs_deep(planted, monkeypatch):
    monkeypatch.setattr("tlkeras.diagnostics.check.MOST_FEATURES", 3)
    small = (*SMALL, "--set", "features.cache=false", "--json")
    quick = json.loads(check(planted, *small).stdout)
    assert quick["mislabelled"] is None and "`--deep` does it" in " ".join(quick["notes"])
    assert json.loads(check(planted, *small, "--deep").stdout)["mislabelled"]


def test_what_cannot_be_checked(tmp_path, planted):
    done = check("nowhere")
    assert done.exit_code == 2 and "nowhere" in done.stderr
    (tmp_path / "mine.html").write_text("precious")
    done = check(planted, *SMALL, "--html", tmp_path / "mine.html")
    assert done.exit_code == 6 and "is not a page of tlkeras" in done.stderr
    assert (tmp_path / "mine.html").read_text() == "precious"


def test_distillation_that_is_not_possible_is_a_problem(staged):
    wrong = {"finetuning.regularizer": {"kind": "lwf"}, "augmentation.mixup": 0.2, "features.cut": 2}
    problem = "\n".join(tlkeras.check(staged, wrong).problems)
    assert "set augmentation.mixup to 0" in problem
    assert "random weights know nothing to keep" in problem
    assert "leave features.cut out" in problem


@pytest.mark.slow
def test_a_classifier_that_does_not_follow_the_last_map_is_a_problem(staged):
    convnext = {"finetuning.regularizer": {"kind": "lwf"}, "backbone": {"name": "convnext_tiny", "weights": "none"}}
    (problem,) = tlkeras.check(staged, convnext).problems
    assert "convnext_tiny, which normalises after its pooling" in problem


@pytest.mark.slow
def test_every_view_to_compute_is_counted(staged, tmp_path):
    facts = tlkeras.check(staged).facts
    needed = 120 + int(re.search(r"train (\d+)", facts["splits"])[1])  # as they are, and those to train on flipped
    assert facts["to compute"].startswith(f"{needed} of {needed} images")
    tlkeras.train(staged, runs=tmp_path / "runs")
    assert tlkeras.check(staged).facts["to compute"].startswith(f"0 of {needed} images")


@pytest.mark.parametrize(
    ("files", "settings", "code", "sentence"),
    [
        (["train/{}", "eval/{}"], (), 0, "test 4, train 4"),
        (["a/{}", "b/{}"], (), 1, "look like splits or parts"),
        (["a/{}", "b/{}"], ("data.folders=classes",), 0, "a 4, b 4"),
        (["data/{}"], (), 0, "The classes are the folders in"),
        (["{}", "Cat/{}"], (), 0, "differ only in how they are written: 'Cat' (4), 'cat' (2)"),
        (["{}", "Cat/{}"], ("data.labels={Cat: cat}",), 0, "cat 6, dog 2"),
        (["{}", "cat/@eaDir/{}"], (), 0, "skipped: @eaDir (1)"),
        (["{}", "owl/note.txt"], (), 1, "class 'owl' has no image that can be used, of 1"),
        (["{}", "owl/1.png"], (), 0, "shows owl; it is not measured"),
        (["{}", "owl/1.png"], ("data.min_images_per_class=2",), 0, "left out, with fewer than 2 images"),
    ],
)
def test_folders_as_people_have_them(tmp_path, files, settings, code, sentence):
    for number, name in enumerate(files):
        for path in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png") if "{}" in name else ("",):
            target = tmp_path / "set" / name.format(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng([number, *path.encode()]).integers(0, 256, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(target, "PNG") if target.suffix == ".png" else target.write_text("soft")
    done = check(tmp_path / "set", *SMALL, *(part for one in settings for part in ("--set", one)), "--json")
    assert done.exit_code == code, done.output
    found = json.loads(done.stdout)
    assert sentence in " ".join([*found["problems"], *found["notes"], *found["facts"].values(), str_classes(found)])


def str_classes(found):
    return ", ".join(f"{row['class']} {row['images']}" for row in found["classes"])


def test_thumbnails_are_made_once(tmp_path, monkeypatch, draw_more_photos):
    photos, decoded, read = draw_more_photos(tmp_path / "photos", count=3), [], check_cache.read_thumbnails
    (photos / "day/cut.png").write_bytes((photos / "day/0-000.png").read_bytes()[:900])
    dataset = validate_images(build_dataset(read_table(str(photos))))
    monkeypatch.setattr(check_cache, "read_thumbnails", lambda paths, look: decoded.append(paths) or read(paths, look))
    cache = ActivationCache(tmp_path / "cache")
    found = [check_cache.load_thumbnails(dataset, one) for one in (None, cache, cache)]
    assert [len(paths) for paths in decoded] == [7, 7, 1]  # what is damaged is tried again
    for thumbnails, rows in found[1:]:
        np.testing.assert_array_equal(thumbnails, found[0][0])
        np.testing.assert_array_equal(rows, found[0][1])
    (tmp_path / "file").touch()
    assert len(check_cache.load_thumbnails(dataset, ActivationCache(tmp_path / "file"))[1]) == 6


@pytest.mark.slow
def test_a_second_check_computes_nothing_again(tmp_path, monkeypatch, draw_more_photos):
    monkeypatch.setenv("TLKERAS_CACHE", str(tmp_path / "cache"))
    photos, options = draw_more_photos(tmp_path / "photos"), {"backbone.name": "tiny", "backbone.weights": "none"}
    (photos / "day/cut.png").write_bytes((photos / "day/0-000.png").read_bytes()[:900])
    decoded, fitted = [], []
    read, find = check_cache.read_thumbnails, data_quality.find_data_issues
    monkeypatch.setattr(check_cache, "read_thumbnails", lambda paths, look: decoded.append(paths) or read(paths, look))
    monkeypatch.setattr(data_quality, "find_data_issues", lambda *given: fitted.append(1) or find(*given))
    first = tlkeras.check(str(photos), options).to_dict()
    assert tlkeras.check(str(photos), options).to_dict() == first
    assert [len(paths) for paths in decoded] == [33, 1] and len(fitted) == 1  # what is damaged is tried again
    draw_more_photos(photos, count=1, seed=7)
    assert len(tlkeras.check(str(photos), options).remarks) == len(first["remarks"])
    assert len(decoded[-1]) == 3 and len(fitted) == 2
    shutil.copytree(photos, tmp_path / "moved")
    moved = tlkeras.check(str(tmp_path / "moved"), options)
    assert len(decoded[-1]) == 1 and all(str(tmp_path / "moved") in one.path for one in moved.mislabelled)
    assert tlkeras.check(str(photos), {**options, "features.cache": False}).copies == moved.copies
    assert len(decoded[-1]) == 35


def test_fix_merges_labels_that_are_written_otherwise(tmp_path, draw_more_photos):
    photos = draw_more_photos(tmp_path / "photos")
    for number in range(4):
        (photos / "Day").mkdir(exist_ok=True)
        shutil.move(photos / f"day/0-00{number}.png", photos / "Day")
    shutil.copy(photos / "day/0-004.png", photos / "Day/again.png")
    done = check(photos, *SMALL, "--fix", photos / "clean.csv")
    assert "'Day' (5), 'day' (12)" in done.output and "so does `check --fix`" in " ".join(done.output.split())
    assert "Merged labels: 'Day' is 'day'." in done.output and "the same bytes again" in done.output
    again = check(photos / "clean.csv", *SMALL, "--json")
    assert again.exit_code == 0 and json.loads(again.output)["facts"]["classes"] == "day 16, night 16"
