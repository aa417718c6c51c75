#!/usr/bin/env bash
# The loop, or any other command, on several nodes of a Slurm cluster that share a disk:
#
#   sbatch --nodes=4 deploy/slurm.sh wildshape selftrain cluster=nodes category=deer template=deer.template run=deer
#
# Starts a Ray head on the first node and a worker on every node, runs the command, and ends with its exit code. All of
# it ends with the job, whatever happens; sent again, the command goes on where it was.
# Needs an environment with wildshape[metrics] that is active where sbatch is called, on a disk that all nodes see.
#SBATCH --job-name=wildshape
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@60
set -euo pipefail
[ $# -gt 0 ] || { echo "usage: sbatch deploy/slurm.sh wildshape <command> key=value ..." >&2; exit 2; }

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=$((20000 + SLURM_JOB_ID % 10000)) # two jobs on one node must not meet
export RAY_ADDRESS=${nodes[0]}:$port   # resources.address=auto finds it
# Other users reach these ports too: only who knows the job's secret may run code here.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN
export RAY_USAGE_STATS_ENABLED=0
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not take it from the job by itself

started=()
finish() { # the nodes' Ray ends with its srun, and with it what it has started
    trap - EXIT TERM INT
    kill "${started[@]}" 2>/dev/null || true
    wait || true
}
trap finish EXIT
trap 'exit 143' TERM INT

start() { # NODE ARGUMENTS...: a part of Ray on a node, until this script ends
    local node=$1
    shift
    srun --nodes=1 --ntasks=1 --overlap --nodelist="$node" ray start --block "$@" &
    started+=($!)
}

wait_for() { # N: until so many parts of Ray are up; a part that ends meanwhile ends it all
    local up=0
    for ((second = 0; second < 300; second++)); do
        up=$(python -c 'import ray; ray.init("auto", log_to_driver=False); print(sum(n["Alive"] for n in ray.nodes()))' \
            2>/dev/null || echo 0)
        [ "$up" -ge "$1" ] && return
        for process in "${started[@]}"; do
            kill -0 "$process" 2>/dev/null || { echo "Ray did not start on a node: see above" >&2; exit 1; }
        done
        sleep 1
    done
    echo "only $up of $1 parts of Ray came up" >&2
    exit 1
}

# The head computes nothing, so that it outlives a worker that runs out of memory. Its node has a worker too, which
# would take the same names for its sockets if it began at the same time.
start "${nodes[0]}" --head --port="$port" --num-cpus=0 --num-gpus=0 --object-store-memory=1000000000 \
    --include-dashboard=false
wait_for 1
for node in "${nodes[@]}"; do
    start "$node" --address="$RAY_ADDRESS" --num-cpus="${SLURM_CPUS_PER_TASK:-$(nproc)}"
done
wait_for $((${#nodes[@]} + 1))

"$@" & # in the background, so that a signal is heard while it runs
command=$!
started+=("$command")
wait "$command"
