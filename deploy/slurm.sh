#!/bin/bash
# One sweep as a Slurm job on one node. Submitted again, or requeued at its time limit, it goes on where it was:
#
#   sbatch deploy/slurm.sh first --preset matched
#
# The first word names the sweep, the others are options of `sweeps run`. Set account and partition as your site wants.
#SBATCH --job-name=sweep
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
set -u
cd "${SLURM_SUBMIT_DIR:-.}" || exit 2
name=$1
shift

at_limit=
if .venv/bin/sweeps status "$name" --json >/dev/null 2>&1; then
  .venv/bin/sweeps resume "$name" &
else
  .venv/bin/sweeps run --name "$name" "$@" &
fi
sweep=$!
# Within seconds of the signal what runs is saved. USR1 is the time limit's; TERM, of scancel and of a preemption
# (after which Slurm itself requeues the job), must not start it again.
trap 'at_limit=yes; kill -TERM "$sweep"' USR1
trap 'kill -TERM "$sweep"' TERM INT
wait "$sweep"
code=$?
while kill -0 "$sweep" 2>/dev/null; do # a trap has ended the wait, not the sweep
  wait "$sweep"
  code=$?
done
if [ -n "$at_limit" ] && [ "$code" -eq 130 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
