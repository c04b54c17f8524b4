#!/usr/bin/env bash
#SBATCH --job-name=sculpt4d
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#
# Trains on GPUs of a SLURM cluster, with one process per GPU.
#
# SLURM sends SIGTERM two minutes before the time limit; the run then saves and
# ends with code 143, and the job queues again and resumes; also after a process
# or a node was lost. More nodes: sbatch --nodes=4 ...
#
# A task must see all GPUs of its node: JAX takes the one with the task's number
# there, which --gpus-per-task would hide.
#
#   sbatch launch/clusters/slurm_gpu.sh
#
# Variables (defaults in brackets):
#   VENV      Environment with requirements.txt and jax[cuda12] [.venv].
#   CONFIG    Preset; its mesh must match the GPUs [configs/pods.py:gpu-8].
#   WORKDIR   The run's folder, on a file system of all nodes, or s3://... or
#             gs://... [runs/NAME of job].
#   RESTARTS  Largest number of restarts of the job after a fault [20].
#   EXTRA     More flags of launch.train [].
#   DRY_RUN   1 prints the command instead of running it [0].
set -euo pipefail

VENV=${VENV:-.venv}
CONFIG=${CONFIG:-configs/pods.py:gpu-8}
WORKDIR=${WORKDIR:-runs/${SLURM_JOB_NAME:-sculpt4d}}
RESTARTS=${RESTARTS:-20}
EXTRA=${EXTRA:-}
DRY_RUN=${DRY_RUN:-0}

cd "${SLURM_SUBMIT_DIR:-.}"
# shellcheck disable=SC2206  # EXTRA has several flags.
# srun does not take the number of processors from sbatch.
step=(srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-12}"
  "$VENV/bin/python" -m launch.train
  --distributed=auto --config="$CONFIG" --workdir="$WORKDIR" $EXTRA)
if [[ $DRY_RUN == 1 ]]; then
  printf '%q ' "${step[@]}"
  echo
else
  code=0
  "${step[@]}" || code=$?
  # 143: the time is over, and the state saved. After scancel this script is
  # gone too, and nothing queues. 75, 134, 137: a process was lost, perhaps with
  # its node, or a step hung: restart on available nodes, but not for ever.
  restarts=${SLURM_RESTART_COUNT:-0}
  if ((code == 143)) \
    || ((restarts < RESTARTS && (code == 75 || code == 134 || code == 137)))
  then
    scontrol requeue "$SLURM_JOB_ID"
  fi
  exit "$code"
fi
