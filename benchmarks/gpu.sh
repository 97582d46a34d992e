#!/usr/bin/env bash
# Everything that has to be known of a GPU, in nine minutes: right results first, then speed. No network, nothing but
# this repository. Results go to runs/gpu (--output FOLDER); --cpu tries all of it on a CPU with a tiny model.
set -euo pipefail
cd "$(dirname "$0")/.."
exec python3 benchmarks/gpu.py "$@"
