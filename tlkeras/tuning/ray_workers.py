"""Trials on a Ray cluster: as workers of a search here, and as trials of Ray Tune over the same space."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from tlkeras.config.recipe import Recipe, load_recipe
from tlkeras.config.schema.tuning import SearchDimension
from tlkeras.config.yaml_loader import to_immutable
from tlkeras.inference.jobs.ray_engine import choose_resources, require_ray
from tlkeras.lazy_tensorflow import import_tensorflow_quietly
from tlkeras.tuning.search import check_space
from tlkeras.tuning.space import apply_values
from tlkeras.tuning.workers import TrialResult, run_trial


class TrialActor:
    """Carries out trials in a process of the cluster; what is frozen is computed by its first, or read from the cache.

    Args:
        plain: The recipe as plain data.
    """

    def __init__(self, plain: dict[str, Any]):
        import_tensorflow_quietly()
        from tlkeras.tuning.objective import TrialRunner

        self._recipe, self._evaluator = Recipe.model_validate(to_immutable(plain)), TrialRunner()

    def score(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the figures of a trial, or its `error`."""
        return run_trial(self._evaluator, self._recipe, values)


class RayWorkers:
    """Workers of a search that are actors of the Ray cluster at RAY_ADDRESS, else of one started on this machine.

    An actor that dies in a trial is replaced, and the trial fails.

    Raises:
        MissingExtraError: Ray is not installed.
    """

    def __init__(self, recipe: Recipe, count: int):
        require_ray()
        import ray

        self._own = not ray.is_initialized()
        if self._own:
            ray.init(log_to_driver=False, configure_logging=False)
        self._plain = _make_plain(recipe)
        self._class = ray.remote(**choose_resources(ray.cluster_resources(), count))(TrialActor)
        self.names: tuple[str, ...] = tuple(f"actor-{number}" for number in range(count))
        self._actors = {name: self._class.remote(self._plain) for name in self.names}
        self._running: dict[Any, tuple[str, str]] = {}

    def start(self, worker: str, trial: str, values: Mapping[str, Any]) -> None:
        """Give a trial to an actor."""
        self._running[self._actors[worker].score.remote(dict(values))] = (worker, trial)

    def wait(self) -> TrialResult:
        """Return the next trial that ends."""
        import ray

        (ready,), _ = ray.wait(list(self._running))
        worker, trial = self._running.pop(ready)
        try:
            return worker, trial, ray.get(ready)
        except ray.exceptions.RayError as error:
            self._actors[worker] = self._class.remote(self._plain)
            return worker, trial, {"error": f"the actor died: {str(error).splitlines()[0]}"}

    def close(self) -> None:
        """End the actors, and the cluster if it was started here."""
        import ray

        for actor in self._actors.values():
            ray.kill(actor)
        if self._own:
            ray.shutdown()


def make_param_space(recipe: Recipe | str) -> dict[str, Any]:
    """Return the space of a recipe's section `tuning` as Ray Tune's, by the same dotted keys.

    Raises:
        MissingExtraError: Ray is not installed.
        RecipeError: There is no such section, or a value of its space is refused; all problems are named.
    """
    require_ray()
    return {key: _make_domain(dimension) for key, dimension in check_space(_load(recipe)).space.items()}


def make_trainable(recipe: Recipe | str) -> Any:
    """Return a recipe's trial as a class that Ray Tune trains.

    It reports `val_loss`, `val_accuracy`, `val_roc_auc` and `seconds` of the validation split once, at its end; the test
    split is neither read nor measured. With `reuse_actors` an actor computes what is frozen once for all its trials.

        from ray import tune
        from tlkeras.tuning.ray_workers import make_param_space, make_trainable

        config = tune.TuneConfig(metric="val_loss", mode="min", num_samples=20, reuse_actors=True)
        tuner = tune.Tuner(make_trainable("mine.yaml"), param_space=make_param_space("mine.yaml"), tune_config=config)
        best = make_recipe("mine.yaml", tuner.fit().get_best_result().config)

    Raises:
        MissingExtraError: Ray is not installed.
        RecipeError: As `make_param_space`.
    """
    require_ray()
    from ray import tune

    resolved = _load(recipe)
    check_space(resolved)
    plain = _make_plain(resolved)

    class RecipeTrainable(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self._values, self._actor = dict(config), TrialActor(plain)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self._values = dict(new_config)
            return True

        def step(self) -> dict[str, Any]:
            figures = self._actor.score(self._values)
            if "error" in figures:
                raise RuntimeError(figures["error"])
            named = {name if name == "seconds" else f"val_{name}": value for name, value in figures.items()}
            return {**named, "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Keep nothing: the best values are trained as an ordinary run."""

    return RecipeTrainable


def make_recipe(recipe: Recipe | str, values: Mapping[str, Any]) -> Recipe:
    """Return the recipe of a trial of Ray Tune, ready to train.

    Raises:
        RecipeError: The values do not go together.
    """
    return apply_values(_load(recipe), values)


def _load(recipe: Recipe | str) -> Recipe:
    return load_recipe(recipe) if isinstance(recipe, str) else recipe


def _make_plain(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as data that other processes read, in whatever folder they are."""
    there = os.path.join(os.getcwd(), os.path.expanduser(recipe.data.source))
    plain = recipe.model_dump(mode="json")
    if os.path.exists(there):
        plain["data"]["source"] = there
    return plain


def _make_domain(dimension: SearchDimension) -> Any:
    """Return the values of one key as Ray Tune draws them; where there are steps, those that are listed."""
    from ray import tune

    if dimension.values is not None:
        return tune.choice(list(dimension.values))
    if dimension.step is not None:
        return tune.choice(_list_steps(dimension))
    log = dimension.sampling == "log"
    if dimension.whole:
        draw = tune.lograndint if log else tune.randint
        return draw(dimension.min, dimension.max + 1)  # type: ignore[operator]
    return (tune.loguniform if log else tune.uniform)(dimension.min, dimension.max)


def _list_steps(dimension: SearchDimension) -> list[int | float]:
    low, high, step = float(dimension.min or 0), float(dimension.max or 0), float(dimension.step or 1)
    values, value, rounding = [], low, 1e-9 * abs(high - low)
    while value <= high + rounding:
        values.append(int(value) if dimension.whole else value)
        value = value * step if dimension.sampling == "log" else low + len(values) * step
    return values
