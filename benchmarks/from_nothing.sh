#!/usr/bin/env bash
# A sentence encoder from nothing but text, by the preset for two CPU cores, and TSDAE alone from the same random start.
#     benchmarks/from_nothing.sh TEXT
# TEXT: a million sentences or so. It goes on where it was stopped. The page: see from_nothing.py.
set -euo pipefail
cd "$(dirname "$0")/.."
python scripts/pretrain.py "$1" --evaluate stsb --output runs/nothing
if [ -e runs/alone ]; then
  python scripts/train.py --resume --output runs/alone
else
  python scripts/train.py --model runs/nothing/start --corpus runs/nothing/corpus --steps 5000 --batch-size 32 \
    --learning-rate 2e-4 --evaluate stsb --eval-every 1000 --max-length 128 --output runs/alone
fi
