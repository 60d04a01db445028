"""The page of a report: whole, escaped, without network, readable in a browser, and honest about what is gone."""

import html.parser
import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

import tlkeras
from tlkeras.cli.main import main
from tlkeras.data.tasks import Task, make_task
from tlkeras.errors import ResourceError, RunError
from tlkeras.evaluation.calibration import evaluate_calibration
from tlkeras.evaluation.errors import (
    SimilarImage,
    confusion_matrix,
    count_label_mistakes,
    label_issues,
    most_confused,
    top_losses,
)
from tlkeras.evaluation.evaluate import EvaluationResult, evaluate_predictions
from tlkeras.evaluation.intervals import Estimate
from tlkeras.evaluation.metric_names import explain_missing
from tlkeras.evaluation.other_data import StoredEvaluation
from tlkeras.evaluation.report.compute import ClassificationReport, Report, ReportOptions, compute_report
from tlkeras.evaluation.report.page import render_report
from tlkeras.evaluation.report.summaries import format_interval
from tlkeras.evaluation.run_data import Reproducibility
from tlkeras.evaluation.selective import conformal_label_sets, evaluate_selective
from tlkeras.exporting import versions
from tlkeras.runs.directory import Run
from tlkeras.runs.predictions import Predictions

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
EVIL = "<script>alert('x')</script>\"&$5"
VOID = {"meta", "img", "br", "link", "input", "hr", "path", "use", "stop", "rect", "image"}


class Outline(html.parser.HTMLParser):
    """What a page is made of; fails where tags are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.links, self.addresses, self.images, self.scripts = [], [], [], [], [], 0
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.scripts += tag == "script"
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values["href"][1:]] if tag == "a" else []
        self.addresses += [values[key] for key in ("src", "xlink:href") if key in values]
        self.images += [values] if tag == "img" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_page(text):
    outline = Outline(text)
    assert outline.scripts == 0
    assert len(set(outline.ids)) == len(outline.ids)
    assert set(outline.links) <= set(outline.ids)
    assert all(address.startswith(("data:image/", "#")) for address in outline.addresses)
    assert not re.search(r"url\((?!#)|@import|<link", text)
    assert all(image["alt"] is not None for image in outline.images)
    return outline


@pytest.fixture(scope="module")
def reported(trained, tmp_path_factory):
    """A run in a folder of its own with one wrong prediction, and its page."""
    folder = tmp_path_factory.mktemp("reported")
    shutil.copytree(trained, folder / "runs/mine-01")
    run = Run(folder / "runs/mine-01")
    stored = run.read_arrays("predictions.npz")
    stored["probabilities"][0] = [0.02, 0.98] if stored["targets"][0] == 0 else [0.98, 0.02]
    run.write_arrays("predictions.npz", **stored)
    run.update_manifest(cwd=str(trained.parent.parent))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained.parent.parent)
        tlkeras.evaluate_on(str(run.path), "photos")
    options = {"corrupted": 8, "learning_curve": True, "conformal": 0.2}
    result = tlkeras.report([str(run.path)], options=options)
    return run, result


def test_page_is_whole_and_needs_nothing(reported):
    run, result = reported
    assert result.path == str(run.path / "report.html") and result.notes == []
    text = (run.path / "report.html").read_text()
    outline = check_page(text)
    for title in (
        "Metrics",
        "Would more images help?",
        "Calibration",
        "Top losses",
        "Robustness",
        "Other images",
        "24 of them were trained on: these metrics are too good.",
        "Reproducing mine-01",
    ):
        assert title in text, title
    assert len(outline.images) >= 5  # the mistake, its attribution map, three neighbours
    assert f"tlkeras train {run.path / 'recipe.yaml'}" in text
    assert run.manifest["fingerprint"] in text
    assert "licence of images</dt><dd>not recorded" in text


def test_what_was_computed_is_kept(reported):
    run, _ = reported
    kept = json.loads((run.path / "report.json").read_text())
    task = kept["tasks"]["label"]
    (loss,) = task["top_losses"]
    assert loss["probability"] == pytest.approx(0.98)
    assert len(loss["nearest"]) == 3 and all(near["cosine"] <= 1.001 for near in loss["nearest"])
    assert {near["label"] for near in loss["nearest"]} == {loss["label"]}
    assert task["robustness"]["images"] == 8 and len(task["robustness"]["corruptions"]) == 5
    assert task["attribution"]["layer"] == "block3_out"
    assert task["unseen"] == "training" and task["prediction_sets"]["alpha"] == 0.2
    assert task["learning_curve"]["images"][-1] == 24
    assert kept["reproducibility"]["environment"]["python"] and kept["reproducibility"]["phases"]
    assert kept["other_data"][0]["source"] == "photos" and kept["other_data"][0]["labels"]["day"]["examples"] == 16


def test_only_own_pages_are_replaced(reported, tmp_path):
    run, _ = reported
    precious = tmp_path / "thesis.html"
    precious.write_text("mine")
    with pytest.raises(ResourceError, match="not a page of tlkeras"):
        tlkeras.report([str(run.path)], precious)
    assert precious.read_text() == "mine"
    with pytest.raises(RunError, match="given twice"):
        tlkeras.report([str(run.path), str(run.path)], tmp_path / "x.html")


def test_missing_images_are_noted(reported, tmp_path):
    shutil.copytree(reported[0].path, tmp_path / "mine-01")
    run = Run(tmp_path / "mine-01")
    run.update_manifest(cwd=str(tmp_path))
    report = compute_report(run, ReportOptions(corrupted=8, learning_curve=True))
    assert "cannot be read any more" in report.notes[0]
    assert report.images == {} and report.tasks["label"].top_losses[0].key
    check_page(render_report([report]))


def test_several_runs_are_compared(reported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine-01", "mine-02"):
        shutil.copytree(reported[0].path, tmp_path / "runs" / name)
    done = CliRunner().invoke(
        main, ["--quiet", "report", "mine-01", "mine-02", "--to", "both.html", "--corrupted", "0", "--images", "0"]
    )
    assert done.exit_code == 0, done.output
    assert "both.html" in done.output
    text = (tmp_path / "both.html").read_text()
    check_page(text)
    assert "mine-02 against mine-01" in text and "no clear difference" in text


def test_wrong_options_are_named_at_once(reported):
    with pytest.raises(RunError, match=r"(?s)Invalid options.*conformal is not between.*unknown method"):
        compute_report(reported[0], ReportOptions(conformal=2.0, method="gradcam"))


def make_report(classes, count, several=False, seed=0):
    """A report on generated predictions, without a run."""
    random = np.random.default_rng(seed)
    names = (*(f"class {number:03d}" for number in range(classes - 1)), EVIL)
    if several:
        task = make_task("label", names, "|")
        targets = (random.random((count, classes)) < 0.3).astype(np.int8)
        p = np.clip(targets * 0.4 + random.random((count, classes)) * 0.6, 0, 1)
    else:
        task, targets = Task("label", names), random.integers(0, classes, count)
        logits = random.normal(0, 1, (count, classes)) + 5 * np.eye(classes)[targets]
        logits += 3.5 * np.eye(classes)[targets // 2 * 2]  # neighbours are confused
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    keys = np.array([f"{EVIL}/{row}.png" for row in range(count)])
    domain = np.where(np.arange(count) % 3, "lab", EVIL)
    predictions = Predictions(task, keys, targets, p, np.ones(count), np.full(classes, 1 / classes), {"domain": domain})
    evaluation = evaluate_predictions(predictions, None, predictions, resamples=100)
    losses = top_losses(predictions)
    computed = ClassificationReport(
        gain_over_probe=None,
        calibration=evaluate_calibration(predictions, predictions),
        unseen="validation",
        top_losses=losses,
        label_issues=label_issues(predictions),
        training_label_issues=[],
        confusions=None if several else confusion_matrix(predictions),
        confused=most_confused(predictions),
        label_mistakes=count_label_mistakes(predictions) if several else [],
        risk_coverage=evaluate_selective(predictions, predictions),
        label_sets=conformal_label_sets(predictions, predictions, 0.1) if several else (),
    )
    environment = {"python": "3", "platform": "", "cores": 2, "versions": {}}
    made = Reproducibility(
        created="", finished="", resumed=0, command=EVIL, recipe=EVIL, source=EVIL, examples={}, rejected=0,
        fingerprint="", parameters=None, phases={}, memory={}, features={}, head={"kind": EVIL}, finetuning=None,
        history=[], environment=environment, data={"address": EVIL}, licences={},
    )  # fmt: skip
    stored = {"source": EVIL, "examples": {"test": count}, "rejected": 1, "trained_on": 0}
    facts = {"path": "", "phases": {}, "features": {}, "head": {}, "rejected": 0}
    return Report(
        run=EVIL,
        evaluation=EvaluationResult(EVIL, {"label": evaluation}, {}, **facts),
        tasks={"label": computed},
        other_data=[StoredEvaluation(stored, {"label": evaluation.metrics})],
        reproducibility=made,
        notes=[EVIL],
        images={loss.key: np.full((64, 64, 3), 99, np.uint8) for loss in losses},
        maps={("label", loss.key): np.full((64, 64), 0.5, np.float32) for loss in losses},
    )


@pytest.mark.parametrize(
    ("classes", "several"), [(2, False), (3, True), (100, False), pytest.param(1000, False, marks=pytest.mark.slow)]
)
def test_any_number_of_classes_with_names_of_any_kind(classes, several):
    text = render_report([make_report(classes, min(40 * classes, 1500), several)])
    check_page(text)
    assert EVIL not in text and "&lt;script&gt;" in text
    assert len(text) < 3_000_000


def test_the_probability_of_a_wrong_set_is_that_of_the_wrong_label():
    """Next to the whole set it would be taken for that of the set."""
    report = make_report(3, 60, several=True)
    task = report.tasks["label"]
    first = task.top_losses[0]
    nearest = [SimilarImage(first.key, "", 0.5)]
    loss = replace(first, prediction="", label="class 001", class_index=1, probability=0.125, nearest=nearest)
    report = replace(report, tasks={"label": replace(task, top_losses=[loss])})
    words = " ".join(re.sub(r"<[^>]+>", " ", render_report([report])).split())
    assert "(none) , but it is class 001 class 001 0.12" in words
    assert "(none) 0.50" in words


def take_shot(page, target, *options):
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
            f"--user-data-dir={target.parent / 'profile'}", *options, page.as_uri(),
        ],
        capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    return done.stderr.decode("utf-8", "replace")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_browser_shows_it_light_dark_and_printed(reported, tmp_path):
    from PIL import Image

    page = reported[0].path / "report.html"
    corners = {}
    for scheme, number in (("dark", 0), ("light", 1)):
        target = tmp_path / f"{scheme}.png"
        options = (f"--blink-settings=preferredColorScheme={number}", "--window-size=1250,3000")
        errors = take_shot(page, target, f"--screenshot={target}", *options)
        assert "Uncaught" not in errors
        image = np.asarray(Image.open(target).convert("L"))
        corners[scheme] = int(image[5, 5])
        assert image.std() > 5  # something is drawn
    assert corners["dark"] < 60 and corners["light"] > 240
    printed = tmp_path / "page.pdf"
    take_shot(page, printed, f"--print-to-pdf={printed}")
    assert printed.read_bytes().startswith(b"%PDF") and printed.stat().st_size > 20_000


def test_a_missing_interval_is_a_dash_with_its_reason():
    missing = Estimate(0.5, np.nan, np.nan, "4 groups are too few to be resampled")
    assert format_interval(missing) == "-" and format_interval(Estimate(0.5, 0.25, 0.75)) == "0.2500 to 0.7500"
    found = explain_missing({"roc_auc": missing, "macro_f1": missing, "accuracy": Estimate(0.5, 0.25, 0.75)})
    assert found == ["No interval of ROC AUC, macro F1: 4 groups are too few to be resampled."]
    card = versions._format_interval
    assert card(None, None) == card(np.nan, np.nan) == "-" and card(0.25, 0.75) == "0.2500 to 0.7500"
