#!/usr/bin/env bash
# Install what the benchmarks compare with, each into an environment of its own: benchmarks/setup_peers.sh [FOLDER]
# TRL 1.12 is the last series with a PPO trainer. torch comes first, under our constraints, so that it is the CPU
# build that we run on; everything that both sides use has the same version. The environments of gem-llm, skyrl-gym and
# OpenEnv need no torch, and pin versions of their own.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
peers="${1:-${PEERS:-$root/.venv-peers}}"
make() {
  "$peers/$1/bin/python" -m pip --version >/dev/null 2>&1 || "${PYTHON:-python3}" -m venv --clear "$peers/$1"
  pip=("$peers/$1/bin/python" -m pip --disable-pip-version-check install --quiet)
}
for pinned in trl-1.12=1.12.0 trl-1.16=1.16.0; do
  make "${pinned%%=*}"
  "${pip[@]}" --constraint "$root/constraints.txt" torch
  "${pip[@]}" --constraint "$root/constraints.txt" "trl==${pinned##*=}" transformers accelerate datasets peft rich
done
make torchrl-0.14
"${pip[@]}" --constraint "$root/constraints.txt" torch
"${pip[@]}" --constraint "$root/constraints.txt" torchrl==0.14.1 transformers rich
# AgileRL pins other versions than ours. Its extra for language models is left out: it needs a build of torch for CUDA.
make agilerl-2.58
"${pip[@]}" --constraint "$root/constraints.txt" torch
"${pip[@]}" agilerl==2.58.0 "$(grep ^torch== "$root/constraints.txt")" peft==0.21.0 datasets==5.0.1 transformers==5.14.1 rich
for pinned in gem-llm=0.1.0 skyrl-gym=0.4.0 openenv=0.10.0; do
  make "${pinned%%=*}"
  "${pip[@]}" "${pinned%%=*}==${pinned##*=}" rich
done
