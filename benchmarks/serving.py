"""`tlkeras serve` under load: throughput, errors, memory, a version swapped under it, and malformed requests.

    python benchmarks/serving.py saved_models/NAME [--minutes 5] [--concurrency 32] [--folder photos/]

Images go as bytes over REST. First batch 1 and micro-batching take turns, half a minute each; then micro-batching is
loaded for the minutes given, with a new version published half-way; last come 1,000 malformed requests.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import requests

CODE = "import sys; from tlkeras.cli.main import main; main(sys.argv[1:])"
MAX_BODY = 2_000_000


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "model"
        newest = max((path for path in arguments.model.iterdir() if path.name.isdecimal()), key=lambda p: int(p.name))
        base.mkdir()
        shutil.copytree(newest, base / "1")
        bodies = make_bodies(arguments.folder, base / "1")
        compare_batching(base, bodies, arguments)
        with serving(base, 32) as (url, process):
            load_server(url, process, base, bodies, arguments)
            send_malformed(url)
            rate, codes = load(url, bodies, arguments.concurrency, 10)
            print(f"Afterwards: {rate:.0f} requests/s, {dict(codes)}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--folder", type=Path, help="Images to send; by default those of the warm-up requests.")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--turn-seconds", type=float, default=30.0)
    return parser.parse_args()


def make_bodies(folder: Path | None, version: Path) -> list[bytes]:
    """Bodies of requests with one image each."""
    if folder is not None:
        encoded = [path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()][:64]
    else:
        encoded = read_warmup(version)
    return [json.dumps({"instances": [{"b64": base64.b64encode(data).decode()}]}).encode() for data in encoded]


def read_warmup(version: Path) -> list[bytes]:
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    found = []
    file = version / "assets.extra/tf_serving_warmup_requests"
    for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        if request.model_spec.signature_name == "serving_default":
            found += request.inputs["image_bytes"].string_val
    return sorted(set(found))


@contextmanager
def serving(base: Path, max_batch_size: int):
    """The address of a server in a process of its own, and the process."""
    limits = ["--max-batch-size", str(max_batch_size), "--max-body", str(MAX_BODY)]
    options = ["--rest-port", "0", "--grpc-port", "0", *limits]
    command = [sys.executable, "-c", CODE, "serve", str(base), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if found := re.search(r"REST +(http://\S+):predict", line):
                break
        else:
            raise SystemExit("the server did not start")
        try:
            yield found[1], psutil.Process(process.pid)
        finally:
            process.terminate()
            process.stdout.read()


def load(url: str, bodies: list[bytes], concurrency: int, seconds: float, times: list[float] | None = None):
    """Requests per second of `concurrency` clients that never pause, and the number of each status."""
    codes: Counter = Counter()
    end = time.monotonic() + seconds

    def send(index: int) -> None:
        own: Counter = Counter()
        with requests.Session() as session:
            while time.monotonic() < end:
                started = time.perf_counter()
                try:
                    own[session.post(f"{url}:predict", bodies[index % len(bodies)], timeout=60).status_code] += 1
                except requests.RequestException as error:
                    own[type(error).__name__] += 1
                index += 1
                if times is not None:
                    times.append(time.perf_counter() - started)
        codes.update(own)

    threads = [threading.Thread(target=send, args=(index,)) for index in range(concurrency)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(codes.values()) / (time.monotonic() - started), codes


def compare_batching(base: Path, bodies: list[bytes], arguments: argparse.Namespace) -> None:
    with serving(base, 1) as (single, _), serving(base, 32) as (batched, _):
        rates: dict[str, list[float]] = {"batch 1": [], "micro-batching": []}
        for url in (single, batched):
            load(url, bodies, arguments.concurrency, 3)
        for _ in range(arguments.turns):
            for name, url in zip(rates, (single, batched), strict=True):
                rate, codes = load(url, bodies, arguments.concurrency, arguments.turn_seconds)
                assert set(codes) == {200}, codes
                rates[name].append(rate)
    print("| | requests/s | ratio |\n|---|---|---|")
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, rates["batch 1"], strict=True))
        print(f"| {name} | {statistics.median(values):.0f} | {ratio:.2f} |", flush=True)


def load_server(
    url: str, process: psutil.Process, base: Path, bodies: list[bytes], arguments: argparse.Namespace
) -> None:
    """Load the server for minutes; half-way a new version is published."""
    seconds = arguments.minutes * 60
    memory: list[float] = []
    stop = threading.Event()

    def watch() -> None:
        started = time.monotonic()
        swapped = False
        while not stop.wait(seconds / 60):
            memory.append(process.memory_info().rss / 2**20)
            if not swapped and time.monotonic() - started > seconds / 2:
                shutil.copytree(base / "1", base / ".tmp-2")
                os.rename(base / ".tmp-2", base / "2")
                swapped = True

    watcher = threading.Thread(target=watch)
    watcher.start()
    times: list[float] = []
    rate, codes = load(url, bodies, arguments.concurrency, seconds, times)
    stop.set()
    watcher.join()
    status = requests.get(url, timeout=10).json()["model_version_status"]
    states = {row["version"]: row["state"] for row in status}
    print(f"\n{arguments.minutes:g} minutes at concurrency {arguments.concurrency}: {sum(codes.values()):,} requests,")
    print(f"{rate:.0f} requests/s, responses {dict(codes)}, versions {states}")
    print(f"milliseconds: median {np.median(times) * 1e3:.0f}, 99th percentile {np.percentile(times, 99) * 1e3:.0f}")
    spans = [f"{np.median(span):.0f}" for span in np.array_split(memory, 4) if len(span)]
    print(f"MiB in use, medians of four spans, the version swapped after the second: {', '.join(spans)}", flush=True)


def send_malformed(url: str) -> None:
    """Send 1,000 malformed requests, of the kinds that the tests list."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests/serving"))
    from test_rest import MALFORMED

    host, _, name = url.partition("/v1/models/")
    codes: Counter = Counter()
    wrong = []
    cases = list(MALFORMED.items())
    for number in range(1000):
        case, (path, body, status, _) = cases[number % len(cases)]
        options = {"data": body} if isinstance(body, bytes) else {"json": body}
        if case == "large body":
            options = {"data": b" " * (MAX_BODY + 1)}
        response = requests.post(host + path.replace("/photos", f"/{name}"), timeout=60, **options)
        codes[response.status_code] += 1
        if response.status_code != status:
            wrong.append((case, response.status_code, response.text[:200]))
    print(f"1,000 malformed requests: {dict(codes)}, not as expected: {wrong or 'none'}")


if __name__ == "__main__":
    main()
