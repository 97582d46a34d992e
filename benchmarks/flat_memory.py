"""Anonymous memory (RssAnon of Linux) over a long run with evaluations and checkpoints: it must not grow.

    python benchmarks/flat_memory.py [--steps 5000] [--precision fp32]

MiniLM on the sentences of the sample run, batch 8. Prints the memory after every 500 steps, before and after the
evaluation there, and exits with 1 if after the last step it is more than 2 % above that after 500.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tsdae import DenoisingDataset, SentenceEncoder, TrainConfig, load_stsb, train
from tsdae.assets import MINILM, fetch
from tsdae.autoencoder import TSDAE
from tsdae.evaluation import evaluate_sts
from tsdae.recipe import sample_sentences

EVERY, ALLOWED = 500, 1.02


def anonymous_megabytes() -> float:
    """RssAnon of this process: memory that no file stands behind."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("RssAnon:"))) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description="Memory over a long run.")
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--precision", default="fp32")
    arguments = parser.parse_args()
    encoder = SentenceEncoder.from_pretrained(fetch(MINILM), "cls")
    stsb = load_stsb()
    dataset = DenoisingDataset(sample_sentences(stsb), encoder.tokenizer)
    memory: list[float] = []

    def evaluate(encoder: SentenceEncoder) -> dict[str, float]:
        memory.append(anonymous_megabytes())
        spearman = evaluate_sts(encoder, stsb["dev"], intervals=False).spearman
        after = anonymous_megabytes()
        print(f"step {EVERY * len(memory):,}: {memory[-1]:,.1f} MB, {after:,.1f} MB after its evaluation", flush=True)
        return {"stsb_dev": spearman}

    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            steps=arguments.steps,
            precision=arguments.precision,
            eval_every=EVERY,
            save_every=EVERY,
            device="cpu",
            output=f"{folder}/run",
        )
        train(TSDAE(encoder), dataset, config, evaluate=evaluate)
    growth = memory[-1] / memory[0]
    print(f"{arguments.precision}: {100 * (growth - 1):+.2f} % from step {EVERY} to step {EVERY * len(memory):,}")
    return int(growth > ALLOWED)


if __name__ == "__main__":
    raise SystemExit(main())
