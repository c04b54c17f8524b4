#!/usr/bin/env bash
# Trains on a TPU slice of Google Cloud, requested as a queued resource.
#
# The slice's startup script installs the code and starts the run, so the run
# resumes automatically when the slice returns after an interruption.
#
#   PROJECT=my-project ZONE=us-east5-a BUCKET=gs://my-bucket \
#     launch/clusters/tpu_vm.sh
#
# Variables (defaults in brackets):
#   PROJECT   Google Cloud project.
#   ZONE      Zone with the accelerator.
#   BUCKET    gs://...: the code is copied there, the run's folder lies there;
#             read and written directly, nothing is mounted.
#   NAME      Name of the queued resource [sculpt4d].
#   TYPE      Accelerator, counted as Google does [v5p-128: 64 chips].
#   RUNTIME   Image of the machines [v2-alpha-tpuv5].
#   CONFIG    Preset [configs/pods.py:v5p-64].
#   WORKDIR   The run's folder [BUCKET/runs/NAME].
#   SLICES    Slices of that type; config.mesh.data is a multiple [1].
#   RESTARTS  Restarts after another machine was lost [20].
#   SPOT      1 requests spot capacity, cheaper and preemptible [1].
#   EXTRA     More flags of launch.train, such as --config.dit_training... [].
#   DRY_RUN   1 prints the commands instead of running them [0].
set -euo pipefail

: "${PROJECT:?name a Google Cloud project}"
: "${ZONE:?name a zone}"
: "${BUCKET:?name a bucket, gs://...}"
NAME=${NAME:-sculpt4d}
TYPE=${TYPE:-v5p-128}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5}
CONFIG=${CONFIG:-configs/pods.py:v5p-64}
WORKDIR=${WORKDIR:-$BUCKET/runs/$NAME}
SLICES=${SLICES:-1}
RESTARTS=${RESTARTS:-20}
SPOT=${SPOT:-1}
EXTRA=${EXTRA:-}
DRY_RUN=${DRY_RUN:-0}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
startup=$(mktemp)
trap 'rm -f "$startup"' EXIT

run() {
  if [[ $DRY_RUN == 1 ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# Startup script of every machine of the slice.
cat > "$startup" <<STARTUP
#!/usr/bin/env bash
set -euo pipefail
apt-get install -y -qq python3-venv
mkdir -p /opt/sculpt4d
gcloud storage cat $BUCKET/code/$NAME.tar.gz | tar -xz -C /opt/sculpt4d
cd /opt/sculpt4d
python3 -m venv .venv
.venv/bin/pip install -q -r requirements.txt 'jax[tpu]' gcsfs
# Codes 75 and 134 mean that another machine was lost or a step hung: all
# restart.
for ((start = 0; start <= $RESTARTS; start++)); do
  code=0
  .venv/bin/python -m launch.train --distributed=auto \\
    --config=$CONFIG --workdir=$WORKDIR $EXTRA || code=\$?
  if ((code != 75 && code != 134)); then break; fi
  sleep 20
done
exit "\$code"
STARTUP

archive=$BUCKET/code/$NAME.tar.gz
if [[ $DRY_RUN == 1 ]]; then
  echo "git archive HEAD | gzip | gcloud storage cp - $archive"
  cat "$startup"
else
  git -C "$root" archive HEAD | gzip | gcloud storage cp - "$archive"
fi
capacity=()
if [[ $SPOT == 1 ]]; then capacity=(--spot); fi
nodes=(--node-id="$NAME")
if ((SLICES > 1)); then
  nodes=(--node-prefix="$NAME" --node-count="$SLICES")
fi
run gcloud compute tpus queued-resources create "$NAME" \
  --project="$PROJECT" --zone="$ZONE" "${nodes[@]}" \
  --accelerator-type="$TYPE" --runtime-version="$RUNTIME" \
  --metadata-from-file=startup-script="$startup" \
  ${capacity[@]+"${capacity[@]}"}
