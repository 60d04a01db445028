"""The command line: commands, their JSON, and the sentence and exit code of every failure."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner

from tlkeras.cli.main import main
from tlkeras.cli.tables.runs import print_predictions
from tlkeras.config.recipe import load_recipe
from tlkeras.inference.results import ImagePrediction, PredictionResult, TaskPrediction


@pytest.fixture
def call():
    def _call(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return _call


@pytest.fixture
def in_trained(trained, monkeypatch):
    """The current folder holds the shared finished run."""
    monkeypatch.chdir(trained.parent.parent)
    return trained.parent.parent


def test_importing_is_light():
    code = "import sys, tlkeras, tlkeras.cli.main; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"tensorflow", "keras", "sklearn", "numpy", "rich"} & set(done.stdout.split())


def test_evaluate_json(in_trained, call):
    done = call("evaluate", "latest", "--json")
    assert done.exit_code == 0
    result = json.loads(done.stdout)
    assert {"accuracy", "balanced_accuracy", "macro_f1", "roc_auc", "log_loss"} <= set(result["metrics"])
    for figure in result["metrics"].values():
        if figure["low"] is None:
            assert figure["reason"]
        else:
            assert figure["low"] <= figure["value"] <= figure["high"]


def test_train_prints_table_and_next_steps(workplace, call):
    done = call("--quiet", "train", "mine.yaml", "--set", "head.C=0.1")
    assert done.exit_code == 0, done.output
    for text in (
        "mine-01: 8 held-out images, 2 classes",
        "balanced accuracy",
        "majority baseline",
        "fit head",
        "Features: ",
        "Run: runs/mine-01",
        "tlkeras predict mine-01",
    ):
        assert text in done.stdout


def test_train_shows_progress(workplace, call):
    done = call("train", "mine.yaml", "--set", "cache.root=fresh", "--set", "head.C=0.1", "--json")
    assert done.exit_code == 0
    assert "Extracting features" in done.stderr
    assert "images/s" in done.stderr
    assert json.loads(done.stdout)["run"] == "mine-01"


def test_predict(in_trained, call, tmp_path):
    image = next((in_trained / "photos/day").iterdir())
    done = call("--quiet", "predict", "latest", image)
    assert done.exit_code == 0
    assert "day" in done.stdout
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    done = call("--quiet", "predict", "latest", image, bad, "--json")
    assert done.exit_code == 3
    result = json.loads(done.stdout)
    assert [row["label"] for row in result["predictions"]] == ["day"]
    assert result["unreadable"][0]["path"].endswith("bad.png")
    assert "text" in result["unreadable"][0]["reason"]
    done = call("--quiet", "predict", "latest", in_trained / "photos", "--json")
    assert len(json.loads(done.stdout)["predictions"]) == 32


def test_check_lists_all_problems(workplace, call):
    done = call("--quiet", "check", "mine.yaml")
    assert done.exit_code == 0, done.output
    assert "No problems found" in done.stdout
    assert "of 32 images" in done.stdout
    done = call(
        "--quiet", "check", "mine.yaml", "--set", "data.source=nowhere", "--set", "backbone.weights=x.h5", "--json"
    )
    assert done.exit_code == 1
    problems = json.loads(done.stdout)["problems"]
    assert len(problems) == 2
    assert "nowhere" in problems[0] and "x.h5" in problems[1]
    assert not (workplace / "runs").exists()


def test_ls(in_trained, call):
    result = json.loads(call("ls", "--json").stdout)
    assert "quickstart" in [recipe["name"] for recipe in result["recipes"]]
    assert result["runs"][0]["name"] == "mine-01"
    assert "mine-01" in call("ls").stdout


def test_cp_never_overwrites(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    assert call("cp", "quickstart", "mine.yaml").exit_code == 0
    (tmp_path / "mine.yaml").write_text("precious")
    done = call("cp", "quickstart", "mine.yaml")
    assert done.exit_code == 2
    assert "never overwrites" in done.stderr
    assert (tmp_path / "mine.yaml").read_text() == "precious"


def test_backbones(call):
    entries = json.loads(call("backbones", "--json").stdout)
    assert len(entries) == 44
    small = json.loads(call("backbones", "--weights", "packaged", "--max-parameters", "4", "--json").stdout)
    assert [entry["name"] for entry in small] == ["efficientnet_lite0"]
    assert "efficientnet_lite0" in call("backbones").stdout
    blocks = json.loads(call("backbones", "show", "tiny", "--json").stdout)["blocks"]
    assert [block["index"] for block in blocks] == list(range(len(blocks)))
    assert "tiny" in call("backbones", "show", "tiny").stdout


def test_cache_is_listed_and_pruned(workplace, call, monkeypatch):
    monkeypatch.setenv("TLKERAS_CACHE", str(workplace / "cache"))
    assert call("--quiet", "train", "mine.yaml", "--set", "head.C=0.1").exit_code == 0
    (space,) = json.loads(call("cache", "ls", "--json").stdout)["spaces"]
    assert space["rows"] == 32
    assert "tiny" in call("cache", "ls").stdout
    assert call("cache", "prune").exit_code == 2
    assert len(json.loads(call("cache", "prune", "--unused-days", "1", "--json").stdout)["removed"]) == 0
    assert "Removed 1" in call("cache", "prune", "--max-gb", "0").stdout
    assert (workplace / "photos/day").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "quickstrt"], 2, "Did you mean 'quickstart'?"),
        (["train", "mine.yaml", "--set", "nonsense"], 2, "is not key=value"),
        (["train", "mine.yaml", "--set", "data.sorce=1"], 2, "Did you mean 'source'?"),
        (["train", "mine.yaml", "--set", "data.source=empty"], 3, "empty"),
        (["train", "mine.yaml", "--set", "data.source=one"], 3, "only one class"),
        (["train", "mine.yaml", "--set", "backbone.name=resnet51"], 4, "Did you mean 'resnet"),
        (["train", "mine.yaml", "--set", "backbone.size=1"], 4, "size"),
        (["train", "mine.yaml", "--set", "cache.budget_gb=1e-9", "--set", "cache.root=fresh"], 6, "budget"),
        (["evaluate"], 5, "tlkeras train quickstart"),
        (["export", "nothing-01"], 5, "nothing-01"),
        (["predict", "latest", "x.png"], 5, "finished run"),
        (["backbones", "show", "vgg61"], 4, "Did you mean 'vgg1"),
        (["trian"], 2, "Did you mean 'train'?"),
    ],
)
def test_failures_have_sentences_and_stable_codes(workplace, call, arguments, code, message):
    (workplace / "empty").mkdir()
    for folder in ("one/a", "single/a", "single/b"):
        (workplace / folder).mkdir(parents=True)
    image = next((workplace / "photos/day").iterdir()).read_bytes()
    for name in ("one/a/1.png", "one/a/2.png", "single/a/1.png", "single/a/2.png", "single/b/1.png"):
        (workplace / name).write_bytes(image)
    done = call("--quiet", *arguments)
    assert done.exit_code == code, done.output
    assert message in done.stderr
    assert "Traceback" not in done.output


def test_unexpected_errors_hide_the_traceback_unless_asked(workplace, call, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("tlkeras.training.train.train", fail)
    done = call("train", "mine.yaml")
    assert done.exit_code == 70
    assert "ZeroDivisionError: oh" in done.stderr and "--debug" in done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c(workplace, call, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("tlkeras.training.train.train", interrupt)
    done = call("train", "mine.yaml")
    assert done.exit_code == 130
    assert "Interrupted" in done.stderr


def test_predict_opens_no_pipe_unpacks_no_bomb_and_prints_any_name(in_trained, call, tmp_path):
    import os
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 16000, 16000, 8, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" * 100)), chunk(b"IEND", b"")]
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(parts)
    (tmp_path / "bomb.png").write_bytes(bomb)
    os.mkfifo(tmp_path / "pipe.png")
    image = next((in_trained / "photos/day").iterdir()).read_bytes()
    with open(os.fsencode(tmp_path) + b"/day-\xff.png", "wb") as file:
        file.write(image)
    done = call("--quiet", "predict", "latest", tmp_path)
    assert done.exit_code in (0, 3), done.output
    assert "xff" in done.stdout
    done = call("--quiet", "predict", "latest", tmp_path / "bomb.png", tmp_path / "pipe.png", "--json")
    assert done.exit_code == 3
    reasons = [row["reason"] for row in json.loads(done.stdout)["unreadable"]]
    assert "16000 x 16000" in reasons[0]
    assert "not a regular file" in reasons[1]


def test_one_damaged_run_does_not_block_the_list(workplace, trained, call):
    for name in ("mine-01", "mine-02"):
        shutil.copytree(trained, workplace / "runs" / name)
    (workplace / "runs/mine-01/manifest.json").write_text("{")
    states = {run["name"]: run["state"] for run in json.loads(call("ls", "--json").stdout)["runs"]}
    assert states == {"mine-01": "damaged", "mine-02": "finished"}
    assert call("evaluate").exit_code == 0


@pytest.mark.parametrize("recipe", ["quickstart", pytest.param("deep_head", marks=pytest.mark.slow), "linear_probe"])
def test_a_copied_recipe_trains_on_ones_own_class_folders(workplace, call, recipe):
    assert call("cp", recipe, "own.yaml").exit_code == 0
    values = ("data.source=photos/", "backbone.name=tiny", "backbone.weights=none")
    settings = [word for value in values for word in ("--set", value)]
    for verb in (["check"], ["train", "--quick"]):
        done = call("--quiet", *verb, "own.yaml", *settings)
        assert done.exit_code == 0, done.output


def test_predictions_of_a_number_alone_are_printed(capsys):
    image = ImagePrediction(
        path="a.png", label="3.2", value=3.2, tasks={"grade": TaskPrediction(label="3.2", value=3.2)}
    )
    print_predictions(PredictionResult("grades-01", None, (image,), ()))
    assert {"a.png", "3.2"} <= set(capsys.readouterr().out.replace("│", " ").split())


def test_help_lists_every_command_in_a_line():
    shown = CliRunner().invoke(main, ["--help"]).output
    for name, command in main.commands.items():
        assert len(command.short_help) < 60 and re.search(rf"^  {name} +{re.escape(command.short_help)}$", shown, re.M)
    assert all(len(line) <= 80 for line in shown.splitlines())


@pytest.mark.parametrize(
    ("word", "meant"),
    [("classify", "predict"), ("trian", "train"), ("runs", "ls"), ("init", "cp"), ("tflite", "export")],
)
def test_other_words_for_commands_are_understood(word, meant):
    done = CliRunner().invoke(main, [word])
    assert done.exit_code == 2 and f"Did you mean {meant!r}?" in done.output


def test_a_copied_recipe_has_its_images(workplace):
    done = CliRunner().invoke(main, ["cp", "fine_tune", "own.yaml", "--data", "a: b # c"])
    assert done.exit_code == 0 and load_recipe("own.yaml").data.source == "a: b # c"
    assert load_recipe("own.yaml", {"data.source": "elpv", "name": "fine_tune"}) == load_recipe("fine_tune")


def test_images_and_name_are_short_options(workplace):
    small = ["--set", "backbone.name=tiny", "--set", "backbone.weights=none", "--set", "data.split_tolerance=0"]
    done = CliRunner().invoke(main, ["train", "linear_probe", "--data", "photos/", "--name", "cats", *small])
    assert done.exit_code == 0 and "% right" in done.stdout.splitlines()[0]
    assert "tlkeras report cats-01" in done.output and "mean nothing" not in done.output
    done = CliRunner().invoke(main, ["train", "photos/", "--quick", *small])
    assert done.stdout.startswith("Shrunk by --quick: these figures mean nothing.")
    done = CliRunner().invoke(main, ["train", "photos/", *small])
    assert done.exit_code == 0 and "tlkeras report photos-01" in done.output
    done = CliRunner().invoke(main, ["train", "--resume", "latest", "--name", "x"])
    assert done.exit_code == 2 and "--name" in done.output


def test_runs_are_listed_with_what_they_are_of(workplace):
    small = ["--set", "backbone.name=tiny", "--set", "backbone.weights=none", "--set", "data.split_tolerance=0"]
    assert CliRunner().invoke(main, ["train", "photos/", *small]).exit_code == 0
    (run,) = json.loads(CliRunner().invoke(main, ["ls", "--json"]).stdout)["runs"]
    assert (run["source"], run["images"], run["classes"]) == ("photos/", 32, 2) and run["bytes"] > 10_000
    shown = CliRunner().invoke(main, ["ls"], env={"COLUMNS": "120"}).stdout
    assert re.search(r"photos-01 +│ photos/ +│ +32 │ +2 │", shown)
    (workplace / "runs/photos-01/manifest.json").write_text('{"state": "running", "process": 1}')
    assert "photos-01 (killed)" in CliRunner().invoke(main, ["ls"], env={"COLUMNS": "120"}).stdout


def test_runs_are_removed_when_one_says_so(workplace):
    for name in ("a-01", "a-02"):
        (workplace / "runs" / name).mkdir(parents=True)
        (workplace / "runs" / name / "manifest.json").write_text('{"state": "finished"}')
    assert CliRunner().invoke(main, ["rm", "a-01", "nowhere"]).exit_code == 5
    assert CliRunner().invoke(main, ["rm", "a-01"], input="n\n").exit_code == 1
    assert (workplace / "runs/a-01").is_dir()
    done = CliRunner().invoke(main, ["rm", "a-01", "--yes"])
    assert done.exit_code == 0 and "Removed a-01." in done.stdout and not (workplace / "runs/a-01").exists()
    done = CliRunner().invoke(main, ["mv", "a-02", "best"])
    assert done.exit_code == 0 and (workplace / "runs/best").is_dir()
