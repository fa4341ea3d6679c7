#!/usr/bin/env bash
# The whole data plane on a machine with one GPU or two, in about four minutes: correctness, lanes, and speed beside raw
# NIXL and a plain copy. Tables go into docs/performance-transfer.md.       benchmarks/transfer_gpu.sh OUTPUT_DIRECTORY
set -u
mkdir -p "${1:?where to write}"
out=$(realpath "$1")
cd "$(dirname "$0")/.." || exit
page=docs/performance-transfer.md
export PYTHONUNBUFFERED=1 UCX_WARN_UNUSED_ENV_VARS=n
bench() { # name, seconds, prefix…: the benchmark under a time limit, its table on screen, all of it in a file
    local name=$1 limit=$2
    shift 2
    echo "== $name"
    timeout "$limit" "$@" --json "$out/$name.json" --plot "$out/$name.svg" >"$out/$name.log" 2>&1 ||
        echo "$name: exit $?"
    sed -n '/raw us/,$p' "$out/$name.log"
    grep '^copy' "$out/$name.log"
}
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
nvidia-smi topo -m | head -4
run=(python3 -m benchmarks.transfer)
gpu=(--copy --extra --page "$page")
if nvidia-smi --list-gpus | grep -q "^GPU 1"; then
    bench gpu-gpu 80 "${run[@]}" --pairs cuda:0,cuda:1 --max-bytes $((1 << 30)) --rounds 200 "${gpu[@]}"
fi
echo "== tests"
timeout 120 python3 -m pytest tests/nixl_connect/test_gpu.py tests/nixl_connect/test_docs.py -q -s -p no:cacheprovider \
    >"$out/tests.log" 2>&1
grep -aE "Lane\(|GB/s with|passed|failed|Error" "$out/tests.log" | cut -c1-200
bench host-gpu 50 "${run[@]}" --pairs cpu,cuda:0 cuda:0,cpu --max-bytes $((64 << 20)) --bytes-per-point 5e8 --quick \
    "${gpu[@]}"
bench same-gpu 60 "${run[@]}" --pairs cuda:0,cuda:0 --max-bytes $((1 << 30)) --rounds 200 "${gpu[@]}"
bench host-two-cores 60 taskset -c 0,1 "${run[@]}" --max-bytes $((64 << 20)) --bytes-per-point 2e9 --rounds 200 \
    --idle-seconds 3
