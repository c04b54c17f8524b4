#!/usr/bin/env bash
# Trains on the GPUs of one machine, in one process.
#
#   launch/clusters/single_gpu.sh
#
# Variables (defaults in brackets):
#   VENV      Virtual environment, made if missing [.venv].
#   CONFIG    Preset [configs/small.py].
#   WORKDIR   The run's folder [runs/gpu].
#   GPUS      Devices to use, for instance 0 or 0,1 [all].
#   MEMORY    Share of the memory that JAX preallocates [0.92].
#   EXTRA     More flags of launch.train [].
#   DRY_RUN   1 prints the commands instead of running them [0].
set -euo pipefail

VENV=${VENV:-.venv}
CONFIG=${CONFIG:-configs/small.py}
WORKDIR=${WORKDIR:-runs/gpu}
GPUS=${GPUS:-}
MEMORY=${MEMORY:-0.92}
EXTRA=${EXTRA:-}
DRY_RUN=${DRY_RUN:-0}

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
run() {
  if [[ $DRY_RUN == 1 ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

if [[ ! -x $VENV/bin/python ]]; then
  run python3 -m venv "$VENV"
  run "$VENV/bin/pip" install -q -r requirements.txt 'jax[cuda12]'
fi
variables=(XLA_PYTHON_CLIENT_MEM_FRACTION="$MEMORY")
if [[ -n $GPUS ]]; then variables+=(CUDA_VISIBLE_DEVICES="$GPUS"); fi
# shellcheck disable=SC2206  # EXTRA has several flags.
flags=(--config="$CONFIG" --workdir="$WORKDIR" $EXTRA)
run env "${variables[@]}" "$VENV/bin/python" -m launch.train "${flags[@]}"
