"""Peak memory of extracting features from N and from 10 N images, each in a process of its own.

    python benchmarks/memory.py [--images 2624] [--times 10] [--backbone efficientnet_lite0 --weights packaged]

The packaged ELPV images (extra `quickstart`), repeated under other digests, so that every one is decoded, computed
and cached.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    arguments = parse_arguments()
    if arguments.child:
        print(*measure(arguments.images, arguments.backbone, arguments.weights))
        return
    print("| images | peak memory | images/s |")
    print("|---|---|---|")
    for count in (arguments.images, arguments.images * arguments.times):
        options = f"--child --images {count} --backbone {arguments.backbone} --weights {arguments.weights}".split()
        done = subprocess.run([sys.executable, __file__, *options], check=True, capture_output=True, text=True)
        peak, rate = map(float, done.stdout.split())
        print(f"| {count:,} | {peak:,.0f} MiB | {rate:.0f} |", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2624)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", default="packaged")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(count: int, backbone: str, weights: str) -> tuple[float, float]:
    """Peak memory of this process in MiB during an extraction, and images per second."""
    import elpv_dataset

    from tlkeras.backbones.builder import build_backbone
    from tlkeras.data.tables import Dataset
    from tlkeras.features.cache import ActivationCache
    from tlkeras.features.extraction import extract_activations
    from tlkeras.features.pooling import pool
    from tlkeras.features.store import peak_memory

    files = sorted((Path(elpv_dataset.__file__).parent / "data" / "images").glob("*.png"))
    paths = [str(files[number % len(files)]) for number in range(count)]
    digests = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)]
    dataset = Dataset.of_files(paths, digests)
    extractor = pool(build_backbone(backbone, weights=weights), "average")
    with (
        tempfile.TemporaryDirectory() as folder,
        extract_activations(extractor, dataset, [{}], cache=ActivationCache(folder)) as features,
    ):
        assert features.computed == count
        rate = count / features.seconds
    return (peak_memory() or 0) / 2**20, rate


if __name__ == "__main__":
    main()
