#!/usr/bin/env bash
# Trains on a Cloud TPU VM, or on all hosts of a slice, and recreates the TPU when it is preempted. The script asks
# before it deletes a TPU that was stopped.
#   SPOT=--spot launch/tpu_vm.sh NAME ZONE TYPE RUNTIME CONFIG WORKDIR
#   SPOT=--spot launch/tpu_vm.sh lm us-west4-a v5litepod-16 v2-alpha-tpuv5-lite configs/lm1b.py /mnt/runs/lm1b
# The script runs on your machine for as long as the training takes (for example in tmux), needs gcloud, and copies the
# commit that is checked out to the TPU. With several hosts, WORKDIR must be on a file system that the hosts share:
# mount that file system at MOUNT_HERE below.
set -euo pipefail
[ $# -eq 6 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 1; }
name=$1 zone=$2 type=$3 runtime=$4 config=$5 workdir=$6

tpu() { gcloud compute tpus tpu-vm "$1" "$name" --zone="$zone" --quiet "${@:2}"; }
everywhere() { tpu ssh --worker=all --command="$1"; }
state() { tpu describe --format='value(state)' 2>/dev/null || true; }
fail() { echo "$1" >&2; exit 1; }
# Call this after a failed command: it returns if the TPU is lost, and fails with the message if the TPU is still there.
lost_or() {
    sleep 30 # a TPU that is being preempted is still READY for a moment
    [ "$(state)" != READY ] || fail "$1"
}
confirm_deletion() {
    local answer=
    [ ! -t 0 ] || read -r -p "$name is stopped. Delete it, with its disk, and create it again? [y/N] " answer || true
    case $answer in [yY] | [yY]es) return ;; esac
    fail "$name is stopped and was not deleted. Start it with: gcloud compute tpus tpu-vm start $name --zone=$zone"
}

source_code=$(mktemp)
trap 'rm -f "$source_code"' EXIT
git archive --format=tar.gz --output="$source_code" HEAD

read -r -d '' prepare <<'REMOTE' || true
set -e
# MOUNT_HERE
mkdir -p ~/lm && tar -xzf ~/lm.tar.gz -C ~/lm && cd ~/lm
pip install --quiet --user uv
[ -x .venv/bin/pip ] || ~/.local/bin/uv venv --seed --python 3.12 .venv
.venv/bin/pip install --quiet --require-hashes -r requirements-tpu.lock
REMOTE

# Each host reads its own index and the address of the first host from the metadata of the TPU.
read -r -d '' train <<'REMOTE' || true
cd ~/lm && . .venv/bin/activate
attribute() { curl -sf -H 'Metadata-Flavor: Google' "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1"; }
hosts=$(attribute worker-network-endpoints | tr , '\n' | sed 's/.*://')
count=$(printf '%s\n' "$hosts" | wc -l)
set -- "$@" --coordinator="$(printf '%s\n' "$hosts" | head -n 1):8476" --num_processes="$count" \
    --process_id="$(attribute agent-worker-number)"
while :; do
    python train.py "$@" && exit 0 || status=$?
    [ "$status" -eq 75 ] || exit "$status" # 75: saved on SIGTERM, run me again
done
REMOTE
arguments=$(printf ' %q' "--config=$config" "--workdir=$workdir")

while :; do
    case $(state) in
    READY) ;;
    '') tpu create --accelerator-type="$type" --version="$runtime" ${SPOT:-} || { sleep 60; continue; } ;;
    PREEMPTED | TERMINATED) tpu delete; continue ;; # such a TPU cannot be started again
    STOPPED) confirm_deletion; tpu delete; continue ;;
    *) sleep 15; continue ;;
    esac
    if ! gcloud compute tpus tpu-vm scp "$source_code" "$name:lm.tar.gz" --zone="$zone" --worker=all --quiet; then
        lost_or "The code could not be copied to $name; the output is above. Nothing was started."
    elif ! everywhere "$prepare"; then
        lost_or "The environment could not be prepared on $name; the output is above. Nothing was started."
    elif everywhere "set --$arguments; $train"; then
        exit 0
    else
        lost_or "train.py failed on $name; its output is above. Fix the error and start this script again."
    fi
done
