#!/bin/sh
# Records the runs of this folder as a user makes them: ./record.sh CODE
#
# CODE is a checkout of the version to record; its requirements are those of the Python on PATH.
# Linux, as root: the host gets another name, and the folder is one of an account of its own, so
# that no path of the machine is recorded.
set -eu

if [ "${2:-}" != named ]; then exec unshare --uts "$0" "$1" named; fi
hostname laptop
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
HOME=/home/user XDG_CACHE_HOME=/home/user/.cache PYTHONPATH=$1 OMP_NUM_THREADS=1
export HOME XDG_CACHE_HOME PYTHONPATH OMP_NUM_THREADS
cuboid() { python -m launch.cli "$@"; }

rm -rf "$HOME/example"
mkdir -p "$HOME/example/runs"
cd "$HOME/example"
cp "$here"/harbour.* "$here"/*.py .

cuboid train sharded.py --gpus 4
sharded=$(echo runs/sharded-*)

# The same run twice: to its end, which gives the losses to expect, and killed in step 5.
cuboid train alone.py --gpus 1 --init-from "$sharded" --output straight
FAULT=kill:0:5 cuboid train alone.py --gpus 1 --init-from "$sharded" || true

cuboid evaluate "$sharded" --json
cuboid export "$sharded" --to hf

mkdir -p "$here/expected"
cp straight/log.jsonl "$here/expected/alone.log.jsonl"
cuboid generate "$sharded" --prompt 'The ' --tokens 30 >"$here/expected/generated.txt"
cuboid checkpoint ls "$sharded" >"$here/expected/listing.txt"
cuboid validate sharded.py --gpus 4 --json >"$here/expected/validate.json"

tar --sort=name --owner=user:1000 --group=user:1000 -cJf "$here/runs.tar.xz" runs
