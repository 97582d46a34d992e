"""A sentence encoder from nothing but text: STS-B after each stage of scripts/pretrain.py, and after TSDAE alone.

    benchmarks/from_nothing.sh TEXT 0 && benchmarks/from_nothing.sh TEXT 1    # trains all that is compared
    python benchmarks/from_nothing.py 0 1 > benchmarks/from_nothing.md

STS-B's labels are read here and nowhere in training. Nothing of the text is printed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tsdae.evaluation.pairs import load_stsb  # noqa: E402
from tsdae.evaluation.scores import bracketed  # noqa: E402
from tsdae.evaluation.sts import evaluate_sts  # noqa: E402
from tsdae.hub.auto_encoder import load_encoder  # noqa: E402
from tsdae.utils.device import machine_name  # noqa: E402  # the root has to be on the path first

RUNS = ROOT / "runs"
REMARK = """The text of the page as it stands: distinct English
sentences of 41 public sources (captions, news, forums, speeches, Wikipedia, science, glosses), whose licences do not
let us pass them on; none of STS-B's is among them (compared by letters and digits, in lower case). Its two runs are not
of one version: seed 0 came first, from a tokenizer that dropped accents, on one thread."""
STAGES, ALONE = "nothing-{}", "alone-{}"  # of a seed
ENCODERS = {
    "untrained": f"{STAGES}/start",
    "TSDAE alone": f"{ALONE}/encoder",
    "masked-language modelling": f"{STAGES}/raw",
    "masked-language modelling, then TSDAE": f"{STAGES}/tsdae/encoder",
}
TRAINED = {"masked-language modelling": f"{STAGES}/mlm", "then TSDAE": f"{STAGES}/tsdae", "TSDAE alone": ALONE}

HEAD = """# From nothing but text

    benchmarks/from_nothing.sh TEXT 0 && benchmarks/from_nothing.sh TEXT 1
    python benchmarks/from_nothing.py 0 1 > benchmarks/from_nothing.md

Spearman x 100 on STS-B with its 95 % interval over the pairs; a row a seed, the last step of each stage, no label read
in training, none used to choose. A network that was never trained compares sentences by the words that they share, so
its row, and not 0, is what training has to beat. Averaged GloVe vectors: 58.02 on test (published: Reimers and Gurevych
2019, table 1).
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Scores the stages of scripts/pretrain.py on STS-B.")
    parser.add_argument("seeds", metavar="SEED", type=int, nargs="+", help="of from_nothing.sh")
    seeds = parser.parse_args().seeds
    stsb = load_stsb()
    columns = [(pooling, split) for pooling in ("cls", "mean") for split in ("dev", "test")]
    print(HEAD)
    print("| encoder | seed | " + " | ".join(f"{pooling}: {split}" for pooling, split in columns) + " |")
    print("| --- | --- |" + " --- |" * len(columns))
    for name, encoder in ENCODERS.items():
        for seed in seeds:
            cells = []
            for pooling, split in columns:
                figure = evaluate_sts(load_encoder(str(RUNS / encoder.format(seed)), pooling), stsb[split])
                cells.append(f"{figure.spearman:.2f} {bracketed(figure.ci95)}")
            print(f"| {name} | {seed} | {' | '.join(cells)} |", flush=True)
    stages = RUNS / STAGES.format(seeds[0])
    report = json.loads((stages / "corpus" / "report.json").read_text(encoding="utf-8"))
    shape = json.loads((stages / "start" / "config.json").read_text(encoding="utf-8"))
    print(
        f"\nThe text: {report['kept']:,} sentences. The BERT: {shape['num_hidden_layers']} layers, "
        f"{shape['hidden_size']} wide, {shape['vocab_size']:,} pieces. {REMARK}\n"
    )
    print("| run | seed | steps | batch | learning rate | threads | tokens a second, median | held-out loss |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, run in TRAINED.items():
        for seed in seeds:
            print(f"| {name} | {seed} | {' | '.join(facts(RUNS / run.format(seed)))} |")
    print(f"\nTaken on {machine_name()}.")


def facts(run: Path) -> list[str]:
    settings: dict[str, Any] = json.loads((run / "config.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    speed = median(row["tokens_per_second"] for row in rows if "tokens_per_second" in row)
    loss = [row["heldout_loss"] for row in rows if "heldout_loss" in row][-1]
    return [
        f"{settings['finished']:,}",
        str(settings["batch_size"]),
        f"{settings['learning_rate']:g}, {settings['schedule']}",
        str(settings["threads"]),
        f"{speed:,.0f}",
        f"{loss:.3f}",
    ]


if __name__ == "__main__":
    main()
