#!/usr/bin/env bash
# A sentence encoder from nothing but text, and TSDAE alone from the same random start, on two CPU cores. Modelling has
# the settings of the built-in model `mini`, which is what it gives for the open text of its card and seed 0.
#     benchmarks/from_nothing.sh TEXT SEED        modelling takes hours
#     benchmarks/from_nothing.sh TEXT SEED mini   for that text and seed: take `mini` for the language model
# TEXT: a million sentences or so. It goes on where it was stopped. The page: see from_nothing.py.
set -euo pipefail
cd "$(dirname "$0")/.."
text=$1 seed=$2
steps=30000 raw=runs/nothing-$seed/raw corpus=runs/nothing-$seed/corpus
if [ "${3:-}" = mini ]; then
  steps=1 raw=mini corpus=corpora/open # one step: of modelling the random start alone is needed
  [ -e "$corpus" ] || python scripts/prepare.py "$text" --model mini --output "$corpus"
fi
time python scripts/pretrain.py "$text" --seed "$seed" --mlm-steps "$steps" --mlm-ratio 0.3 --tsdae-steps 0 \
  --evaluate stsb --output "runs/nothing-$seed"
train() { # MODEL CORPUS OUTPUT
  if [ -e "$3" ]; then
    python scripts/train.py --resume --output "$3"
  else
    python scripts/train.py --model "$1" --corpus "$2" --seed "$seed" --steps 5000 --batch-size 32 \
      --learning-rate 1e-3 --evaluate stsb --eval-every 1000 --max-length 128 --output "$3"
  fi
}
train "$raw" "$corpus" "runs/tsdae-$seed"
train "runs/nothing-$seed/start" "runs/nothing-$seed/corpus" "runs/alone-$seed"
