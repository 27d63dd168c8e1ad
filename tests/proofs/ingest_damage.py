"""Three thousand random damages of input files, over all sources: no ingest crashes, hangs or takes much memory, what
was not touched comes in as ever, and what was touched only as an independent reader reads it.

    python -m tests.proofs ingest_damage

Each damage hits one file of a small archive (`tests.proofs._subjects`), or the tar, zip or Parquet file around it
(`tests.proofs._damages`). Every one of them then holds:

- `ingest` returns or raises BandstreamError, within LONGEST_S, in a process of its own that survives it, whose peak of
  resident memory is no more than MOST_MB above that of the undamaged archive's ingest;
- the set passes `verify`;
- samples whose files are as they were are all there, each number of them as in the undamaged archive's set;
- a sample whose files were touched is rejected, or is what rasterio, Pillow, NumPy, zarr or pyarrow read of the damaged
  files, checksums of PNG, Deflate, zip and gzip compared. Where its pixels are other than before, no format's
  checksum covered them (TIFF without compression or with LZW, JPEG, JPEG 2000, npy, ...): counted apart, by kind of
  file.
"""

import json
import multiprocessing
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tests.proofs._subjects import SUBJECTS
from tests.proofs._trial import LONGEST_S, Trial

SEEDS = 0, 1, 2
MOST_MB = 400
"""Resident memory that an ingest of damaged files may take beyond that of the undamaged ones."""
PROCESSES = 2


def main(seeds: Sequence[int] = SEEDS, share: dict[str, int] | None = None) -> dict[str, Any]:
    """Damage, ingest, judge, again and again. `share`: damages by subject and seed; None: what the subjects say."""
    share = share or {subject.name: subject.damages for subject in SUBJECTS}
    total, first = len(seeds) * sum(share.values()), time.monotonic()
    waiting = sorted(share, key=lambda name: -share[name])
    count = 1 if total < 100 else 3 * PROCESSES  # to start a process takes seconds
    groups = [waiting[number::count] for number in range(count)]
    kinds: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    grown: dict[str, int] = {}
    failures: list[str] = []
    slowest = 0.0
    for told in _watched(groups, share, seeds):
        kinds[f"{told['subject']}: {told['kind']}"] += 1
        if "failed" in told:
            failures.append(
                f"{told['subject']}, damage {told['number']} of seed {told['seed']} ({told['kind']}): {told['failed']}"
            )
            print(failures[-1], file=sys.stderr, flush=True)
            continue
        outcomes[f"{told['subject']}: {told['outcome']}"] += 1
        grown[told["subject"]] = max(grown.get(told["subject"], 0), round(told["grown_mb"]))
        slowest = max(slowest, told["seconds"])
    assert not failures, f"{len(failures)} of {total} damages:\n" + "\n".join(failures)
    most = max(grown.values())
    assert most < MOST_MB, f"memory grew by {most} MB: {grown}"
    assert sum(kinds.values()) == total
    every: Counter[str] = Counter()
    for name, count in outcomes.items():
        every[name.partition(": ")[2]] += count
    return {
        "outcome": f"{total} damages of {len(share)} archives of all sources: no crash, no hang, nothing untouched "
        f"changed, no sample that an independent reader reads otherwise, memory +{most} MB",
        "n": total,
        "seeds": list(seeds),
        "memory_bound_mb": MOST_MB,
        "memory_grown_mb": dict(sorted(grown.items())),
        "slowest_s": round(slowest, 1),
        "took_s": round(time.monotonic() - first),
        "outcomes": dict(every.most_common()),
        "outcomes_by_source": _nested(outcomes),
        "kinds_by_source": _nested(kinds),
    }


def _nested(counts: Counter[str]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for name, count in sorted(counts.items()):
        subject, _, what = name.partition(": ")
        found.setdefault(subject, {})[what] = count
    return found


def _watched(groups: list[list[str]], share: dict[str, int], seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """What processes tell of each damage, a group of subjects a process. One that dies or is silent is a failure."""
    context = multiprocessing.get_context("spawn")
    running: dict[Connection, tuple[Any, dict[str, Any], float]] = {}
    groups = list(groups)
    try:
        while groups or running:
            while groups and len(running) < PROCESSES:
                names = groups.pop(0)
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(names, share, seeds, theirs))
                process.start()
                theirs.close()
                running[ours] = (
                    process,
                    {"subject": names[0], "seed": -1, "number": -1, "kind": "start"},
                    time.monotonic(),
                )
            ready = wait(list(running), timeout=1)
            for link in ready:
                process, last, _ = running[link]
                try:
                    told = link.recv()
                except EOFError:
                    process.join()
                    del running[link]
                    if process.exitcode:
                        yield last | {"failed": f"its process ended with {process.exitcode}"}
                    continue
                running[link] = process, told, time.monotonic()
                if "outcome" in told or "failed" in told:
                    yield told
            for link, (process, last, since) in list(running.items()):
                if time.monotonic() - since > 3 * LONGEST_S:
                    process.kill()
                    del running[link]
                    yield last | {"failed": f"it hung for {3 * LONGEST_S} s"}
    finally:
        for process, _, _ in running.values():
            process.kill()


def _work(names: list[str], share: dict[str, int], seeds: Sequence[int], link: Connection) -> None:
    """The process that damages some subjects, one after the other."""
    warnings.simplefilter("ignore")  # the independent readers'
    by_name = {subject.name: subject for subject in SUBJECTS}
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            told = {"subject": name, "seed": -1, "number": -1, "kind": "the undamaged archive"}
            link.send(told)
            try:
                trial = Trial(by_name[name], Path(scratch))
            except Exception:
                link.send(told | {"failed": traceback.format_exc()})
                continue
            for seed, number in product(seeds, range(share[name])):
                draw = random.Random(f"{seed} {name} {number}")
                told = {"subject": name, "seed": seed, "number": number, "kind": "not yet known"}
                begin = time.monotonic()
                try:
                    told["kind"] = trial.damage(draw)
                    link.send(told)
                    told["outcome"], told["grown_mb"] = trial.judge()
                    told["seconds"] = time.monotonic() - begin
                except Exception:
                    told["failed"] = traceback.format_exc()
                link.send(told)
    link.close()


if __name__ == "__main__":
    print(json.dumps(main(), indent=1))
