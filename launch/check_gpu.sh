#!/bin/sh
# Checks a GPU in ten minutes: kernels, times and memory of the released size, a
# little training. Needs no network; resumes; writes out/check_gpu/summary.md.
#
#   launch/check_gpu.sh                      # all of it
#   launch/check_gpu.sh --only=kernels       # one step
#   launch/check_gpu.sh --dry                # the same on a CPU, with tiny sizes
set -eu
cd "$(dirname "$0")/.."
PYTHON="${PYTHON:-}"
if [ -z "$PYTHON" ]; then
  PYTHON=python3
  [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}"
# Memory is measured: it must not all be taken at the start.
export XLA_PYTHON_CLIENT_PREALLOCATE=false
exec "$PYTHON" -m benchmarks.check_gpu "$@"
