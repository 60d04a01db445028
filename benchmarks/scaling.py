"""Features of many images: one process on one core against two on two, memory and size against number, cost.

    python benchmarks/scaling.py                     three sizes, small images, the tiny network
    python benchmarks/scaling.py --cost 20000        EfficientNet-Lite0 on 256-pixel JPEGs, for the cost model

Each run is `tlkeras features extract` in processes of its own. Core seconds are those of all its processes, and hold
on a busy machine, too; the rate holds only on a quiet one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

COMMAND = [sys.executable, "-c", "from tlkeras.cli.main import main; main()", "features", "extract"]
TINY = ["--set", "backbone.name=tiny", "--set", "backbone.weights=none"]
LITE = ["--set", "backbone.name=efficientnet_lite0", "--set", "backbone.weights=packaged"]


def draw(folder, count, size, suffix):
    """Write images of a few soft shapes and some noise, 1,000 in a folder; JPEGs are as large as photographs."""
    random = np.random.default_rng(0)
    for number in range(count):
        target = folder / f"{number // 1000:04d}" / f"{number:07d}{suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        coarse = random.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        image = np.asarray(Image.fromarray(coarse).resize((size, size)), np.int16)
        noisy = image + random.integers(-12, 13, image.shape, dtype=np.int16)
        Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(target, quality=90)
    return folder


def extract(images, out, settings, workers, shard_size, cores):
    """Run the command on some cores; return wall and core seconds, peak memory, time to the first shard, and counts."""
    begun = time.perf_counter()
    allowed = list_cores()
    command = [*COMMAND, str(images), "--out", str(out), "--workers", str(workers), "--json"]
    limit(cores)  # what is started inherits it
    process = subprocess.Popen(
        [*command, "--shard-size", str(shard_size), *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    limit(allowed)
    first = None
    while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
        if first is None and list(out.glob("records/[0-9]*.json")):
            first = time.perf_counter() - begun
        time.sleep(0.02)
    result, usage = json.loads(process.stdout.read()), ended[2]
    spent = usage.ru_utime + usage.ru_stime
    return {
        "images": result["rows"],
        "workers": workers,
        "seconds": round(result["seconds"], 1),
        "rate": round(result["computed"] / result["seconds"], 1),
        "core_seconds": round(spent, 1),
        "core_ms": round(1000 * spent / result["computed"], 2),
        "first_shard": round(first or 0.0, 1),
        "peak_mib": round(usage.ru_maxrss / 1024),
        "bytes_each": round(result["bytes"] / result["rows"]),
        "sha256": result["sha256"][:12],
    }


def list_cores():
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count()))


def limit(cores):
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def print_row(row):
    print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--counts", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--cost", type=int, default=0, metavar="IMAGES")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    options = parser.parse_args()
    cores = list_cores()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if options.cost:
            images = draw(folder / "photos", options.cost, 256, ".jpg")
            size = sum(path.stat().st_size for path in images.rglob("*.jpg")) / options.cost
            print(f"{options.cost} JPEGs of {size:,.0f} bytes on average", flush=True)
            for workers in options.workers:
                out = folder / f"cost-{workers}"
                print_row(extract(images, out, LITE, workers, 1000, cores[:workers]))
            return
        for count in options.counts:
            images = draw(folder / f"photos-{count}", count, 32, ".png")
            for workers in options.workers:
                out = folder / f"out-{count}-{workers}"
                print_row(extract(images, out, TINY, workers, 1000, cores[:workers]))


if __name__ == "__main__":
    main()
