"""The verbs of choosing: backbones measured beside each other, and searches over a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tlkeras.api.recipes import resolve_recipe_or_data
from tlkeras.api.running import RUNS, train
from tlkeras.config import recipe as recipes
from tlkeras.errors import RecipeError
from tlkeras.lazy_tensorflow import import_tensorflow_quietly
from tlkeras.runs.directory import Run, find_run


def recommend(
    recipe: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    limits: Mapping[str, Any] | None = None,
    images: int = 1000,
    minutes: float = 60.0,
    image: str | Path | None = None,
    to: str | Path | None = None,
) -> dict[str, Any]:
    """Measure which pretrained network suits images and this machine, at which size, frozen or fine-tuned.

    Args:
        recipe: A recipe, whose own backbone is measured too, or images alone, as `check` takes them.
        overrides: Values by dotted key.
        limits: Of `tlkeras.diagnostics.recommend.candidates.BackboneLimits`, by name; without a `target` it is "server" with a GPU and
            "cpu" without one.
        images: To look at, at most; none is of the test split.
        minutes: That fine-tuning may take.
        image: The PNG file of Pareto's front; NAME-backbones.png in the current folder if not given.
        to: The recipe file to write, too.

    Returns:
        What `tlkeras.diagnostics.recommend.recommend.recommend` returns: `candidates`, best first, `answers` with their
        reasons, and the `recipe` to run.
    """
    train, resolved = resolve_recipe_or_data(recipe, overrides)
    import_tensorflow_quietly()
    import tensorflow as tf

    from tlkeras.diagnostics.recommend.candidates import BackboneLimits
    from tlkeras.diagnostics.recommend.recommend import RecommendOptions
    from tlkeras.diagnostics.recommend.recommend import recommend as measure

    target = "server" if tf.config.list_physical_devices("GPU") else "cpu"
    chosen = BackboneLimits(**{"target": target, **(limits or {})})
    drawn = Path(image) if image else Path(f"{resolved.name}-backbones.png")
    options = RecommendOptions(chosen, drawn, train, images, minutes, Path(to) if to else None)
    return measure(resolved, options)


def tune(
    recipe: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    workers: int = 1,
    engine: str = "local",
    train_best: bool = True,
    runs: str | Path = RUNS,
) -> dict[str, Any]:
    """Search a recipe's `tuning.space` for what is best on the validation split; the best becomes a run and a recipe.

    Given again after an interruption or kill -9, it goes on where it stopped.

    Args:
        recipe: Name of a shipped recipe, or path of a YAML file, with a section `tuning`.
        overrides: Values by dotted key.
        workers: Trials at the same time, each in a process of its own.
        engine: "local" (processes of this machine) or "ray" (actors of the Ray cluster at RAY_ADDRESS).
        train_best: Carry out the best trial's recipe as an ordinary run, which is measured on the test split.
        runs: Folder of the run directories; the search is below its folder `tuning`.

    Returns:
        What `report_tuning` returns, and `run`: what `train` returns of the best recipe. Of a worker of a search over
        machines (KerasTuner's environment variables): `worker`, its name, `trials` and `failed`.
    """
    resolved = recipes.load_recipe(recipe, overrides)
    if resolved.tuning is None:
        from tlkeras.tuning.space import require_tuning

        require_tuning(resolved)
    import_tensorflow_quietly()
    from tlkeras.tuning.objective import TrialRunner
    from tlkeras.tuning.remote_workers import read_place, serve_chief
    from tlkeras.tuning.search import check_space, prepare, search

    place = read_place()
    if place is not None and not place.is_chief:
        check_space(resolved)
        prepare(resolved, evaluator := TrialRunner())
        return serve_chief(place, resolved, evaluator)
    folder = search(resolved, Path(runs), workers, place, engine).path
    result = report_tuning(str(folder), runs=runs)
    if train_best:
        result["run"] = train(str(folder / "best.yaml"), runs=runs)
    return result


def report_tuning(search: str = "latest", *, runs: str | Path = RUNS) -> dict[str, Any]:
    """Return a search's trials, best first, and draw them.

    Returns:
        `path`, `state`, `objective`, `space`, `trials` (records, finalists first), `failed`, `importance` (share of the
        variance of the objective that each key explains, and the number of trials it is estimated from), `images`
        (paths), `best` (path of the recipe), `phases` (seconds).
    """
    from tlkeras.tuning.report import report

    root = Path(runs) / "tuning"
    run: Run = find_run(search, root)
    if not (run.path / "search.json").exists():
        raise RecipeError("A report is of a search.", run.path, "Begin one with: tlkeras tune RECIPE")
    return report(run)
