#!/usr/bin/env bash
# Install what the benchmarks compare with, each into an environment of its own: benchmarks/setup_peers.sh [FOLDER]
# TRL 1.12 is the last series with a PPO trainer. torch comes first, under our constraints, so that it is the CPU
# build that we run on; everything that both sides use has the same version.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
peers="${1:-${PEERS:-$root/.venv-peers}}"
constraints="$root/constraints.txt"
make() {
  "$peers/$1/bin/python" -m pip --version >/dev/null 2>&1 || "${PYTHON:-python3}" -m venv --clear "$peers/$1"
  pip=("$peers/$1/bin/python" -m pip --disable-pip-version-check install --quiet)
}
make trl-1.12
"${pip[@]}" --constraint "$constraints" torch
"${pip[@]}" --constraint "$constraints" trl==1.12.0 transformers accelerate datasets rich
make trl-1.16
"${pip[@]}" --constraint "$constraints" torch
"${pip[@]}" --constraint "$constraints" trl==1.16.0 transformers accelerate datasets rich peft
make torchrl-0.14
"${pip[@]}" --constraint "$constraints" torch
"${pip[@]}" --constraint "$constraints" torchrl==0.14.1 transformers rich
# AgileRL pins other versions than ours. Its extra for language models is left out: it needs a build of torch for CUDA.
make agilerl-2.58
"${pip[@]}" "$(grep ^torch== "$constraints")" agilerl==2.58.0 peft==0.21.0 datasets==5.0.1 transformers==5.14.1 rich
# Environments, which need no torch.
for pinned in gem-llm=0.1.0 skyrl-gym=0.4.0 openenv=0.10.0; do
  make "${pinned%%=*}"
  "${pip[@]}" "${pinned/=/==}" rich
done
