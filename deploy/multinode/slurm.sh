#!/usr/bin/env bash
# A topology as one Slurm job: the first node of the allocation gets the servers, frontend and processor, the second
# encode and prefill, the third decode.
#
#   sbatch --nodes=3 --exclusive deploy/multinode/slurm.sh configs/local-e2p2d2.yaml
#
# Ending the job (scancel, or its time limit after --signal) drains the topology and ends everything on every node.
#SBATCH --job-name=triptych
#SBATCH --signal=B:TERM@120
set -euo pipefail

topology=${1:?"usage: sbatch --nodes=3 slurm.sh TOPOLOGY.yaml"}
triptych=${TRIPTYCH:-triptych}
e=${ENCODE:-2} p=${PREFILL:-2} d=${DECODE:-2}

mapfile -t names < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
[ "${#names[@]}" -eq 3 ] || { echo "this script places roles on 3 nodes, the job has ${#names[@]}" >&2; exit 2; }

address() {
  getent ahostsv4 "$1" | awk 'NR == 1 { print $1 }'
}

list=$(mktemp --suffix=.yaml)
trap 'rm -f "$list"' EXIT
cat > "$list" <<YAML
launch: srun --overlap --nodes=1 --ntasks=1 --nodelist={node}
nodes:
  ${names[0]}: {address: $(address "${names[0]}"), servers: true, frontend: 1, processor: 1}
  ${names[1]}: {address: $(address "${names[1]}"), encode: $e, prefill: $p}
  ${names[2]}: {address: $(address "${names[2]}"), decode: $d}
YAML
cat "$list"

"$triptych" nodes -n "$list" -c "$topology" &
launcher=$!
trap 'kill -TERM "$launcher"' TERM INT
# A signal ends `wait`, not the launcher, which drains now.
while :; do
  wait "$launcher" && status=0 || status=$?
  kill -0 "$launcher" 2> /dev/null || exit "$status"
done
