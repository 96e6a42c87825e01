"""`python -m benchmarks NAME`: trains, measures and fills in the pages of docs/."""

from __future__ import annotations

import importlib
import sys

BENCHMARKS = {
    "adversarial": "benchmarks.adversarial",
    "classes": "benchmarks.classes",
    "coded": "benchmarks.coded",
    "draws": "benchmarks.draws",
    "generation": "benchmarks.generation",
    "kinds": "benchmarks.kinds",
    "paper": "benchmarks.paper",
    "rate": "benchmarks.rate",
    "scale": "benchmarks.scale",
    "speed": "benchmarks.speed.page",
    "tiles": "benchmarks.tiles",
    "zoo": "benchmarks.zoo",
}


def main() -> None:
    """Run the benchmark that the first argument names; each has its own `--help`."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in BENCHMARKS:
        sys.exit(f"usage: python -m benchmarks {'|'.join(BENCHMARKS)} [OPTION]...")
    command = importlib.import_module(BENCHMARKS[name]).main
    command(sys.argv[2:], prog_name=f"python -m benchmarks {name}")


if __name__ == "__main__":
    main()
