#!/usr/bin/env bash
# Trains on machines rented by SkyPilot from any cloud.
#
# SkyPilot (pip install skypilot) restarts a managed job after its machine was
# preempted; the run resumes from the newest checkpoint in the bucket.
#
#   BUCKET=s3://my-bucket launch/clusters/skypilot.sh
#
# Variables (defaults in brackets):
#   BUCKET       s3://... or gs://..., contains the run's folder.
#   NAME         Name of the job [sculpt4d].
#   ACCELERATOR  Kind and number per machine [H100:8].
#   NODES        Number of machines; the mesh must match all accelerators [1].
#   CONFIG       Preset [configs/pods.py:gpu-8].
#   WORKDIR      The run's folder [BUCKET/runs/NAME].
#   PYTHON       Version of Python, which uv fetches: images have 3.10 [3.13].
#   SPOT         1 requests spot machines, cheaper and preemptible [1].
#   EXTRA        More flags of launch.train [].
#   DRY_RUN      1 prints the task and the command, and starts nothing [0].
set -euo pipefail

: "${BUCKET:?name a bucket, s3://... or gs://...}"
NAME=${NAME:-sculpt4d}
ACCELERATOR=${ACCELERATOR:-H100:8}
NODES=${NODES:-1}
CONFIG=${CONFIG:-configs/pods.py:gpu-8}
WORKDIR=${WORKDIR:-$BUCKET/runs/$NAME}
PYTHON=${PYTHON:-3.13}
SPOT=${SPOT:-1}
EXTRA=${EXTRA:-}
DRY_RUN=${DRY_RUN:-0}

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder=$(mktemp -d)
task=$folder/task.yaml
trap 'rm -r "$folder"' EXIT
quoted=$(printf '%q' "$WORKDIR")
spot=false
if [[ $SPOT == 1 ]]; then spot=true; fi

# One process per machine uses all its accelerators; SkyPilot numbers machines.
cat > "$task" <<TASK
name: $NAME
num_nodes: $NODES
workdir: .
resources:
  accelerators: $ACCELERATOR
  use_spot: $spot
  job_recovery:
    strategy: EAGER_NEXT_REGION
    recover_on_exit_codes: [75, 134]
setup: |
  curl -LsSf https://astral.sh/uv/install.sh \
    | env UV_INSTALL_DIR=\$HOME/uv INSTALLER_NO_MODIFY_PATH=1 sh
  [ -x .venv/bin/python ] || ~/uv/uv venv -q --python $PYTHON
  ~/uv/uv pip install -q --python .venv/bin/python -r requirements.txt \
    'jax[cuda12]' gcsfs s3fs array-record grain
run: |
  first=\$(echo "\$SKYPILOT_NODE_IPS" | head -n 1)
  .venv/bin/python -m launch.train --config=$CONFIG --workdir=$quoted \
    --distributed=flags --coordinator="\$first:12355" \
    --num_processes="\$SKYPILOT_NUM_NODES" --process_id="\$SKYPILOT_NODE_RANK" \
    $EXTRA
TASK

if [[ $DRY_RUN == 1 ]]; then
  cat "$task"
  echo "sky jobs launch --yes $task"
else
  sky jobs launch --yes "$task"
fi
