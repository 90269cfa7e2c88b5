#!/bin/bash
#SBATCH --job-name=a
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --partition=gpu
#SBATCH --time=168:00:00
#SBATCH --signal=USR1@1200
#SBATCH --no-requeue
#SBATCH --open-mode=append
#SBATCH --output=/dev/null

set -euo pipefail
job=/data/runs/a/jobs/0001
# A log of our own, since some schedulers show theirs only after the end.
exec >>"$job/log.txt" 2>&1 </dev/null
cd -- /home/me
module load cuda/12.1
module load nccl/2.20.5
export NCCL_IB_HCA=mlx5_0:1,mlx5_1:1,mlx5_4:1,mlx5_5:1
export NCCL_IB_GID_INDEX=3
export NCCL_IB_TC=106
export NCCL_IB_PCI_RELAXED_ORDERING=1
export UCX_NET_DEVICES=mlx5_0:1,mlx5_1:1,mlx5_4:1,mlx5_5:1
export UCX_MAX_EAGER_RAILS=4
export UCX_MAX_RNDV_RAILS=4
export UCX_IB_GPU_DIRECT_RDMA=1
python=(/env/bin/python)
export PYTHONPATH="$job/code/src${PYTHONPATH:+:$PYTHONPATH}"
LLMJP_BEGAN="$(date +%s)"
export LLMJP_BEGAN

# --wait: should a node's process end early and the others not notice, they are ended after so many seconds.
launch() {
    exec srun --nodes=2 --ntasks=2 --ntasks-per-node=1 \
        --kill-on-bad-exit=0 --wait=120 --cpu-bind=none \
        "${python[@]}" -m llmjp_train.commands.train_node "$job"
}


# It hears of signals from this shell: one must not end it before it has judged and written down.
arbiter() { (trap '' TERM USR1 USR2; exec "${python[@]}" -m llmjp_train.launch.arbiter "$@"); }

# Signals reach this shell too: pass them on, and start nothing new after one.
child=""
asked=""
forward() {
    asked="$asked $1"
    if [ -n "$child" ]; then kill -s "$1" "$child" 2>/dev/null || true; fi
}
trap 'forward TERM' TERM
trap 'forward USR1' USR1 USR2

while true; do
    # A name for this attempt that all nodes share; 3: there is nothing to do any more.
    code=0
    LLMJP_ATTEMPT="$(arbiter begin "$job" "$asked")" || code=$?
    if [ "$code" -eq 3 ]; then exit 0; fi
    if [ "$code" -ne 0 ]; then exit "$code"; fi
    export LLMJP_ATTEMPT
    launch &
    child=$!
    # A signal ends a wait with its own number, also where the child ends in that moment.
    while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done
    code=0
    wait "$child" || code=$?
    child=""
    # What it meant. 10: start the ranks again; 11: queue this job again; else the job's own code.
    verdict=0
    arbiter end "$job" "$code" "$asked" || verdict=$?
    if [ "$verdict" -eq 10 ]; then continue; fi
    exit "$verdict"
done
