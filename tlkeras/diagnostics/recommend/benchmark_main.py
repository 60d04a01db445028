"""The process in which a backbone is benchmarked: `python -m tlkeras.diagnostics.recommend.benchmark_main REQUEST`."""

import json
import sys
from dataclasses import asdict

from tlkeras.diagnostics.recommend.benchmarks import BenchmarkRequest, measure_here
from tlkeras.lazy_tensorflow import import_tensorflow_quietly

if __name__ == "__main__":
    import_tensorflow_quietly()
    print(json.dumps(asdict(measure_here(BenchmarkRequest(**json.loads(sys.argv[1]))))))
