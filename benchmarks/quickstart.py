"""The main job as a user runs it: wall time and peak memory, cold and warm, and the start of the command line.

    python benchmarks/quickstart.py [--repeats 3]

Every cold run has a new, empty cache; the warm runs share the last one. Medians are printed as a table.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = [sys.executable, "-c", "from tlkeras.cli.main import main; main()"]


def measure(arguments: list[str], cache: Path, folder: Path) -> tuple[float, float]:
    """Return wall seconds and peak resident GiB of one command."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=folder,
        env={**os.environ, "TLKERAS_CACHE": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)} failed: {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - start, usage.ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    folder = Path(tempfile.mkdtemp(prefix="tlkeras-benchmark-"))
    rows = {}
    try:
        train = ["--quiet", "train", "quickstart"]
        rows["quickstart, cold cache"] = [measure(train, folder / f"cache-{n}", folder) for n in range(repeats)]
        warm = folder / f"cache-{repeats - 1}"
        rows["quickstart, warm cache"] = [measure(train, warm, folder) for _ in range(repeats)]
        rows["export latest"] = [measure(["export", "latest"], warm, folder) for _ in range(repeats)]
        rows["tlkeras --help"] = [measure(["--help"], warm, folder) for _ in range(repeats + 2)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("| command | seconds (min to max) | peak GiB |\n|---|---|---|")
    for name, runs in rows.items():
        seconds = [run[0] for run in runs]
        middle, memory = statistics.median(seconds), max(run[1] for run in runs)
        print(f"| {name} | {middle:.2f} ({min(seconds):.2f} to {max(seconds):.2f}) | {memory:.2f} |")


if __name__ == "__main__":
    main()
