#!/bin/sh
# Traces a micro-step on fake CUDA tensors in an environment of its own with torch's CUDA build; says so where none can be had.
set -u
cd "$(dirname "$0")/.."
venv=.venv-cuda
torch=$(grep '^torch==' constraints.txt)
if [ ! -e $venv/.ready ]; then
  echo "Making $venv with the CUDA build of $torch (5 GB, once) ..."
  # uv, for plain pip takes a CPU build where an index offers one.
  if ! "${PYTHON:-python3}" -m venv $venv || ! $venv/bin/python -m pip install -qq --disable-pip-version-check uv ||
    ! $venv/bin/uv pip install -q --python $venv/bin/python "$torch" numpy; then
    rm -rf $venv
    echo "cuda-trace skipped: $torch could not be installed into $venv; the lines above say what is missing"
    exit 0
  fi
  touch $venv/.ready
fi
cuda=$($venv/bin/python -c 'import torch; print(torch.version.cuda)') || exit 1
if [ "$cuda" = None ]; then
  echo "cuda-trace skipped: $venv holds a CPU build of $torch, and the package index has no CUDA build for this machine"
  exit 0
fi
exec $venv/bin/python -m bench.cuda_trace "$@"
