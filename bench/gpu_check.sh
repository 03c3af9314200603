#!/usr/bin/env bash
# What `make gpu-check` runs on a machine that may have no package index and be free for minutes:
# the build for this card alone, the chosen tests, the sanitizer, the measurements. A part that fails
# does not keep the next from running. Without a card it is a rehearsal on the CPU.
#
# PYTHON: the interpreter, with its own packages. OUTPUT: a folder for the figures and the logs.
# CHECK_SECONDS: for the measurements. CHECK_ROWS: their numbers, default all.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3} output=${OUTPUT:-runs/gpu_check}
export HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
mkdir -p "$output"
failed=()

step() { printf '\n== %s (%d s)\n' "$1" "$SECONDS"; }

# Runs a command within seconds, its output in a log too; on failure notes the name.
part() {
  local name=$1 seconds=$2
  shift 2
  step "$name"
  if ! timeout --kill-after=5 "$seconds" "$@" 2>&1 | tee "$output/$name.log"; then
    failed+=("$name")
  fi
}

card=$("$python" -c 'import torch
if torch.cuda.is_available(): print("{}.{}".format(*torch.cuda.get_device_capability()))')
if [[ $card ]]; then
  device=cuda limit=180
  export CONSISTENTEE_FORCE_CUDA=1 CONSISTENTEE_FAIL_WITHOUT_CUDA=1 TORCH_CUDA_ARCH_LIST=$card
else
  device=cpu limit=1200  # an interpreter on whatever processor
  export TRITON_INTERPRET=1
fi

step "build for ${card:-no card}"
"$python" -m pip install --quiet --no-build-isolation --no-deps --no-index --editable .
"$python" -c 'import consistentee_ext; print(consistentee_ext.backend_report())'

part tests "$limit" "$python" -m pytest -q -m gpu_check --durations=5 tests/cuda/test_gpu*.py
if [[ $card ]]; then
  sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
  for tool in memcheck racecheck; do
    # Without the caching allocator every tensor has bounds of its own.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 part "$tool" 90 "$sanitizer" --tool "$tool" \
      --error-exitcode 1 "$python" -m pytest -q -m "gpu_$tool" tests/cuda/test_gpu*.py
  done
fi
# shellcheck disable=SC2086 # the rows are words
part measurements "$((${CHECK_SECONDS:-300} + 60))" "$python" bench/gpu_check.py \
  --device "$device" --seconds "${CHECK_SECONDS:-300}" --output "$output/gpu_check.json" \
  ${CHECK_ROWS:+--rows $CHECK_ROWS}

if ((${#failed[@]})); then
  step "failed: ${failed[*]}"
  exit 1
fi
step "passed"
