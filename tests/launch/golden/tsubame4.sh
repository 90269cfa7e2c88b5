#!/bin/bash
#$ -S /bin/bash
#$ -N a
#$ -l node_f=2
#$ -l h_rt=24:00:00
#$ -j y
#$ -o /dev/null
#$ -cwd

set -euo pipefail
job=/data/runs/a/jobs/0001
# A log of our own, since some schedulers show theirs only after the end.
exec >>"$job/log.txt" 2>&1 </dev/null
cd -- /home/me
set +u; source /etc/profile.d/modules.sh; set -u
module load cuda
module load openmpi
python=(/env/bin/python)
export PYTHONPATH="$job/code/src${PYTHONPATH:+:$PYTHONPATH}"
LLMJP_BEGAN="$(date +%s)"
export LLMJP_BEGAN

launch() {
    # ABCI 2.0 gives the file of hosts another name than Grid Engine's own.
    if [ -n "${SGE_JOB_HOSTLIST:-}" ]; then sort -u "$SGE_JOB_HOSTLIST"; else cut -d' ' -f1 "$PE_HOSTFILE" | sort -u; fi \
        >"$job/hosts-$LLMJP_ATTEMPT"
    exec mpirun -np 2 --npernode 1 --hostfile "$job/hosts-$LLMJP_ATTEMPT" \
        -bind-to none \
        -x PATH -x LD_LIBRARY_PATH -x PYTHONPATH -x LLMJP_ATTEMPT -x LLMJP_BEGAN \
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
