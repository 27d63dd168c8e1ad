#!/usr/bin/env bash
#SBATCH --job-name=bandstream-train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --mem-per-cpu=4G
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#
#   sbatch recipes/slurm/train.sh /data/shards --out /data/runs/one --recipe recipes/simclr-resnet18.toml [...]
#   sbatch --nodes 4 recipes/slurm/train.sh ...            batch sizes are global: no other options are needed
#
# Pretraining on all GPUs of all nodes of a job: a torchrun a node, started by srun. Shard set, run and checkout (with
# its .venv) lie where all nodes can read them. A job that nears its time limit, or is preempted, is told so 120 s ahead
# (--signal=B:USR1@SECONDS): the run saves after its step, and the job is queued again and goes on where it stood, until
# it is done (exit 0) or fails (what train.py says). Submitted again by hand it goes on, too.
set -uo pipefail

bin=${BANDSTREAM_BIN:-$SLURM_SUBMIT_DIR/.venv/bin}
processes=${SLURM_GPUS_ON_NODE:-1}
nodes=${SLURM_JOB_NUM_NODES:-1}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=$(((${SLURM_CPUS_PER_TASK:-$processes} + processes - 1) / processes))

# srun hands USR1 on to its tasks, but would end them for TERM: whatever comes is handed on as USR1
told= step=
trap 'told=1; [[ -n $step ]] && kill -USR1 "$step" 2>/dev/null' USR1 TERM

# Without --kill-on-bad-exit=0 and --wait=0 the first process that leaves would have the one that is saving killed.
# torchrun hands the notice on to the processes, and gives them longer than its usual 30 s.
srun --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=0 \
    "$bin/python" -m torch.distributed.run \
    --nnodes "$nodes" --nproc-per-node "$processes" --max-restarts 0 \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$first:$((20000 + SLURM_JOB_ID % 20000))" \
    --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 --shutdown-timeout 110 \
    "$SLURM_SUBMIT_DIR/train.py" "$@" --resume &
step=$!

code=0
wait "$step" || code=$?
while kill -0 "$step" 2>/dev/null; do # a signal ends the wait, not the step
    code=0
    wait "$step" || code=$?
done

# 143 is train.py's own "saved, to be gone on with"; torchrun makes a 1 of it
if [[ $code -eq 143 || (-n $told && $code -ne 0) ]]; then
    echo "stopped by the scheduler (exit code $code): queued again, to go on" >&2
    scontrol requeue "$SLURM_JOB_ID"
    exit 143
fi
exit "$code"
