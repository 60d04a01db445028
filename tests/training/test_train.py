"""One run, from class folders to a directory that holds all."""

import csv
import json

import keras
import numpy as np
import pytest

import tlkeras
from tlkeras.data.decoding import decode_file
from tlkeras.errors import BackboneError, DataError, TlkerasError
from tlkeras.heads.linear import LinearHead


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_run_directory_holds_all(trained):
    names = {path.name for path in trained.iterdir()}
    assert {
        "manifest.json",
        "recipe.yaml",
        "environment.json",
        "classes.json",
        "splits.csv",
        "rejected.csv",
        "history.csv",
        "predictions.npz",
        "predictions.csv",
        "metrics.json",
        "samples",
        "samples.json",
        "model.keras",
        "log.txt",
    } <= names
    manifest = json.loads((trained / "manifest.json").read_text())
    assert manifest["state"] == "finished"
    assert manifest["examples"] == {"train": 24, "validation": 0, "test": 8}
    assert set(manifest["phases"]) >= {"load libraries", "check images", "extract features", "fit head", "write run"}


def test_bright_and_dark_are_told_apart(trained):
    metrics = json.loads((trained / "metrics.json").read_text())["metrics"]
    assert metrics["accuracy"]["value"] == 1.0
    assert set(metrics) >= {"accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "roc_auc", "average_precision"}


def test_saved_model_answers_as_the_predictions_say(trained):
    model = keras.models.load_model(trained / "model.keras")
    assert model.input.dtype == "uint8"
    probabilities = np.load(trained / "predictions.npz")["probabilities"]
    rows = read_rows(trained / "predictions.csv")
    images = np.stack(
        [decode_file(str(trained.parent.parent / "photos" / row["image"]), 32, "stretch") for row in rows]
    )
    np.testing.assert_allclose(model.predict(images, verbose=0), probabilities, atol=1e-4)
    names = json.loads((trained / "classes.json").read_text())["label"]
    assert [row["prediction"] for row in rows] == [names[index] for index in probabilities.argmax(1)]


def test_predictions_are_of_the_test_split_only(trained):
    splits = {row["image"]: row["split"] for row in read_rows(trained / "splits.csv")}
    assert {splits[row["image"]] for row in read_rows(trained / "predictions.csv")} == {"test"}


def test_nothing_is_computed_twice(workplace, draw_more_photos):
    overrides = {"cache.root": str(workplace / "cache")}
    first, second = (tlkeras.evaluate(tlkeras.train("mine.yaml", set=overrides)) for _ in range(2))
    assert (first.features["computed"], first.features["reused"]) == (32, 0)
    assert (second.features["computed"], second.features["reused"]) == (0, 32)
    assert second.metrics == first.metrics
    draw_more_photos(workplace / "photos", count=5, seed=1)
    third = tlkeras.evaluate(tlkeras.train("mine.yaml", set=overrides))
    assert (third.features["computed"], third.features["reused"]) == (10, 32)
    assert [first.run, second.run, third.run] == ["mine-01", "mine-02", "mine-03"]


def test_other_weights_are_not_confused(workplace):
    """Features of one set of weights are never taken for another's."""
    overrides = {"cache.root": str(workplace / "cache")}
    tlkeras.train("mine.yaml", set=overrides)
    from tlkeras.backbones.builder import build_backbone

    keras.utils.set_random_seed(99)
    build_backbone("tiny", weights="none").save_weights("other.weights.h5")
    other = tlkeras.evaluate(tlkeras.train("mine.yaml", set={**overrides, "backbone.weights": "other.weights.h5"}))
    assert other.features["computed"] == 32


def test_same_recipe_same_numbers(workplace):
    results = [
        tlkeras.evaluate(tlkeras.train("mine.yaml", set={"head.kind": "deep", "training.epochs": 3})) for _ in range(2)
    ]
    stored = [np.load(workplace / result.path / "predictions.npz")["probabilities"] for result in results]
    np.testing.assert_array_equal(*stored)


@pytest.mark.parametrize("cache", [True, False])
def test_bad_files_are_left_out_listed_and_counted(workplace, cache):
    (workplace / "photos/day/empty.png").touch()
    (workplace / "photos/day/text.jpg").write_text("not an image")
    whole = (workplace / "photos/night/0-000.png").read_bytes()
    (workplace / "photos/night/cut.png").write_bytes(whole[: len(whole) // 2])
    result = tlkeras.evaluate(tlkeras.train("mine.yaml", set={"features.cache": cache}))
    assert result.rejected == 3
    rows = {row["path"].rpartition("/")[2]: row for row in read_rows(workplace / result.path / "rejected.csv")}
    assert set(rows) == {"empty.png", "text.jpg", "cut.png"}
    assert rows["empty.png"]["code"] == "empty"
    assert rows["cut.png"]["code"] == "damaged"
    assert sum(result.examples.values()) == 32


def test_weights_reach_the_figures(workplace):
    lines = ["path,label,weight,split"]
    for number, path in enumerate(sorted((workplace / "photos").rglob("*.png"))):
        label = path.parent.name
        held_out = number % 4 == 0
        wrong = held_out and number < 8  # two test images carry a wrong label, and no weight
        other = {"day": "night", "night": "day"}[label]
        split = "test" if held_out else "train"
        lines.append(f"photos/{label}/{path.name},{other if wrong else label},{int(not wrong)},{split}")
    (workplace / "labels.csv").write_text("\n".join(lines))
    weighted = tlkeras.evaluate(tlkeras.train("mine.yaml", set={"data.source": "labels.csv"}))
    plain = tlkeras.evaluate(tlkeras.train("mine.yaml", set={"data.source": "labels.csv", "data.weight": ""}))
    assert weighted.metrics["accuracy"].value == 1.0
    assert plain.metrics["accuracy"].value == pytest.approx(6 / 8)


def test_failure_before_work_leaves_no_run(workplace):
    for overrides, error, message in [
        ({"data.source": "photso"}, DataError, "Did you mean 'photos"),
        ({"backbone.name": "tniy"}, BackboneError, "Did you mean 'tiny'"),
        ({"backbone.weights": "nowhere.h5"}, BackboneError, "nowhere.h5"),
        ({"data.label": "lable"}, DataError, "Did you mean 'label'"),
        ({"features.cut": "add_99"}, BackboneError, "cut"),
    ]:
        with pytest.raises(error, match=message):
            tlkeras.train("mine.yaml", set=overrides)
    assert not (workplace / "runs").exists()


def test_failure_in_work_is_kept(workplace, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(LinearHead, "fit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        tlkeras.train("mine.yaml")
    manifest = json.loads((workplace / "runs/mine-01/manifest.json").read_text())
    assert manifest["state"] == "interrupted"
    assert "extract features" in manifest["phases"]
    with pytest.raises(TlkerasError, match="has not finished: it is interrupted"):
        tlkeras.evaluate("mine-01")


@pytest.mark.slow
def test_any_cut_can_feed_the_head(workplace):
    from tlkeras.backbones.blocks import find_blocks
    from tlkeras.backbones.builder import build_backbone

    for block in find_blocks(build_backbone("tiny", weights="none")):
        result = tlkeras.evaluate(tlkeras.train("mine.yaml", set={"features.cut": block.cut.name, "head.C": 1.0}))
        assert result.metrics["accuracy"].value > 0.5


@pytest.mark.slow
def test_quickstart_reaches_what_it_promises(tmp_path):
    result = tlkeras.evaluate(tlkeras.train("quickstart", runs=tmp_path))
    assert result.examples == {"train": 1968, "validation": 0, "test": 656}
    assert result.metrics["roc_auc"].value > 0.88
    assert result.metrics["accuracy"].value > result.main.baseline["accuracy"].value


def write_bad_split(workplace):
    """A class that is tested and never trained."""
    for label in ("day", "night"):
        for split in ("train", "test"):
            target = workplace / "splits" / split / label
            target.mkdir(parents=True)
            for image in sorted((workplace / "photos" / label).iterdir())[:4]:
                (target / image.name).write_bytes(image.read_bytes())
    (workplace / "splits/train/night").rename(workplace / "splits/train/dusk")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.source": "splits"}, "no training image .* shows night"),
        ({"data.group": "label"}, "There is no test image|no training image"),
        ({"data.source": "weightless.csv"}, "no training image .* shows day, night"),
        ({"data.source": "nowhere", "backbone.name": "resnet51"}, "(?s)Several problems.*nowhere.*resnet51"),
    ],
)
def test_splits_that_cannot_work_are_refused_before_work(workplace, overrides, message):
    write_bad_split(workplace)
    lines = ["path,label,weight,split"]
    for number, path in enumerate(sorted((workplace / "photos").rglob("*.png"))):
        split = "test" if number % 4 == 0 else "train"
        lines.append(f"photos/{path.parent.name}/{path.name},{path.parent.name},{int(split == 'test')},{split}")
    (workplace / "weightless.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match=message):
        tlkeras.train("mine.yaml", set=overrides)
    assert tlkeras.check("mine.yaml", overrides).problems
    assert not (workplace / "runs").exists()


def test_class_whose_training_images_cannot_be_decoded_is_told(workplace):
    """Their headers are whole, so only the extraction finds out; no model of another class may come of it."""
    write_bad_split(workplace)
    (workplace / "splits/train/dusk").rename(workplace / "splits/train/night")
    for path in (workplace / "splits/train/night").iterdir():
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="no training image .* shows night"):
        tlkeras.train("mine.yaml", set={"data.source": "splits"})
    assert json.loads((workplace / "runs/mine-01/manifest.json").read_text())["state"] == "failed"


def test_images_without_a_label_are_left_out(workplace):
    lines = ["path,label"]
    for number, path in enumerate(sorted((workplace / "photos").rglob("*.png"))):
        lines.append(f"photos/{path.parent.name}/{path.name},{path.parent.name if number % 5 else ''}")
    (workplace / "labels.csv").write_text("\n".join(lines))
    result = tlkeras.evaluate(tlkeras.train("mine.yaml", set={"data.source": "labels.csv"}))
    assert result.rejected == 7
    rows = read_rows(workplace / result.path / "rejected.csv")
    assert {row["code"] for row in rows} == {"no-label"}
    assert len(read_rows(workplace / result.path / "splits.csv")) == 25


def test_history_has_a_row_per_step(workplace):
    linear = tlkeras.evaluate(tlkeras.train("mine.yaml"))
    assert {"C", "held_out_log_loss"} == set(read_rows(workplace / linear.path / "history.csv")[0])
    deep = tlkeras.evaluate(tlkeras.train("mine.yaml", set={"head.kind": "deep", "training.epochs": 3}))
    rows = read_rows(workplace / deep.path / "history.csv")
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert {"loss", "val_loss"} <= set(rows[0])


@pytest.mark.slow
def test_cut_by_name_and_by_number_share_the_cache(workplace):
    overrides = {"cache.root": str(workplace / "cache")}
    tlkeras.train("mine.yaml", set=overrides)
    assert tlkeras.evaluate(tlkeras.train("mine.yaml", set={**overrides, "features.cut": -1})).features["computed"] == 0
