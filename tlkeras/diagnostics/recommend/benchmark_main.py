"""`python -m tlkeras.diagnostics.recommend.benchmark_main QUESTION`: the process in which a backbone's costs are measured."""

import json
import sys
from dataclasses import asdict

from tlkeras.diagnostics.recommend.benchmarks import Question, measure_here
from tlkeras.lazy_tensorflow import load_tensorflow

if __name__ == "__main__":
    load_tensorflow()
    print(json.dumps(asdict(measure_here(Question(**json.loads(sys.argv[1]))))))
