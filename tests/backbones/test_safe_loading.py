"""Poisoned `.keras` files: refused before anything of them is made."""

import io
import json
import shutil
import zipfile

import h5py
import keras
import numpy as np
import pytest

import tlkeras
from tlkeras.backbones.keras_files import check_archive
from tlkeras.errors import BackboneError, RunError


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "model.keras"
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="relu")]).save(path)
    return path


def rewrite(archive, target, **members):
    """Copy an archive with other contents of some members, by name with dots for slashes as functions of the old."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, members.pop(name, lambda data: data)(old.read(name)))
        for name, make in members.items():
            new.writestr(name, make(b""))
    return target


def change_layer(**facts):
    def change(data):
        config = json.loads(data)
        config["config"]["layers"][-1] |= facts
        return json.dumps(config).encode()

    return {"config.json": change}


def change_weights(work):
    def change(data):
        file = io.BytesIO(data)
        with h5py.File(file, "r+") as root:
            work(root)
        return file.getvalue()

    return {"model.weights.h5": change}


def link_outside(root):
    root["x"] = h5py.ExternalLink("/etc/passwd", "/")


def store_outside(root):
    root.create_dataset("x", (4,), np.uint8, external=[("/etc/passwd", 0, 4)])


def claim_much(root):
    root.create_dataset("x", (10**9,), np.float64, chunks=(10**6,), compression="gzip")


POISONED = {
    "Lambda": (change_layer(class_name="Lambda"), "a layer Lambda, which runs code"),
    "TFSMLayer": (change_layer(class_name="TFSMLayer"), "a layer TFSMLayer, which runs code"),
    "another module": (change_layer(module="os", class_name="system"), "'system' of the module 'os'"),
    "module that begins alike": (change_layer(module="keras_evil"), "of the module 'keras_evil'"),
    "external link": (change_weights(link_outside), "ExternalLink"),
    "external storage": (change_weights(store_outside), "whose data lie in other files"),
    "shape bomb": (change_weights(claim_much), "arrays of 8,000,000"),
    "traversal": ({"../evil": lambda data: b"x"}, "a member '../evil'"),
    "assets outside": ({"assets/../../evil": lambda data: b"x"}, "a member 'assets/../../evil'"),
    "pickle": ({"model.pkl": lambda data: b"x"}, "a member 'model.pkl'"),
}


@pytest.mark.parametrize("poison", POISONED)
def test_poison_is_refused(archive, tmp_path, poison):
    members, received = POISONED[poison]
    with pytest.raises(BackboneError) as caught:
        check_archive(rewrite(archive, tmp_path / "model.keras", **members))
    assert received in str(caught.value)


def test_what_keras_writes_is_not(archive):
    check_archive(archive)


@pytest.mark.parametrize("poison", ["Lambda", "TFSMLayer", "external link"])
def test_commands_refuse_a_run_with_a_poisoned_model(trained, tmp_path, poison):
    run = tmp_path / "run-01"
    shutil.copytree(trained, run)
    members, received = POISONED[poison]
    rewrite(trained / "model.keras", run / "model.keras", **members)
    for work in (
        lambda: tlkeras.export(str(run), tmp_path / "models"),
        lambda: tlkeras.predict(str(run), [run / "samples"]),
    ):
        with pytest.raises(RunError, match="model is not safe to load") as caught:
            work()
        assert received in str(caught.value)
    assert not (tmp_path / "models").exists()
