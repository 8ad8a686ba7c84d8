#!/bin/sh
# Traces a micro-step on fake CUDA tensors in an environment of its own with torch's CUDA build; says so where none can be had.
set -eu
cd "$(dirname "$0")/.."
venv=.venv-cuda
versions=$(grep -E '^(numpy|torch)==' constraints.txt)

install() {
  $venv/bin/python -m pip install -qq --disable-pip-version-check --timeout 30 --retries 2 uv &&
    # uv, for plain pip takes a CPU build where an index offers one. The versions are two words.
    # shellcheck disable=SC2086
    $venv/bin/uv pip install -q --python $venv/bin/python $versions
}

# The mark is written last: what an interruption left half made, or older versions, are made anew.
if [ "$(cat $venv/.ready 2>/dev/null)" != "$versions" ]; then
  echo "Making $venv with the CUDA build of torch (5 GB, once):" $versions
  rm -rf $venv
  "${PYTHON:-python3}" -m venv $venv
  if ! install; then
    rm -rf $venv
    echo "cuda-trace skipped: these could not be installed into $venv; the lines above say what is missing"
    exit 0
  fi
  echo "$versions" >$venv/.ready
fi
if ! cuda=$($venv/bin/python -c 'import torch; print(torch.version.cuda)'); then
  echo "cuda-trace failed: torch in $venv is damaged; rm -r $venv, then run it again" >&2
  exit 1
fi
if [ "$cuda" = None ]; then
  echo "cuda-trace skipped: torch in $venv is a CPU build, the only one that the package index has for this machine"
  exit 0
fi
exec $venv/bin/python -m bench.cuda_trace "$@"
