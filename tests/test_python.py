"""What a person writes in Python and in a notebook: data, runs, predictions, comparisons as objects."""

import json
import threading
from pathlib import Path

import keras
import numpy as np
import pandas
import pytest
import tensorflow as tf
from PIL import Image

import tlkeras
from tlkeras.errors import DataError, RecipeError, RunError

PHOTO = "photos/day/0-000.png"
SMALL = {
    "backbone.name": "tiny",
    "backbone.weights": "none",
    "backbone.size": 32,
    "data.split_tolerance": 0,
    "evaluation.bootstrap_samples": 100,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, draw_more_photos):
    folder = tmp_path_factory.mktemp("notebook")
    draw_more_photos(folder / "photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def run(place):
    return tlkeras.train("photos", set={**SMALL, "data.test": 0.25})


@pytest.fixture
def digits():
    x = np.random.default_rng(0).integers(0, 256, (40, 16, 16), dtype=np.uint8)
    y = np.arange(40) % 4
    x[np.arange(40), :4, :4] = (y * 80)[:, None, None]
    return x, y


def test_a_folder_is_data(place):
    data = tlkeras.load_data("photos", test=0.5)
    assert (len(data), data.classes, data.counts) == (32, ["day", "night"], {"day": 16, "night": 16})
    assert repr(data) == "ImageData('photos', 32 images, 2 classes)"
    assert data.make_recipe().data.test == 0.5 and data.make_recipe().name == "photos"
    assert data.make_recipe("fine_tune").finetuning is not None
    assert data._repr_html_().count("<img") == 12
    with pytest.raises(RecipeError, match="data.tset"):
        tlkeras.load_data("photos", tset=0.5)
    with pytest.raises(DataError, match="photos"):
        tlkeras.load_data("photo")


def test_a_run_says_what_it_is(run):
    assert run.name == "photos-01" and repr(run) == "Run('runs/photos-01', finished)"
    assert run.classes == ["day", "night"] and run.recipe.data.source == "photos"
    accuracy = run.metrics["accuracy"]
    assert float(accuracy) == accuracy.value and accuracy.n == 8
    assert run.metrics.to_frame().loc["accuracy", "value"] == accuracy.value
    assert list(run.per_class.to_frame().index) == run.classes
    assert list(run.history.to_frame()) == ["C", "held_out_log_loss"]
    assert run.history.plot().png.startswith(b"\x89PNG")
    assert run.to_dict()["accuracy"] == accuracy.value
    assert run.evaluate().to_dict() == json.loads(json.dumps(run.evaluate().to_dict()))
    assert "n" not in run.evaluate().to_dict()["metrics"]["accuracy"]


def test_the_model_is_one_of_keras(run):
    outputs = run.model(np.zeros((3, 32, 32, 3), np.uint8)).numpy()
    assert isinstance(run.model, keras.Model) and outputs.shape == (3, 2)
    np.testing.assert_allclose(outputs.sum(axis=1), 1, rtol=1e-5)


def test_an_image_is_a_path_bytes_or_pixels(run):
    pixels = np.asarray(Image.open(PHOTO))
    answers = [run.predict(one) for one in (PHOTO, Path(PHOTO), Path(PHOTO).read_bytes(), Image.open(PHOTO), pixels)]
    assert {one.label for one in answers} == {"day"} and len({one.probability for one in answers}) == 1
    assert answers[0].path == PHOTO and answers[2].path == "image 1"
    assert list(answers[0].probabilities) == run.classes
    assert sum(answers[0].probabilities.values()) == pytest.approx(1)
    assert answers[0].probabilities["day"] == answers[0].probability
    assert "probabilities" not in answers[0].to_dict()


def test_several_images_are_a_table(run, tmp_path):
    pixels = np.stack([np.asarray(Image.open(PHOTO))] * 3)
    assert [one.label for one in run.predict(pixels).predictions] == ["day"] * 3
    assert [one.path for one in run.predict([PHOTO, pixels[0]]).predictions] == [PHOTO, "image 2"]
    (tmp_path / "text.png").write_text("no image")
    Image.open(PHOTO).save(tmp_path / "good.png")
    found = run.predict(tmp_path)
    frame = found.to_frame()
    assert list(frame) == ["path", "label", "probability", "p_day", "p_night", "reason"]
    assert frame["label"].tolist()[0] == "day" and "text" in frame["reason"].tolist()[1]
    assert found.count_labels() == {"day": 1} and "cannot be read" in found._repr_html_()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("https://example.org/cat.jpg", "not fetched"),
        (np.full((8, 8, 3), 0.5), "float64"),
        (np.zeros((2, 8, 8, 5), np.uint8), "image 2"),
        (b"", "empty"),
        (b"no image at all", "not an image"),
        ({"a": 1}, "An image is"),
        ("nowhere.png", "nowhere.png"),
        ([], "No image"),
    ],
)
def test_what_is_no_image_is_named(run, image, message):
    with pytest.raises(DataError, match=message):
        run.predict(image)


def test_a_predictor_serves_threads(run):
    predictor, answers = run.predictor(), []
    paths = [str(path) for path in sorted(Path("photos").rglob("*.png"))[:8]]
    expected = {path: predictor.predict(path).label for path in paths}
    threads = [threading.Thread(target=lambda path=path: answers.append(predictor.predict(path))) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {one.path: one.label for one in answers} == expected
    assert predictor is run.predictor()


def test_mistakes_are_looked_into(run):
    assert run.confusion().to_frame().to_numpy().sum() == 8
    assert len(run.top_losses(3)) <= 3 and run.top_losses(3)._repr_html_()
    assert run.explain(PHOTO).png.startswith(b"\x89PNG")
    with pytest.raises(RunError, match="Did you mean 'day'"):
        run.explain(PHOTO, "dya")
    with pytest.raises(DataError, match="One image is explained at a time. Received: 2 images"):
        run.explain([PHOTO, PHOTO])
    with pytest.raises(RunError, match="grad_cam"):
        run.explain(PHOTO, method="lime")


def test_top_losses_show_images(run, monkeypatch):
    """A run whose predictions are turned around is wrong about every image."""
    stored = run.read_arrays("predictions.npz")
    turned = {**stored, "probabilities": stored["probabilities"][:, ::-1]}
    monkeypatch.setattr(type(run), "read_arrays", lambda self, name: turned)
    losses = tlkeras.find_top_losses(run, 5)
    assert len(losses) == 5 and [one.loss for one in losses] == sorted((one.loss for one in losses), reverse=True)
    assert losses[0].pixels.shape == (32, 32, 3) and losses._repr_html_().count("<img") == 5
    assert list(losses.to_frame())[:3] == ["key", "label", "prediction"]
    assert tlkeras.count_confusions(run).to_frame().loc["day", "night"] == 4


def test_runs_are_compared_and_listed(run):
    other = tlkeras.train("photos", set={**SMALL, "data.test": 0.25, "head.kind": "centroid"}, name="other")
    compared = tlkeras.compare([run, other])
    assert compared.verdict.startswith("other-01 is not proved different from photos-01: accuracy ")
    assert compared.verdict.endswith(" on 8 images.") and "photos-01" in compared._repr_html_()
    listed = tlkeras.list_runs()
    assert {"photos-01", "other-01"} <= set(listed.to_frame()["name"]) and listed._repr_html_()
    assert tlkeras.open_run("other-01") == other


def test_every_object_is_a_card(run):
    cards = [run, run.metrics, run.per_class, run.history, run.confusion(), run.evaluate(), run.predict(PHOTO)]
    for one in [*cards, tlkeras.check("photos", SMALL)]:
        html = one._repr_html_()
        assert html.startswith("<") and "<script" not in html
        assert len(repr(one)) < 4000


def test_names_are_escaped(place, draw_more_photos):
    draw_more_photos(place / "odd")
    (place / "odd/day").rename(place / "odd/<b>day & night")
    html = tlkeras.load_data("odd")._repr_html_()
    assert "&lt;b&gt;day &amp; night" in html and "<b>day" not in html


def test_arrays_are_kept_as_files(place, digits):
    x, y = digits
    data = tlkeras.load_data((x, y), class_names=["a", "b", "c", "d"], name="squares")
    assert data.counts == dict.fromkeys("abcd", 10)
    np.testing.assert_array_equal(np.asarray(Image.open(data.table.paths[7])), x[7])
    trained = tlkeras.train(data, set={**SMALL, "data.test": 0.4})
    assert trained.name == "squares-01" and trained.classes == list("abcd")
    assert tlkeras.open_run("squares-01").predict(x[0]).label in "abcd"
    again = tlkeras.load_data((x[::-1], y[::-1]), class_names=["a", "b", "c", "d"])
    assert again.source == data.source  # whatever the order


def test_data_sets_of_tensorflow(place, digits):
    x, y = digits
    colour = np.repeat(x[..., None], 3, axis=3)
    single = tf.data.Dataset.from_tensor_slices((colour, y))
    assert tlkeras.load_data(single).source == tlkeras.load_data(single.shuffle(40).batch(7)).source
    parts = tlkeras.load_data({"train": single.take(30), "test": (colour[30:], y[30:])})
    assert parts.table.columns["split"] == ["train"] * 30 + ["test"] * 10
    dark = tf.data.Dataset.from_tensor_slices((np.zeros((2, 8, 8, 3), np.float32), [0, 1]))
    assert len(tlkeras.load_data(dark)) == 2
    named = keras.utils.image_dataset_from_directory("photos", image_size=(32, 32), verbose=0)
    assert tlkeras.load_data(named).classes == ["day", "night"]
    with pytest.raises(DataError, match="repeat"):
        tlkeras.load_data(single.repeat())
    with pytest.raises(DataError, match=r"pairs \(image, label\)"):
        tlkeras.load_data(tf.data.Dataset.range(3))


def test_labels_of_arrays(place, digits):
    x, y = digits
    assert tlkeras.load_data((x, np.eye(4)[y])).counts == {str(of): 10 for of in range(4)}  # one-hot
    several = np.eye(4, dtype=int)[y]
    several[0, :3] = 1
    data = tlkeras.load_data((x, several))
    assert data.overrides["data.separator"] == "|" and data.counts == {"0": 10, "1": 11, "2": 11, "3": 10}
    assert tlkeras.load_data((x, np.array(["cat", "dog"] * 20))).classes == ["cat", "dog"]
    for labels, message in ((y[:9], "40 and 9"), (y + 0.5, "integers from 0"), (y + 3, "class_names")):
        with pytest.raises(DataError, match=message):
            tlkeras.load_data((x, labels), class_names=["a", "b", "c", "d"])
    with pytest.raises(DataError, match="astype"):
        tlkeras.load_data((x / 255, y))
    with pytest.raises(RecipeError, match="int"):
        tlkeras.load_data(3)
    with pytest.raises(RecipeError, match="Received: tuple. Of images in memory: tlkeras.load_data"):
        tlkeras.check((np.zeros((2, 8, 8, 3), np.uint8), [0, 1]))


def test_callbacks_see_the_fine_tuning(place, digits):
    class Record(keras.callbacks.Callback):
        logs = ()

        def on_epoch_end(self, epoch, logs=None):
            self.logs = (*self.logs, logs)

    seen, data = Record(), tlkeras.load_data(digits)
    stages = [{"name": "all", "unfreeze": 1, "epochs": 2}]
    chosen = {**SMALL, "data.validation": 0.2, "data.test": 0.2, "finetuning.stages": stages}
    tuned = tlkeras.train(data, "fine_tune", set=chosen, callbacks=[seen])
    assert [log["loss"] for log in seen.logs] == pytest.approx(tuned.history["loss"])
    assert list(tuned.history.to_frame()["epoch"]) == [1, 2] and tuned.history.plot().png
    with pytest.raises(RecipeError, match="only fits a head"):
        tlkeras.train(data, set=SMALL, callbacks=[seen])


def test_a_check_is_mended(place, draw_more_photos):
    folder = draw_more_photos(place / "copied")
    (folder / "day/copy.png").write_bytes((folder / "night/0-000.png").read_bytes())
    (folder / "day/broken.png").write_bytes(b"broken")
    found = tlkeras.load_data("copied").check(overrides=SMALL)
    assert any("different labels" in problem for problem in found.problems)
    assert isinstance(found.label_issues.to_frame(), pandas.DataFrame)
    fixed = found.fix()
    assert len(fixed) == 31 and Path(fixed.source) == folder / "cleaned.csv"
    assert found.problems and not any(
        "different labels" in problem for problem in fixed.check(overrides=SMALL).problems
    )
    assert len(found.fix()) == 31 and (folder / "cleaned-2.csv").exists()


def test_a_run_is_exported_and_served(run, tmp_path):
    urllib = pytest.importorskip("urllib.request")
    exported = run.export(tmp_path / "models")
    assert exported.to_dict()["version"] == 1
    server = run.serve(tmp_path / "models", block=False)
    try:
        assert urllib.urlopen(f"{server.url}/v1/models/models").status == 200 and server.url in server._repr_html_()
    finally:
        server.stop()
    assert Path(run.report(images=0, corrupted=0).path) == run.path / "report.html"


def test_pandas_is_asked_for_by_name(run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(tlkeras.errors.MissingExtraError, match=r'pip install "tlkeras\[pandas\]"'):
        run.metrics.to_frame()
