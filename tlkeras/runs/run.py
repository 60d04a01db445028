"""A finished training in a person's hands: what it learned, how good it is, and what can be done with it."""

from __future__ import annotations

import csv
import io
import math
import shutil
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tlkeras
from tlkeras.config.recipe import Recipe, load_recipe
from tlkeras.errors import RunError
from tlkeras.plotting.charts import plot_head_history, plot_history
from tlkeras.plotting.notebook import Plot, render_card, render_table
from tlkeras.results import make_frame
from tlkeras.runs.files import RunFiles

if TYPE_CHECKING:  # what the verbs give back, for editors: nothing is imported from the rooms above
    import keras
    import pandas

    from tlkeras.evaluation.errors import ConfusionMatrix
    from tlkeras.evaluation.evaluate import EvaluationResult, MetricsBySubset
    from tlkeras.evaluation.interpretation import HeldOutMistakes
    from tlkeras.evaluation.intervals import Metrics
    from tlkeras.evaluation.report.page import ReportResult
    from tlkeras.exporting.parity import ExportResult
    from tlkeras.inference.predict import Predictor
    from tlkeras.inference.results import ImagePrediction, PredictionResult
    from tlkeras.serving.serve import BackgroundServer


class History(dict[str, list[Any]]):
    """What the fit recorded, by column: a value per epoch, or per strength of regularization of a head."""

    def to_rows(self) -> list[dict[str, Any]]:
        """The same by epoch."""
        return [dict(zip(self, row, strict=True)) for row in zip(*self.values(), strict=True)]

    def to_frame(self) -> pandas.DataFrame:
        """A row per epoch; MissingExtraError without pandas."""
        return make_frame(self.to_rows())

    def plot(self) -> Plot:
        """Losses, metrics and learning rates by epoch, or the loss by strength of regularization.

        RunError if nothing was recorded, as where the strength was given.
        """
        if not self.to_rows():
            raise RunError("This fit recorded nothing to plot: no epochs were run, and no strength was chosen.")
        plot = plot_history if "stage" in self else plot_head_history
        return Plot.draw(lambda path: plot(self.to_rows(), path))

    def _repr_html_(self) -> str:
        return render_table(tuple(self), list(zip(*self.values(), strict=True)))


@dataclass(repr=False, eq=False)
class Run(RunFiles):
    """One training. Its directory holds all of it, so that `tlkeras.open_run` gives the same object tomorrow.

    What judges or uses a run is a verb of the package (`tlkeras.predict(run, ...)`) and a method here. Those of a run
    with several tasks tell of the first one; `evaluate().tasks` has them all.
    """

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.read_state()})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self.path.resolve() == other.path.resolve()

    def __hash__(self) -> int:
        return hash(self.path.resolve())

    @property
    def recipe(self) -> Recipe:
        """The recipe with all values that were used."""
        return load_recipe(self.require("recipe.yaml"))

    @property
    def classes(self) -> list[str]:
        """Names of the classes or labels, in the order of the model's output; none of a regression."""
        return list(next(iter(self.read_json("classes.json").values())))

    @cached_property
    def model(self) -> keras.Model:
        """The Keras model, from uint8 images [n, height, width, 3] to probabilities float32 [n, k]."""
        return tlkeras.load_model(self)

    @property
    def history(self) -> History:
        """What the fit recorded per epoch, or per strength of regularization of a head."""
        text = self.read_bytes("history.csv").decode("utf-8", "replace")
        header, *rows = csv.reader(io.StringIO(text, newline=""))
        return History((name, [_parse(row[place]) for row in rows]) for place, name in enumerate(header))

    @cached_property
    def _evaluation(self) -> EvaluationResult:
        return tlkeras.evaluate(self)

    def evaluate(self) -> EvaluationResult:
        """Metrics of all tasks on held-out images, as `tlkeras.evaluate` gives them."""
        return self._evaluation

    @property
    def metrics(self) -> Metrics:
        """Metrics on held-out images by name, each an estimate: `float(run.metrics["accuracy"])`."""
        return self._evaluation.metrics

    @property
    def per_class(self) -> MetricsBySubset:
        """Metrics of each class or label on held-out images."""
        return self._evaluation.main.labels

    def confusion(self) -> ConfusionMatrix:
        """How often each class was taken for each other one."""
        return tlkeras.count_confusions(self)

    def top_losses(self, n: int = 9) -> HeldOutMistakes:
        """The `n` held-out images that the model is most wrong about, worst first."""
        return tlkeras.find_top_losses(self, n)

    def explain(self, image: Any, label: str | None = None, **options: Any) -> Plot:
        """An image with a map of what spoke for a class, by default the predicted one, as from `tlkeras.explain`."""
        return tlkeras.explain(self, image, label, **options)

    def predict(self, images: Any, **options: Any) -> ImagePrediction | PredictionResult:
        """The prediction of one image, or predictions of several or of a folder; images as of `Predictor`."""
        return self.predictor().predict(images, **options)

    def predictor(self) -> Predictor:
        """The model loaded once, for web handlers and loops; threads may share it."""
        return self._predictor

    @cached_property
    def _predictor(self) -> Predictor:
        return tlkeras.Predictor(self)

    def report(self, to: str | Path | None = None, **options: Any) -> ReportResult:
        """A page on this run, `report.html` in its directory or another path; options as of `ReportOptions`."""
        return tlkeras.report([self], to, options=options)

    def export(self, to: str | Path | None = None, **options: Any) -> ExportResult:
        """The next SavedModel version below `to`, proved against this run; options as of `tlkeras.export`."""
        return tlkeras.export(self, to, **options)

    def serve(self, folder: str | Path | None = None, *, block: bool = True, **options: Any) -> BackgroundServer | None:
        """A server of this run's model, exported to `folder` first unless it holds versions.

        Options are those of `ServeOptions`.
        Unless it blocks until it is interrupted, the server's `url` shows the page and `stop()` ends it.
        """
        target = Path(folder) if folder else self.path / "served"
        if not any(path.name.isdecimal() for path in target.glob("*")):
            tlkeras.export(self, target)
        return tlkeras.serve(target, block=block, **options)

    def to_dict(self) -> dict[str, Any]:
        """Name, state, creation time (UTC), and what is known: source, numbers of images and classes, minutes, bytes.

        Accuracy and ROC AUC where they were measured.
        """
        try:
            metrics = self.read_json("metrics.json")["metrics"]
            accuracy, auc = (metrics.get(name, {}).get("value") for name in ("accuracy", "roc_auc"))
        except (RunError, KeyError, TypeError, AttributeError):  # not measured, or a damaged file
            accuracy = auc = None
        source = images = classes = None
        minutes = 0.0
        with suppress(RunError, AttributeError, TypeError):  # a damaged file, or a run that has not come so far
            minutes = round(sum(self.manifest.get("phases", {}).values()) / 60, 2)
            source, classes = self.manifest.get("source"), len(self.classes)
            images = sum(self.manifest["examples"].values()) if "examples" in self.manifest else None
        return {
            "name": self.name,
            "state": self.read_state(),
            "created": self.read_created(),
            "source": source,
            "images": images,
            "classes": classes,
            "accuracy": accuracy,
            "roc_auc": auc,
            "minutes": minutes,
            "bytes": self._count_bytes(),
        }

    def _count_bytes(self) -> int:
        total = 0
        for path in self.path.rglob("*"):
            with suppress(OSError):  # of a run that is being written
                total += path.stat().st_size if path.is_file() else 0
        return total

    def take_worker_result(self) -> dict[str, Any] | None:
        """`worker`, `workers`, `devices`, `weights` (SHA-256) of a worker, whose folder is removed; None of a run."""
        manifest = self.manifest
        if "worker" not in manifest:
            return None
        shutil.rmtree(self.path.parent)
        trained = manifest["finetuning"]
        return {"worker": manifest["worker"], **{key: trained[key] for key in ("workers", "devices", "weights")}}

    def _repr_html_(self) -> str:
        if self.read_state() != "finished":
            return render_card(self.name, [f"This run is {self.read_state()}."])
        evaluation, facts = self._evaluation, self.manifest
        counts = ", ".join(f"{count:,} {split}" for split, count in facts.get("examples", {}).items() if count)
        minutes = sum(facts.get("phases", {}).values()) / 60
        made = f"{counts} images, {minutes:.1f} minutes; {self.path}"
        worst = ""
        with suppress(RunError, ImportError):
            worst = self.top_losses(6)._repr_html_() if self.classes else ""
        return render_card(self.name, [evaluation.verdict, made], evaluation.metrics._repr_html_(), worst)


def _parse(text: str) -> float | int | str:
    """The number that a text is, unless it is no finite one."""
    for kind in (int, float):
        with suppress(ValueError):
            number = kind(text)
            return number if math.isfinite(number) else text
    return text
