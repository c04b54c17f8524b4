#!/usr/bin/env bash
# Trains on TPU slices of a GKE cluster: XPK makes a JobSet of the container.
#
# A JobSet restarts its processes after a failure, and the run resumes from its
# newest checkpoint. XPK restarts for exit codes from 127 on; 75, of a process
# that lost another one or hung, is added.
#
#   PROJECT=my-project ZONE=us-east5-a CLUSTER=my-cluster BUCKET=gs://my-bucket \
#     IMAGE=REGISTRY/sculpt4d launch/clusters/gke_xpk.sh
#
# The run reads and writes the bucket directly; the cluster's service account
# needs the role Storage Object User on it.
#
# Variables (defaults in brackets):
#   PROJECT   Google Cloud project.
#   ZONE      Zone of the cluster.
#   CLUSTER   GKE cluster made by `xpk cluster create`.
#   IMAGE     Container of launch/clusters/Dockerfile, pushed to a registry.
#   BUCKET    gs://..., contains the run's folder.
#   NAME      Name of the workload [sculpt4d].
#   TYPE      Accelerator, counted as Google does [v5p-128: 64 chips].
#   SLICES    Slices of that type; config.mesh.data is a multiple [1].
#   WORKDIR   The run's folder [BUCKET/runs/NAME].
#   RESTARTS  Largest number of restarts of the JobSet [20].
#   GRACE     Seconds to save in when a machine is drained; spot has 25 [300].
#   CONFIG    Preset [configs/pods.py:v5p-64].
#   EXTRA     More flags of launch.train [].
#   DRY_RUN   1 prints the command instead of running it [0].
set -euo pipefail

: "${PROJECT:?name a Google Cloud project}"
: "${ZONE:?name a zone}"
: "${CLUSTER:?name a GKE cluster}"
: "${IMAGE:?name a container image}"
: "${BUCKET:?name a bucket, gs://...}"
NAME=${NAME:-sculpt4d}
TYPE=${TYPE:-v5p-128}
SLICES=${SLICES:-1}
WORKDIR=${WORKDIR:-$BUCKET/runs/$NAME}
RESTARTS=${RESTARTS:-20}
GRACE=${GRACE:-300}
CONFIG=${CONFIG:-configs/pods.py:v5p-64}
EXTRA=${EXTRA:-}
DRY_RUN=${DRY_RUN:-0}

command="exec python -m launch.train --distributed=auto --config=$CONFIG"
command+=" --workdir=$(printf '%q' "$WORKDIR") $EXTRA"

xpk=(xpk workload create --project="$PROJECT" --zone="$ZONE"
  --cluster="$CLUSTER" --workload="$NAME" --docker-image="$IMAGE"
  --tpu-type="$TYPE" --num-slices="$SLICES" --max-restarts="$RESTARTS"
  --restart-on-exit-codes=75 --termination-grace-period-seconds="$GRACE"
  --command="$command")
if [[ $DRY_RUN == 1 ]]; then
  printf '%q ' "${xpk[@]}"
  echo
else
  "${xpk[@]}"
fi
