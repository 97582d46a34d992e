#!/usr/bin/env bash
# The learning rate, and the paper's ablations (Wang, Reimers, Gurevych 2021, section 3), from the built-in raw model on
# the STS-B sentences, for two CPU cores; it resumes where it was stopped. Needs STS-B once (0.4 MB). Rows of other code
# are refused, so it writes to ablation/; benchmarks/ablation/mini* are copies without the runs.
#     benchmarks/mini.sh            every axis, 3 seeds
#     benchmarks/mini.sh five       the arms that matter most, 5 seeds
set -euo pipefail
cd "$(dirname "$0")/.."
settings=(--model mini --evaluate stsb --steps 1500 --batch-size 32 --learning-rate 5e-4 --eval-every 500 --save-every 0)
settings+=(--jobs 2)
if [ "${1:-}" = five ]; then
  python scripts/ablate.py "${settings[@]}" --seeds 5 --output ablation/mini-five \
    --grid noise_ratio=0.3,0.6,0.9 pooling=cls,mean objective=tsdae,mlm
else
  python scripts/ablate.py "${settings[@]}" --seeds 3 --output ablation/mini \
    --grid learning_rate=3e-4,5e-4,1e-3 noise=delete,mask,replace,swap,insert noise_ratio=0.1:0.9:0.1 \
    pooling=cls,mean,max tie=true,false decoder_layers=1,2,4 decoder_input_noise=0,0.5,1 objective=tsdae,mlm \
    limit=1000,3000,none
fi
