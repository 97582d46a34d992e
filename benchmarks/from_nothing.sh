#!/usr/bin/env bash
# A sentence encoder from nothing but text, and TSDAE alone from the same random start, on two CPU cores. Modelling has
# the settings of `mini`, which is runs/nothing-0/raw of the open text in half precision.
#     benchmarks/from_nothing.sh TEXT [SEED]
# TEXT: a million sentences or so. It goes on where it was stopped. The page: see from_nothing.py.
set -euo pipefail
cd "$(dirname "$0")/.."
seed=${2:-0}
time python scripts/pretrain.py "$1" --seed "$seed" --mlm-steps 30000 --mlm-ratio 0.3 --evaluate stsb \
  --output "runs/nothing-$seed"
if [ -e "runs/alone-$seed" ]; then
  python scripts/train.py --resume --output "runs/alone-$seed"
else
  python scripts/train.py --model "runs/nothing-$seed/start" --corpus "runs/nothing-$seed/corpus" --seed "$seed" \
    --steps 5000 --batch-size 32 --learning-rate 2e-4 --evaluate stsb --eval-every 1000 --max-length 128 \
    --output "runs/alone-$seed"
fi
