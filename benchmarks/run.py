"""Runs the benchmarks and prints one table: `make bench`, or one by name.

    python -m benchmarks.run [convolution unet data embedding mitigation search]

Results are also written to benchmarks/results/TIME.json with the machine they hold for.
"""

import importlib
import json
import os
import platform
import sys
import time
from pathlib import Path

import jax

BENCHMARKS = ("convolution", "unet", "data", "embedding", "mitigation", "search")


def main(names: list[str]) -> None:
    """Runs benchmarks by name."""
    unknown = set(names) - set(BENCHMARKS)
    if unknown:
        sys.exit(
            f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(BENCHMARKS)}"
        )
    rows = []
    print(f"{'':64} {'copymit':>9} {'peer':>9} {'ratio':>6}  peer")
    for name in names:
        for row in importlib.import_module(f"benchmarks.{name}").run():
            rows.append(row)
            print(
                f"{row.name:64} {row.seconds * 1e3:6.1f} ms {row.peer_seconds * 1e3:6.1f} "
                f"ms {row.ratio:6.2f}  {row.peer}",
                flush=True,
            )
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    record = {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "rows": [{**row._asdict(), "ratio": row.ratio} for row in rows],
    }
    path = results / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main(sys.argv[1:] or list(BENCHMARKS))
