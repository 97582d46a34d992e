#!/usr/bin/env bash
# The learning rate, and the paper's ablations (Wang, Reimers, Gurevych 2021, section 3), from the built-in raw model on
# the STS-B sentences, for two CPU cores; it resumes where it was stopped. Needs STS-B once (0.4 MB). Rows of other code
# are refused, so it writes to ablation/; benchmarks/ablation/mini* are copies without the runs.
#     benchmarks/mini.sh            every axis, 3 seeds
#     benchmarks/mini.sh five       the arms that matter most, 5 seeds
#     benchmarks/mini.sh open TEXT  the same on a large text, 5,000 steps; prepares it once
set -euo pipefail
cd "$(dirname "$0")/.."
settings=(--model mini --evaluate stsb --batch-size 32 --learning-rate 5e-4 --save-every 0 --jobs 2)
short=(--steps 1500 --eval-every 500)
arms=(--seeds 5 --grid noise_ratio=0.3,0.6,0.9 pooling=cls,mean objective=tsdae,mlm)
if [ "${1:-}" = five ]; then
  if [ ! -e ablation/mini-five ] && [ -e ablation/mini/results.jsonl ]; then # 15 of its 25 runs are the same
    mkdir ablation/mini-five
    cp -r ablation/mini/results.jsonl ablation/mini/resamples ablation/mini-five/
  fi
  python scripts/ablate.py "${settings[@]}" "${short[@]}" "${arms[@]}" --output ablation/mini-five
elif [ "${1:-}" = open ]; then
  [ -e corpora/open ] || python scripts/prepare.py "$2" --model mini --output corpora/open
  python scripts/ablate.py "${settings[@]}" --corpus corpora/open --steps 5000 --eval-every 1000 "${arms[@]}" \
    --output ablation/mini-open
else
  python scripts/ablate.py "${settings[@]}" "${short[@]}" --seeds 3 --output ablation/mini \
    --grid learning_rate=3e-4,5e-4,1e-3 noise=delete,mask,replace,swap,insert noise_ratio=0.1:0.9:0.1 \
    pooling=cls,mean,max tie=true,false decoder_layers=1,2,4 decoder_input_noise=0,0.5,1 objective=tsdae,mlm \
    limit=1000,3000,none
fi
