#!/usr/bin/env bash
# Trains on a TPU slice of Google Cloud, requested as a queued resource.
#
# The slice's startup script installs the code and starts the run, so the run
# resumes automatically when a machine returns, after maintenance for instance.
# A preempted spot slice does not return: its request is "suspended" and has to
# be made again. RENEW=1 does so, for as long as this script runs.
#
#   PROJECT=my-project ZONE=us-east5-a BUCKET=gs://my-bucket \
#     launch/clusters/tpu_vm.sh
#
# The slice is paid for until its request is deleted; the last line that is
# printed does that.
#
# Variables (defaults in brackets):
#   PROJECT   Google Cloud project.
#   ZONE      Zone with the accelerator.
#   BUCKET    gs://...: the code is copied there, the run's folder lies there;
#             read and written directly, nothing is mounted.
#   NAME      Name of the queued resource [sculpt4d].
#   TYPE      Accelerator, counted as Google does [v5p-128: 64 chips].
#   RUNTIME   Image of the machines [that of TYPE].
#   PYTHON    Version of Python, which uv fetches: the images have 3.10 [3.13].
#   CONFIG    Preset [configs/pods.py:v5p-64].
#   WORKDIR   The run's folder [BUCKET/runs/NAME].
#   SLICES    Slices of that type; config.mesh.data is a multiple [1].
#   RESTARTS  Restarts after another machine was lost [20].
#   SPOT      1 requests spot capacity, cheaper and preemptible [1].
#   RENEW     1 waits, and requests a preempted slice again [0].
#   EXTRA     More flags of launch.train, such as --config.dit_training... [].
#   DRY_RUN   1 prints the commands instead of running them [0].
set -euo pipefail

: "${PROJECT:?name a Google Cloud project}"
: "${ZONE:?name a zone}"
: "${BUCKET:?name a bucket, gs://...}"
NAME=${NAME:-sculpt4d}
TYPE=${TYPE:-v5p-128}
RUNTIME=${RUNTIME:-}
PYTHON=${PYTHON:-3.13}
CONFIG=${CONFIG:-configs/pods.py:v5p-64}
WORKDIR=${WORKDIR:-$BUCKET/runs/$NAME}
SLICES=${SLICES:-1}
RESTARTS=${RESTARTS:-20}
SPOT=${SPOT:-1}
RENEW=${RENEW:-0}
EXTRA=${EXTRA:-}
DRY_RUN=${DRY_RUN:-0}

if [[ -z $RUNTIME ]]; then
  case $TYPE in
    v5p-*) RUNTIME=v2-alpha-tpuv5 ;;
    v5litepod-*) RUNTIME=v2-alpha-tpuv5-lite ;;
    v6e-*) RUNTIME=v2-alpha-tpuv6e ;;
    *) echo "RUNTIME: name the image for TYPE=$TYPE" >&2; exit 2 ;;
  esac
fi

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

# As a word of a script.
quoted=$(printf '%q' "$WORKDIR")

# Startup script of every machine of the slice. It runs as root, at every boot,
# without HOME, and next to other programs that use apt.
cat > "$startup" <<STARTUP
#!/usr/bin/env bash
set -euo pipefail
export HOME=/root
mkdir -p /opt/sculpt4d
gcloud storage cat $BUCKET/code/$NAME.tar.gz | tar -xz -C /opt/sculpt4d
cd /opt/sculpt4d
curl -LsSf https://astral.sh/uv/install.sh \\
  | env UV_INSTALL_DIR=/opt/uv INSTALLER_NO_MODIFY_PATH=1 sh
if [[ ! -x .venv/bin/python ]]; then /opt/uv/uv venv -q --python $PYTHON; fi
/opt/uv/uv pip install -q --python .venv/bin/python -r requirements.txt \\
  'jax[tpu]' gcsfs array-record grain
# Codes 75 and 134 mean that another machine was lost or a step hung: all
# restart.
for ((start = 0; start <= $RESTARTS; start++)); do
  code=0
  .venv/bin/python -m launch.train --distributed=auto \\
    --config=$CONFIG --workdir=$quoted $EXTRA || code=\$?
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
resource=(gcloud compute tpus queued-resources)
place=(--project="$PROJECT" --zone="$ZONE")
request() {
  run "${resource[@]}" create "$NAME" "${place[@]}" "${nodes[@]}" \
    --accelerator-type="$TYPE" --runtime-version="$RUNTIME" \
    --metadata-from-file=startup-script="$startup" \
    ${capacity[@]+"${capacity[@]}"}
}
delete=("${resource[@]}" delete "$NAME" "${place[@]}" --force --quiet)

request
echo "# To give the slice back:"
printf '%q ' "${delete[@]}"
echo
if [[ $RENEW == 1 && $DRY_RUN != 1 ]]; then
  while sleep 120; do
    state=$("${resource[@]}" describe "$NAME" "${place[@]}" \
      --format='value(state.state)') || continue
    if [[ $state == SUSPENDED || $state == FAILED ]]; then
      echo "The request is $state; it is made again."
      "${delete[@]}"
      request
    fi
  done
fi
