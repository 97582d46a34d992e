#!/usr/bin/env bash
# Search in SciFact by `mini`, adapted to its sentences without labels: nDCG@10 and others with intervals, BM25 beside it
# (extra [retrieval]). One epoch for each objective; it goes on where it was stopped. Batch sizes and rates are those of
# objectives.md, at equal sentences; the last two have the best dev there beside TSDAE, MLM and their sum.
#     benchmarks/scifact.sh FOLDER SENTENCES
# FOLDER: in BEIR's layout. SENTENCES: of its abstracts, one a line.
set -euo pipefail
folder=$(realpath "$1") sentences=$(realpath "$2")
cd "$(dirname "$0")/.."
[ -e runs/scifact/untrained-mean ] || python -c '
from tsdae import SentenceEncoder
SentenceEncoder.from_pretrained("mini", pooling="mean").save_pretrained("runs/scifact/untrained-mean")'
models=(runs/scifact/untrained-mean mini)
train() { # NAME, then flags
  models+=("runs/scifact/$1")
  python scripts/train.py --model mini --corpus "$sentences" --epochs 1 --batch-size 32 --output "runs/scifact/$1" --resume "${@:2}"
}
train mlm-mean --objective mlm --pooling mean --learning-rate 1e-3
train tsdae-cls --learning-rate 1e-3
train tsdae-mean --pooling mean --learning-rate 3e-4
train bag_of_words-cls --objective bag_of_words --learning-rate 3e-4
train retromae-cls --objective retromae --batch-size 64 --learning-rate 3e-3
mkdir -p benchmarks/rows/scifact
python scripts/evaluate.py "${models[@]}" --retrieval "$folder" --json benchmarks/rows/scifact/scores.json
python scripts/evaluate.py mini runs/scifact/{tsdae,bag_of_words}-cls --pooling first-last-mean --whiten "$sentences" \
  --retrieval "$folder" --json benchmarks/rows/scifact/whitened.json
