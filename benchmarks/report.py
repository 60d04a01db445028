"""Cost of a report: the metrics from stored predictions, and the whole page, of ELPV's 656 held-out images.

    tlkeras train quickstart
    python benchmarks/report.py [RUN] [--repeats 3]

The metrics are timed within a process that has imported everything; the page is timed as a user runs it, TensorFlow's
import included. Wall seconds, and CPU seconds of all cores, which a busy machine changes less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMAND = [sys.executable, "-c", "from tlkeras.cli.main import main; main()", "--quiet"]


def time_evaluation(run: str, repeats: int) -> list[tuple[float, float]]:
    """Wall and CPU seconds of each evaluation; the first, which imports, is left out."""
    import tlkeras

    seconds = []
    for _ in range(repeats + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        tlkeras.evaluate(run)
        seconds.append((time.perf_counter() - wall, time.process_time() - cpu))
    return seconds[1:]


def time_command(arguments: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of one command."""
    start = time.perf_counter()
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(arguments)} failed: {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", default="latest")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rows = {"metrics, after import": time_evaluation(options.run, options.repeats)}
    with tempfile.TemporaryDirectory(prefix="tlkeras-benchmark-") as folder:
        page = ["report", options.run, "--to", str(Path(folder) / "report.html")]
        rows["page"] = [time_command(page) for _ in range(options.repeats)]
        rows["page, no corruptions"] = [time_command([*page, "--corrupted", "0"]) for _ in range(options.repeats)]
    print("| | seconds (min to max) | CPU seconds |\n|---|---|---|")
    for name, measured in rows.items():
        walls, cpus = zip(*measured, strict=True)
        span = f"{statistics.median(walls):.1f} ({min(walls):.1f} to {max(walls):.1f})"
        print(f"| {name} | {span} | {statistics.median(cpus):.1f} |")


if __name__ == "__main__":
    main()
