"""Trials on a Ray cluster: as workers of a search, and as trials of Ray Tune over the same space."""

from typing import Any

from tlkeras.config.recipe import Recipe, load_recipe
from tlkeras.config.schema.tuning import SearchDimension
from tlkeras.config.trials import RecipeValues, apply_values
from tlkeras.inference.jobs.engines import choose_resources, require_ray
from tlkeras.lazy_tensorflow import import_tensorflow_quietly
from tlkeras.training.builders.variants import make_source_absolute
from tlkeras.tuning.space import check_space
from tlkeras.tuning.trials import TrialResult, name_figures
from tlkeras.tuning.workers import run_trial


class TrialActor:
    """Runs trials in a process of the cluster; frozen features are computed by the first, or read from the cache."""

    def __init__(self, recipe: Recipe):
        import_tensorflow_quietly()
        from tlkeras.tuning.objective import TrialRunner

        self._recipe, self._runner = recipe, TrialRunner()

    def run(self, values: RecipeValues) -> TrialResult:
        return run_trial(self._runner.score, self._recipe, values)


class RayWorkers:
    """Actors of the Ray cluster at RAY_ADDRESS, else of one started here; one that dies in a trial is replaced."""

    def __init__(self, recipe: Recipe, count: int):
        require_ray()
        import ray

        self._own = not ray.is_initialized()
        if self._own:
            ray.init(log_to_driver=False, configure_logging=False)
        self._recipe = make_source_absolute(recipe)
        self._class = ray.remote(**choose_resources(ray.cluster_resources(), count))(TrialActor)
        self.worker_ids: tuple[str, ...] = tuple(f"actor-{number}" for number in range(count))
        self._actors = {worker: self._class.remote(self._recipe) for worker in self.worker_ids}
        self._running: dict[Any, str] = {}

    def submit(self, worker: str, values: RecipeValues) -> None:
        self._running[self._actors[worker].run.remote(dict(values))] = worker

    def next_result(self) -> tuple[str, TrialResult]:
        import ray

        (ready,), _ = ray.wait(list(self._running))
        worker = self._running.pop(ready)
        try:
            return worker, ray.get(ready)
        except ray.exceptions.RayError as error:
            self._actors[worker] = self._class.remote(self._recipe)
            return worker, TrialResult(error=f"the actor died: {str(error).splitlines()[0]}")

    def close(self) -> None:
        import ray

        for actor in self._actors.values():
            ray.kill(actor)
        if self._own:
            ray.shutdown()


def make_param_space(recipe: Recipe | str) -> dict[str, Any]:
    """The space of a recipe's section `tuning` as Ray Tune takes it, by the same dotted keys.

    MissingExtraError if Ray is not installed; errors of the space as `check_space`.
    """
    require_ray()
    return {key: _make_domain(dimension) for key, dimension in check_space(load_recipe(recipe)).space.items()}


def make_trainable(recipe: Recipe | str) -> Any:
    """The trial of a recipe as a class that Ray Tune trains.

    It reports `val_loss`, `val_accuracy`, `val_roc_auc` and `seconds` of the validation split once, at its end. The
    test split is neither read nor measured. With `reuse_actors` an actor computes frozen features once for all its
    trials. Errors as `make_param_space`. docs/tuning.md has an example.
    """
    require_ray()
    from ray import tune

    resolved = load_recipe(recipe)
    check_space(resolved)
    absolute = make_source_absolute(resolved)

    class RecipeTrainable(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self._values, self._actor = dict(config), TrialActor(absolute)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self._values = dict(new_config)
            return True

        def step(self) -> dict[str, Any]:
            result = self._actor.run(self._values)
            if result.error is not None:
                raise RuntimeError(result.error)
            return {**name_figures(result.figures), "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Keep nothing: the best values are trained as an ordinary run."""

    return RecipeTrainable


def make_recipe(recipe: Recipe | str, values: RecipeValues) -> Recipe:
    """The recipe of a trial of Ray Tune, ready to train; RecipeError if the values do not go together."""
    return apply_values(load_recipe(recipe), values)


def _make_domain(dimension: SearchDimension) -> Any:
    """The values of one key as Ray Tune draws them; ranges with steps as lists."""
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
