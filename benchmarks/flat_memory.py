"""Anonymous memory (RssAnon of Linux) over a long run with evaluations and checkpoints: it must not grow.

    python benchmarks/flat_memory.py [--steps 5000] [--precision fp32]

MiniLM on the sentences of the sample run, batch 8. Prints the memory after every 500 steps, before and after the
evaluation there, and exits with 1 if after the last step it is more than 2 % above that after 500.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # in place of benchmarks/, which is a package of it

from benchmarks.workers import memory_of_process  # noqa: E402  # the root has to be on the path first
from tsdae import DenoisingDataset, SentenceEncoder, TrainConfig, load_stsb, train  # noqa: E402
from tsdae.autoencoder import TSDAE  # noqa: E402
from tsdae.commands.train import sample_sentences  # noqa: E402
from tsdae.evaluation.sts import evaluate_sts  # noqa: E402
from tsdae.hub.downloads import MINILM, fetch  # noqa: E402

EVERY, ALLOWED = 500, 1.02


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
        memory.append(memory_of_process("RssAnon") / 2**20)
        spearman = evaluate_sts(encoder, stsb["dev"], intervals=False).spearman
        after = memory_of_process("RssAnon") / 2**20
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
