#!/usr/bin/env bash
#SBATCH --job-name=bandstream-ingest
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --mem-per-cpu=1G
#SBATCH --time=04:00:00
#SBATCH --requeue
#
#   sbatch recipes/slurm/ingest.sh bigearthnet /data/BigEarthNet /data/shards [any option of `bandstream ingest`]
#
# An ingest on all nodes of a job, through Dask: a scheduler and the ingest itself on the first, workers on every one, a
# process a core. Archive, shard set and checkout (with its .venv) lie on a file system that all nodes share. A job that
# is preempted, or runs out of time, goes on when it is submitted again. An address in --scheduler's place is a file.
set -euo pipefail

export OMP_NUM_THREADS=1
bin=${BANDSTREAM_BIN:-$SLURM_SUBMIT_DIR/.venv/bin}
own=$(mktemp -d "$SLURM_SUBMIT_DIR/.dask-$SLURM_JOB_ID-XXXX")
trap 'kill $(jobs -p) 2>/dev/null; wait; rm -rf "$own"' EXIT

"$bin/dask" scheduler --host "$(hostname -f)" --port 0 --no-dashboard --scheduler-file "$own/scheduler.json" \
    > "$own/scheduler.log" 2>&1 &
srun "$bin/dask" worker --nworkers "$SLURM_CPUS_PER_TASK" --nthreads 1 --no-dashboard --death-timeout 120 \
    --local-directory "${TMPDIR:-/tmp}" --scheduler-file "$own/scheduler.json" > "$own/workers.log" 2>&1 &

"$bin/bandstream" ingest "$@" --scheduler "$own/scheduler.json"
