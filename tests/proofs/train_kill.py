"""Pretraining, killed or told to stop at random moments, ends with the weights of an undisturbed run."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from tests.pipeline.making import make_set

REPOSITORY = Path(__file__).parents[2]
SEED = 0
INTERRUPTIONS = {1: {signal.SIGKILL: 10, signal.SIGTERM: 3}, 2: {signal.SIGKILL: 3, signal.SIGTERM: 1}}  # by ranks
OPTIONS = ["--encoder", "tu-resnet10t", "--view-size", "32", "--batch-size", "8", "--epochs", "12", "--seed", "3",
           "--checkpoint-steps", "3", "--device", "cpu", "--threads", "1"]  # fmt: skip


def command(shards: Path, out: Path, ranks: int) -> list[str]:
    run = [sys.executable]
    if ranks > 1:
        run += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [*run, str(REPOSITORY / "train.py"), str(shards), "--out", str(out), *OPTIONS]


def finish(shards: Path, out: Path, ranks: int) -> None:
    """Begin or go on, and run to the end."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run([*command(shards, out, ranks), "--resume"], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]


def descendants(process: int) -> list[int]:
    """A process and all that it started, and those started: torchrun puts its workers into sessions of their own."""
    found = [process]
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):  # a thread that has ended since
            found += [each for child in task.read_text().split() for each in descendants(int(child))]
    return found


def interrupted(shards: Path, out: Path, ranks: int, kind: signal.Signals, after: float) -> str:
    """Begin or go on, and send the signal after some seconds (SIGKILL to all processes, as a lost machine would)."""
    child = subprocess.Popen(
        [*command(shards, out, ranks), "--resume"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        child.wait(after)
    except subprocess.TimeoutExpired:
        for process in descendants(child.pid) if kind == signal.SIGKILL else [child.pid]:
            os.kill(process, kind)
        child.wait()
        newest = max((path.stem for path in (out / "checkpoints").glob("step-*.pt")), default="nothing saved")
        return f"{newest}, exit code {child.returncode}"
    assert child.returncode == 0, "the run failed by itself"
    return "had ended"


def main() -> dict[str, Any]:
    """For each number of ranks one run, interrupted again and again; where it comes to its end, it begins anew."""
    draw = random.Random(SEED)
    told: list[dict[str, Any]] = []
    undisturbed = {}
    with tempfile.TemporaryDirectory() as folder:
        shards = make_set(Path(folder) / "set", {"train": 64})
        for ranks, kinds in INTERRUPTIONS.items():
            calm, out = Path(folder) / f"calm{ranks}", Path(folder) / f"killed{ranks}"
            begin = time.perf_counter()
            finish(shards, calm, ranks)
            undisturbed[str(ranks)] = seconds = round(time.perf_counter() - begin, 1)
            expected = load_file(calm / "encoder.safetensors")
            signals = [kind for kind, count in kinds.items() for _ in range(count)]
            draw.shuffle(signals)
            while signals:
                kind = signals[-1]
                after = draw.uniform(0.3, 1.0) * seconds  # the first part is spent on imports
                state = interrupted(shards, out, ranks, kind, after)
                told.append({"ranks": ranks, "signal": kind.name, "after_s": round(after, 2), "state": state})
                if state != "had ended":
                    signals.pop()
                else:
                    assert same(load_file(out / "encoder.safetensors"), expected), told
                    shutil.rmtree(out)
            finish(shards, out, ranks)
            assert same(load_file(out / "encoder.safetensors"), expected), told
    happened = [entry for entry in told if entry["state"] != "had ended"]
    return {
        "outcome": f"{len(happened)} interruptions on 1 and 2 ranks: final weights bit-identical",
        "n": len(happened),
        "undisturbed_s": undisturbed,
        "interruptions": told,
    }


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one)
