"""One run: pictures, cached features, a fitted head, and all that later stages need, in one directory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from tlkeras import assembly
from tlkeras.data.checks import inspect
from tlkeras.data.headers import Finding, printable, read_picture
from tlkeras.data.sources import Examples
from tlkeras.data.splits import check_sides
from tlkeras.errors import ResourceError, TlkerasError
from tlkeras.features.extraction import Features
from tlkeras.mapping.heads import Head, join
from tlkeras.recipe import Recipe, dump_recipe, fingerprint
from tlkeras.runs import Run, create_run, logging_to

SAMPLES = 16


@dataclass(frozen=True)
class Side:
    """The pictures of one side, ready for a head.

    Attributes:
        rows: Positions among the examples, int64 [n].
        X: Features, float [n, d].
        y: Class indices, int64 [n].
        weights: float32 [n].
    """

    rows: np.ndarray
    X: np.ndarray
    y: np.ndarray
    weights: np.ndarray

    def as_tuple(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return features, classes and weights."""
        return self.X, self.y, self.weights


def train(recipe: Recipe, root: Path) -> Run:
    """Carry out a recipe into a new run directory below `root`.

    What can be known before the first batch (unreadable source, unknown column, too few pictures, missing weights)
    is raised before the directory is made.

    Raises:
        TlkerasError: What is in the way, in the user's words.
    """
    start = time.perf_counter()
    examples, prefix = _prepare(recipe)
    run = create_run(root, recipe.name)
    run.phases["build backbone"] = round(time.perf_counter() - start, 3)
    with run.locked(), logging_to(run):
        try:
            _carry_out(recipe, run, examples, prefix)
        except BaseException as error:
            state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with contextlib.suppress(ResourceError):  # a full disk must not hide what went wrong first
                run.update_manifest(state=state, phases=run.phases, error=f"{type(error).__name__}: {error}")
            raise
    return run


def _prepare(recipe: Recipe) -> tuple[Examples, keras.Model]:
    """Do what can fail before work starts, and raise what is wrong with all of it at once."""
    problems: list[TlkerasError] = []
    with _collecting(problems):
        examples = assembly.read_examples(recipe)
        assembly.divide(recipe, examples)
    with _collecting(problems):
        prefix = assembly.build_prefix(recipe)
    if len(problems) > 1:
        raise type(problems[0]).from_problems("Several things are in the way:", [str(error) for error in problems])
    if problems:
        raise problems[0]
    return examples, prefix


@contextlib.contextmanager
def _collecting(problems: list[TlkerasError]) -> Iterator[None]:
    try:
        yield
    except TlkerasError as error:
        problems.append(error)


def _carry_out(recipe: Recipe, run: Run, examples: Examples, prefix: keras.Model) -> None:
    run.write_text("recipe.yaml", dump_recipe(recipe))
    with run.phase("check pictures"):
        inspection = inspect(examples)
        examples = inspection.examples
        sides = assembly.divide(recipe, examples)
    with run.phase("extract features"):
        features = assembly.extract_features(recipe, prefix, inspection)
    kept = np.isin(np.arange(len(examples)), features.kept)
    check_sides(examples, np.where(kept, sides, ""))
    with features, run.phase("fit head"):
        parts = {name: _take_side(examples, features, sides == name) for name in ("train", "validation", "test")}
        head = _fit(assembly.make_recipe_head(recipe), examples, parts["train"], parts["validation"])
    with run.phase("write run"):
        with run.replacing("model.keras") as aside:
            join(prefix, head, recipe.name).save(aside)
        _write_pictures(run, examples, sides, [*inspection.rejected, *features.rejected])
        _write_predictions(run, examples, parts, head)
        history = head.history()
        run.write_table("history.csv", list(history), zip(*history.values(), strict=True))
        run.update_manifest(
            recipe=fingerprint(recipe),
            picture=assembly.picture_facts(recipe),
            features={"engine": features.engine, "computed": features.computed, "reused": features.reused},
            head=head.describe(),
            examples={name: len(part.rows) for name, part in parts.items()},
            rejected=len(inspection.rejected) + len(features.rejected),
            data=dict(examples.facts),
        )
    run.finish()


def _take_side(examples: Examples, features: Features, wanted: np.ndarray) -> Side:
    """Read one side's features from the store; pictures without features are left out."""
    places = np.flatnonzero(wanted[features.kept])
    rows = features.kept[places]
    (task,) = examples.tasks
    (output,) = features.outputs
    return Side(rows, output[places], examples.targets[task.name][rows], examples.weights[rows])


def _fit(head: Head, examples: Examples, train: Side, validation: Side) -> Head:
    groups = examples.groups[train.rows]
    return head.fit(
        train.X,
        train.y,
        train.weights,
        validation=validation.as_tuple() if len(validation.rows) else None,
        groups=groups if (groups != "").any() else None,
    )


def _write_pictures(run: Run, examples: Examples, sides: np.ndarray, rejected: Sequence[Finding]) -> None:
    (task,) = examples.tasks
    labels = np.array(task.class_names, dtype=object)[examples.targets[task.name]]
    keys = [printable(key) for key in examples.keys]
    run.write_json("classes.json", {task.name: list(task.class_names)})
    run.write_table(
        "splits.csv",
        ("picture", "side", "label", "weight", "group"),
        zip(keys, sides, labels, examples.weights.tolist(), examples.groups, strict=True),
    )
    run.write_table(
        "rejected.csv", ("path", "code", "reason"), [(printable(bad.path), bad.code, bad.reason) for bad in rejected]
    )


def _write_predictions(run: Run, examples: Examples, parts: dict[str, Side], head: Head) -> None:
    """Keep the head's answers on the held-out pictures, and a few of these pictures themselves."""
    (task,) = examples.tasks
    test, train = parts["test"], parts["train"]
    probabilities = np.asarray(head.predict_proba(test.X), dtype=np.float32)
    prior = np.bincount(train.y, weights=train.weights, minlength=len(task.class_names)) / train.weights.sum()
    run.write_arrays("predictions.npz", targets=test.y, probabilities=probabilities, weights=test.weights, prior=prior)
    names, keys = task.class_names, [printable(key) for key in examples.keys[test.rows]]
    answers = probabilities.argmax(axis=1)
    run.write_table(
        "predictions.csv",
        ("picture", "label", "prediction", "probability", "weight"),
        (
            (key, names[target], names[answer], f"{row[answer]:.6f}", weight)
            for key, target, answer, row, weight in zip(
                keys, test.y, answers, probabilities, test.weights.tolist(), strict=True
            )
        ),
    )
    _keep_samples(run, examples.paths[test.rows], keys, probabilities)


def _keep_samples(run: Run, paths: np.ndarray, keys: Sequence[str], probabilities: np.ndarray) -> None:
    """Copy some held-out pictures, spread over all of them, so that an export can be proved anywhere."""
    samples = []
    for number, row in enumerate(np.unique(np.linspace(0, len(paths) - 1, SAMPLES).astype(int))):
        file = f"samples/{number:02d}"
        with run.replacing(file) as aside:
            aside.write_bytes(read_picture(paths[row]))
        samples.append({"file": file, "key": keys[row], "probabilities": probabilities[row].tolist()})
    run.write_json("samples.json", samples)
