#!/usr/bin/env bash
# The main arms from a raw language model, as in the paper, and not from a finished sentence model as in the sample run.
# 6 settings x 3 seeds x 5,000 steps of batch 32: 2 hours on two CPU cores. Rows of other code are refused, so it writes to
# ablation/raw; benchmarks/ablation/raw is a copy without the runs.
#     benchmarks/raw_start.sh MODEL CORPUS [more flags of scripts/ablate.py]
# MODEL: a raw BERT's folder. CORPUS: a text, or what scripts/prepare.py TEXT --model MODEL --output CORPUS has made of it,
# with 160,000 sentences and more.
set -euo pipefail
cd "$(dirname "$0")/.."
python scripts/ablate.py --model "$1" --corpus "$2" --evaluate stsb --steps 5000 --batch-size 32 --learning-rate 2e-4 \
  --eval-every 1000 --seeds 3 --jobs 2 --output ablation/raw \
  --grid noise_ratio=0.3,0.6,0.9 pooling=cls,mean tie=true,false objective=tsdae,mlm "${@:3}"
