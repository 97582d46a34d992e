#!/usr/bin/env bash
# The article's experiment: bert-base-uncased, 100,000 sentences of web text, one epoch of TSDAE, and its comparison of
# four models on STS-B. Needs the Hugging Face hub; a GPU is advised. Not yet run.
set -euo pipefail
cd "$(dirname "$0")/.."
python scripts/train.py --corpus hub:allenai/c4:en --column text --limit 101000 --model bert-base-uncased \
    --pooling cls --epochs 1 --batch-size 8 --learning-rate 3e-5 --evaluate stsb --output runs/article
python scripts/evaluate.py bert-base-uncased runs/article bert-base-nli-mean-tokens \
    flax-sentence-embeddings/all_datasets_v3_mpnet-base --json runs/article/comparison.json
