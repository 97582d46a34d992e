#!/usr/bin/env bash
# Search in SciFact by `mini`, adapted to its sentences without labels: nDCG@10 and others with intervals, BM25 beside it.
#     benchmarks/scifact.sh FOLDER SENTENCES
# FOLDER: in BEIR's layout. SENTENCES: of its abstracts, one a line. It goes on where it was stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=()
train() { # NAME, then flags
  local run="runs/scifact/$1"
  runs+=("$run")
  if [ ! -e "$run/encoder" ]; then
    python scripts/train.py --model mini --corpus "$sentences" --seed 0 --output "$run" "${@:2}" \
      $([ -e "$run/config.json" ] && echo --resume)
  fi
}
folder=$1 sentences=$2
train mlm-mean --objective mlm --pooling mean
train tsdae-cls
train tsdae-mean --pooling mean
train simcse-cls --objective simcse --batch-size 64 --learning-rate 3e-4
train ct-mean --objective ct --pooling mean --batch-size 128 --learning-rate 3e-4
python scripts/evaluate.py mini "${runs[@]}" --retrieval "$folder" --json benchmarks/rows/scifact.json
python scripts/evaluate.py mini --pooling mean --retrieval "$folder"
