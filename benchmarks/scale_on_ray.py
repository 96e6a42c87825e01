"""The example on a Ray cluster of this machine, with the CPU time of every batch.

`python -m benchmarks.scale_on_ray MODEL IMAGES OUT WORKERS` writes OUT/PID.jsonl for each worker.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import ray

EXAMPLE = Path(__file__).parent.parent / "examples" / "ray" / "encode.py"


def main(model: str, images: str, out: str, workers: int) -> None:
    # Each worker has a CPU of the cluster, also where the machine has fewer.
    ray.init(num_cpus=max(workers, os.cpu_count() or 1), include_dashboard=False)
    # Without this, the first workers encode everything while the last ones start.
    ray.data.DataContext.get_current().wait_for_min_actors_s = 600
    example = runpy.run_path(str(EXAMPLE))
    driver = os.getpid()

    class Timed(example["Encoder"]):
        def __call__(self, batch: Any) -> Any:
            encoded = super().__call__(batch)
            line = {
                "pid": os.getpid(),
                "time": time.time(),
                "cpu": time.process_time(),
                "images": len(encoded),
                "driver": seconds_of(driver),
            }
            with (Path(out) / f"{os.getpid()}.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            return encoded

    def seconds_of(process: int) -> float:
        """The CPU seconds of a process, as Linux counts them."""
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    example["encode"](model, images, f"{out}/files", workers, 32, 256, Timed)


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]))
