"""recipes/slurm/train.sh really trains here; `srun` and `scontrol` are small stand-ins, for want of a scheduler."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pipeline.making import make_set

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "recipes" / "slurm" / "train.sh"

# srun: its own options first, then the command, once a node; USR1 is handed on, TERM ends all, as srun does
SRUN = """#!/usr/bin/env bash
while [[ $1 == -* ]]; do shift; done
if [[ -n ${ONLY_TELL:-} ]]; then printf '%s\\n' "$@" > "$ONLY_TELL"; exit "${CODE:-0}"; fi
tasks=()
for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do SLURM_NODEID=$node "$@" & tasks+=($!); done
trap 'kill -USR1 "${tasks[@]}"' USR1
trap 'kill -KILL "${tasks[@]}"' TERM
code=0
for task in "${tasks[@]}"; do
    wait "$task" || code=$?
    while kill -0 "$task" 2>/dev/null; do code=0; wait "$task" || code=$?; done
done
exit $code
"""
SCONTROL = """#!/usr/bin/env bash
case "$1" in
show) for ((k = 0; k < SLURM_JOB_NUM_NODES; k++)); do echo localhost; done ;;
requeue) echo "$2" >> "$REQUEUED" ;;
esac
"""


@pytest.fixture
def job(tmp_path):
    """The environment of a job on one node without a GPU."""
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (stubs / name).write_text(text)
        (stubs / name).chmod(0o755)
    return os.environ | {
        "PATH": f"{stubs}:{os.environ['PATH']}", "REQUEUED": str(tmp_path / "requeued"),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_NUM_NODES": "1", "SLURM_SUBMIT_DIR": str(ROOT),
        "BANDSTREAM_BIN": str(Path(sys.executable).parent), "SLURM_CPUS_PER_TASK": "1",
    }  # fmt: skip


def test_a_job_that_is_told_to_leave_is_queued_again_and_ends(tmp_path, job):
    shards, out, requeued = make_set(tmp_path / "set", {"train": 16}), tmp_path / "run", tmp_path / "requeued"
    (tmp_path / "tiny.toml").write_text('encoder = "cnn"\nvalidate_epochs = 0\n')
    words = [str(SCRIPT), str(shards), "--out", str(out), "--recipe", str(tmp_path / "tiny.toml"), "--device", "cpu",
             "--batch-size", "8", "--view-size", "32", "--epochs", "40", "--threads", "1"]  # fmt: skip
    child = subprocess.Popen(words, env=job, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while not list(out.glob("checkpoints/step-*.pt")):
        assert child.poll() is None and time.monotonic() < deadline, child.communicate()[0]
        time.sleep(0.01)
    child.send_signal(signal.SIGUSR1)  # what --signal=B:USR1@120 sends to this script alone
    told = child.communicate(timeout=120)[0]
    assert child.returncode == 143 and "go on with --resume" in told, told
    assert requeued.read_text().split() == [job["SLURM_JOB_ID"]]
    assert not (out / "summary.json").exists()
    again = subprocess.run(words, env=job, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and "resumed at step" in again.stdout, again.stderr
    assert json.loads((out / "summary.json").read_text())["steps"] == 80
    assert requeued.read_text().split() == [job["SLURM_JOB_ID"]]  # not again: it is done


@pytest.mark.parametrize(("code", "left"), [(0, 0), (1, 1), (143, 143)])
def test_what_srun_is_given_on_several_nodes_and_what_its_end_means(tmp_path, job, code, left):
    told = tmp_path / "told"
    job |= {"SLURM_JOB_NUM_NODES": "3", "SLURM_GPUS_ON_NODE": "8", "ONLY_TELL": str(told), "CODE": str(code)}
    result = subprocess.run([SCRIPT, "set with blanks", "--out", "run"], env=job, capture_output=True, check=False)
    assert result.returncode == left
    assert (tmp_path / "requeued").exists() == (code == 143)
    words = told.read_text().splitlines()
    at = dict(itertools.pairwise(words))
    assert (at["--nnodes"], at["--nproc-per-node"], at["--rdzv-id"]) == ("3", "8", job["SLURM_JOB_ID"])
    assert at["--rdzv-endpoint"].startswith("localhost:") and "SIGUSR1" in at["--signals-to-handle"]
    assert words[-5:] == [str(ROOT / "train.py"), "set with blanks", "--out", "run", "--resume"]


def test_the_script_asks_the_scheduler_for_notice_and_for_requeueing():
    lines = SCRIPT.read_text().splitlines()
    assert {"#SBATCH --signal=B:USR1@120", "#SBATCH --requeue", "#SBATCH --open-mode=append"} <= set(lines)
    for script in SCRIPT.parent.glob("*.sh"):
        subprocess.run(["bash", "-n", script], check=True)
        assert os.access(script, os.X_OK)
