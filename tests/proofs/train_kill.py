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
from training.monitor import read_metrics

REPOSITORY = Path(__file__).parents[2]
SEED = 0
INTERRUPTIONS = {  # by method and ranks; 20 kills and 5 notices in all
    ("simclr", 1): {signal.SIGKILL: 4, signal.SIGTERM: 1},
    ("byol", 1): {signal.SIGKILL: 5, signal.SIGTERM: 1},
    ("moco-v2", 1): {signal.SIGKILL: 5, signal.SIGTERM: 1},
    ("moco-v2", 2): {signal.SIGKILL: 3, signal.SIGTERM: 1},
    ("byol", 2): {signal.SIGKILL: 3, signal.SIGTERM: 1},
}
OPTIONS = ["--encoder", "tu-resnet10t", "--view-size", "32", "--batch-size", "8", "--epochs", "12", "--seed", "3",
           "--checkpoint-steps", "3", "--device", "cpu", "--threads", "1"]  # fmt: skip
RECIPE = """
ema = 0.9
accumulate = 2
schedule = "plateau"
plateau_patience = 1
validate_epochs = 2
log_steps = 1
"""
QUEUE = "[objective]\nqueue = 64\n"


def command(shards: Path, out: Path, method: str, ranks: int) -> list[str]:
    run = [sys.executable]
    if ranks > 1:
        run += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    recipe = shards.parent / f"{method}.toml"
    recipe.write_text(RECIPE + QUEUE * (method == "moco-v2"))
    said = [str(REPOSITORY / "train.py"), str(shards), "--out", str(out), "--method", method]
    return [*run, *said, "--recipe", str(recipe), *OPTIONS]


def finish(shards: Path, out: Path, method: str, ranks: int) -> None:
    """Begin or go on, and run to the end."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run([*command(shards, out, method, ranks), "--resume"], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]


def descendants(process: int) -> list[int]:
    """A process and all that it started, and those started: torchrun puts its workers into sessions of their own."""
    found = [process]
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):  # a thread that has ended since
            found += [each for child in task.read_text().split() for each in descendants(int(child))]
    return found


def interrupted(shards: Path, out: Path, method: str, ranks: int, kind: signal.Signals, after: float) -> str:
    """Begin or go on, and send the signal after some seconds (SIGKILL to all processes, as a lost machine would)."""
    child = subprocess.Popen(
        [*command(shards, out, method, ranks), "--resume"],
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
        shards = make_set(Path(folder) / "set", {"train": 64, "val": 16})
        for (method, ranks), kinds in INTERRUPTIONS.items():
            calm, out = (Path(folder) / f"{state}-{method}-{ranks}" for state in ("calm", "killed"))
            begin = time.perf_counter()
            finish(shards, calm, method, ranks)
            undisturbed[f"{method}, {ranks}"] = seconds = round(time.perf_counter() - begin, 1)
            expected = load_file(calm / "encoder.safetensors")
            signals = [kind for kind, count in kinds.items() for _ in range(count)]
            draw.shuffle(signals)
            while signals:
                kind = signals[-1]
                after = draw.uniform(0.3, 1.0) * seconds  # the first part is spent on imports
                state = interrupted(shards, out, method, ranks, kind, after)
                told.append({"method": method, "ranks": ranks, "signal": kind.name, "after_s": round(after, 2), "state": state})
                if state != "had ended":
                    signals.pop()
                else:
                    assert same(load_file(out / "encoder.safetensors"), expected), told
                    assert validations(out) == validations(calm), told
                    shutil.rmtree(out)
            finish(shards, out, method, ranks)
            assert same(load_file(out / "encoder.safetensors"), expected), told
            assert validations(out) == validations(calm), told
    happened = [entry for entry in told if entry["state"] != "had ended"]
    return {
        "outcome": f"{len(happened)} interruptions of {len({m for m, _ in INTERRUPTIONS})} methods on 1 and 2 ranks: "
        "final weights and validations bit-identical",
        "n": len(happened),
        "undisturbed_s": undisturbed,
        "interruptions": told,
    }


def validations(out: Path) -> list[tuple[int, float, float]]:
    """What every validation found: step, loss, score of neighbours."""
    lines = read_metrics(out / "metrics.jsonl")
    return [(line["step"], line["val_loss"], line["knn"]) for line in lines if "val_loss" in line]


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one)
