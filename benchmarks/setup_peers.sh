#!/usr/bin/env bash
# Install what the benchmarks compare with, each into an environment of its own: benchmarks/setup_peers.sh [FOLDER]
# TRL 1.12 is the last series with a PPO trainer. torch comes first, under our constraints, so that it is the CPU
# build that we run on; everything that both sides use has the same version.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
peers="${1:-${PEERS:-$root/.venv-peers}}"
for pinned in trl-1.12=1.12.0 trl-1.16=1.16.0; do
  folder="$peers/${pinned%%=*}"
  "$folder/bin/python" -m pip --version >/dev/null 2>&1 || "${PYTHON:-python3}" -m venv --clear "$folder"
  pip=("$folder/bin/python" -m pip --disable-pip-version-check install --quiet --constraint "$root/constraints.txt")
  "${pip[@]}" torch
  "${pip[@]}" "trl==${pinned##*=}" transformers accelerate datasets rich
done
