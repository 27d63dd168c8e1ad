"""The long proofs: `python -m tests.proofs` runs all, `python -m tests.proofs NAME…` some.

A proof is a module of this folder with `main() -> dict`. What it returns is written to `results/proofs/NAME.json`
(with hyphens), together with the date, the machine and how long it took; a proof that fails raises.
"""

import importlib
import pkgutil
import sys
import time
from pathlib import Path

from bench.measure import machine
from shards import atomic

RESULTS = Path(__file__).parents[2] / "results" / "proofs"
PACKAGES = ("bandstream", "numpy", "torch", "nvidia-dali-cuda130", "rasterio")


def main(names: list[str]) -> int:
    """Run these proofs, or all; the number that failed."""
    known = sorted(
        module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if module.name[0] != "_"
    )
    names = [name.replace("-", "_") for name in names] or known
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"unknown proof {', '.join(unknown)}: there are {', '.join(known)}", file=sys.stderr)
        return 2
    RESULTS.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in names:
        begin = time.perf_counter()
        try:
            outcome = importlib.import_module(f"tests.proofs.{name}").main()
        except Exception as error:
            failed += 1
            print(f"{name}: FAILED: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        seconds = round(time.perf_counter() - begin, 1)
        path = RESULTS / f"{name.replace('_', '-')}.json"
        atomic.write_json(path, {"proof": name, "seconds": seconds, "machine": machine(PACKAGES), **outcome})
        print(f"{name}: {outcome.get('outcome', 'done')} ({seconds} s) -> {path.relative_to(RESULTS.parents[1])}")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
