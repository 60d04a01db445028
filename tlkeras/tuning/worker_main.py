"""`python -m tlkeras.tuning.worker_main FOLDER`: one of the processes that carry out trials."""

import sys
from pathlib import Path

from tlkeras.tuning.workers import serve_trials

if __name__ == "__main__":
    sys.exit(serve_trials(Path(sys.argv[1])))
