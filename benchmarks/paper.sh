#!/usr/bin/env bash
# The paper's ablations on bert-base (Wang, Reimers, Gurevych 2021, section 3): noise type, deletion ratio, pooling, tying,
# and masked-language modelling beside them, scored on STS-B. Not yet run: it needs the Hugging Face hub and a GPU.
# 20 settings x 5 seeds x 12,500 steps of batch 8 (100,000 sentences): reckoned, not measured, 2 hours of training if one GPU
# makes 12,500 steps in the minute that is aimed for, twice that with evaluations and starts, and a day at a tenth of that
# speed. --dry-run measures and prints the hours on your machine.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ ! -e corpora/paper ]; then # once, and not in each of a hundred runs
  python scripts/prepare.py hub:sentence-transformers/wiki1m-for-simcse --sentences lines --limit 101000 \
    --model bert-base-uncased --output corpora/paper
fi
python scripts/ablate.py --corpus corpora/paper --model bert-base-uncased --evaluate stsb --steps 12500 \
  --eval-every 2500 --seeds 5 --output ablations/paper \
  --grid noise=delete,mask,replace,swap,insert noise_ratio=0.1:0.9:0.1 pooling=cls,mean,max tie=true,false \
  decoder_layers=1,3,6,none objective=tsdae,mlm "$@"
