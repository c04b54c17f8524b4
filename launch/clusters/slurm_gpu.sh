#!/usr/bin/env bash
#SBATCH --job-name=sculpt4d
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=12
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#
# Trains on GPUs of a SLURM cluster, with one process per GPU.
#
# SLURM sends SIGTERM two minutes before the time limit; the run then saves and
# ends, and --requeue lets it resume. More nodes: sbatch --nodes=4 ...
#
#   sbatch launch/clusters/slurm_gpu.sh
#
# Variables (defaults in brackets):
#   VENV      Environment with requirements.txt and jax[cuda12] [.venv].
#   CONFIG    Preset; its mesh must match the GPUs [configs/pods.py:gpu-8].
#   WORKDIR   The run's folder, on a file system of all nodes, or s3://... or
#             gs://... [runs/NAME of job].
#   EXTRA     More flags of launch.train [].
#   DRY_RUN   1 prints the command instead of running it [0].
set -euo pipefail

VENV=${VENV:-.venv}
CONFIG=${CONFIG:-configs/pods.py:gpu-8}
WORKDIR=${WORKDIR:-runs/${SLURM_JOB_NAME:-sculpt4d}}
EXTRA=${EXTRA:-}
DRY_RUN=${DRY_RUN:-0}

cd "${SLURM_SUBMIT_DIR:-.}"
# shellcheck disable=SC2206  # EXTRA has several flags.
step=(srun --kill-on-bad-exit=1 "$VENV/bin/python" -m launch.train
  --distributed=auto --config="$CONFIG" --workdir="$WORKDIR" $EXTRA)
if [[ $DRY_RUN == 1 ]]; then
  printf '%q ' "${step[@]}"
  echo
else
  code=0
  "${step[@]}" || code=$?
  # A process was lost, perhaps with its node, or a step hung: restart on
  # available nodes.
  if ((code == 75 || code == 134 || code == 137)); then
    scontrol requeue "$SLURM_JOB_ID"
  fi
  exit "$code"
fi
