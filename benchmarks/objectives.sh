#!/usr/bin/env bash
# TSDAE beside what the field compares it with: one corpus, one loop, 3 seeds, each objective with the rates of its recipe
# scaled to the built-in raw model, the rate chosen on dev. Sentences seen are equal: 48,000. It resumes where it was stopped.
#     benchmarks/objectives.sh [CORPUS]     the STS-B sentences, or a text
set -euo pipefail
cd "$(dirname "$0")/.."
where=(${1:+--corpus "$1"})
name=${1:+-text}
run() { # OBJECTIVE POOLING BATCH RATE,RATE...
  python scripts/ablate.py --model mini "${where[@]}" --evaluate stsb --objective "$1" --pooling "$2" --batch-size "$3" \
    --steps $((48000 / $3)) --eval-every $((12000 / $3)) --save-every 0 --seeds 3 --jobs 2 \
    --learning-rate "${4%%,*}" --grid learning_rate="$4" --output "ablation/objectives$name/$1-$2"
}
run tsdae cls 32 3e-4,5e-4,1e-3
run tsdae mean 32 3e-4,5e-4,1e-3
run mlm mean 32 3e-4,5e-4,1e-3
run tsdae_mlm cls 32 3e-4,5e-4,1e-3
run simcse cls 64 1e-4,3e-4
run ct mean 128 1e-4,3e-4
run bag_of_words cls 32 3e-4,5e-4,1e-3
run retromae cls 64 3e-4,1e-3
run barlow_twins mean 64 1e-4,3e-4
