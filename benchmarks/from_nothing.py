"""A sentence encoder from nothing but text: STS-B untrained, after modelling, after TSDAE, and after TSDAE alone.

    benchmarks/from_nothing.sh TEXT 0 mini && benchmarks/from_nothing.sh TEXT 1    # trains all that is compared
    python benchmarks/from_nothing.py 0 1 > benchmarks/from_nothing.md

STS-B's labels are read here and nowhere in training. Nothing of the text is printed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tsdae.evaluation.pairs import load_stsb  # noqa: E402
from tsdae.evaluation.scores import bracketed  # noqa: E402
from tsdae.evaluation.sts import evaluate_sts  # noqa: E402
from tsdae.hub.auto_encoder import load_encoder  # noqa: E402
from tsdae.hub.downloads import MINI  # noqa: E402
from tsdae.run.folder import stored_settings  # noqa: E402
from tsdae.utils.device import machine_name  # noqa: E402  # the root has to be on the path first
from tsdae.utils.files import read_json  # noqa: E402

RUNS = ROOT / "runs"
MODELLING, TSDAE, ALONE = "masked-language modelling", "then TSDAE", "TSDAE alone"  # the runs
FOLDERS = {MODELLING: "nothing-{seed}/mlm", TSDAE: "tsdae-{seed}", ALONE: "alone-{seed}"}

HEAD = """# From nothing but text

    benchmarks/from_nothing.sh TEXT 0 mini && benchmarks/from_nothing.sh TEXT 1
    python benchmarks/from_nothing.py 0 1 > benchmarks/from_nothing.md

TEXT is the text of `mini` ([its card](../tsdae/hub/mini/README.md)); `mini` is seed 0 after modelling. TSDAE has the
learning rate that dev chooses for `mini` ([report](ablation/mini/report.md#learning_rate)). Spearman x 100 on STS-B
with its 95 % interval over the pairs; a row a seed, the last step of each run, no label read in training. A network
that was never trained compares sentences by the words that they share, so its row, and not 0, is what training has to
beat. Averaged GloVe vectors, published: 58.02 on test (Reimers and Gurevych 2019, table 1) and 61.54 (MTEB,
GloVe.6B).
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
    started = {seed: stored_settings(RUNS / FOLDERS[TSDAE].format(seed=seed))["model"] for seed in seeds}
    raw = {seed: MINI if model == MINI else str(ROOT / model) for seed, model in started.items()}
    encoders = {
        "untrained": str(RUNS / "nothing-{seed}" / "start"),
        ALONE: str(RUNS / FOLDERS[ALONE]),
        MODELLING: "{raw}",
        f"{MODELLING}, {TSDAE}": str(RUNS / FOLDERS[TSDAE]),
    }
    for name, encoder in encoders.items():
        for seed in seeds:
            cells = []
            for pooling, split in columns:
                figure = evaluate_sts(load_encoder(encoder.format(seed=seed, raw=raw[seed]), pooling), stsb[split])
                cells.append(f"{figure.spearman:.2f} {bracketed(figure.ci95)}")
            print(f"| {name} | {seed} | {' | '.join(cells)} |", flush=True)
    first = RUNS / f"nothing-{seeds[0]}"
    report = read_json(first / "corpus" / "report.json")
    shape = read_json(first / "start" / "config.json")
    print(
        f"\nThe text: {report['kept']:,} sentences. The BERT: {shape['num_hidden_layers']} layers, "
        f"{shape['hidden_size']} wide, {shape['vocab_size']:,} pieces.\n"
    )
    print("| run | seed | steps | batch | learning rate | threads | tokens a second, median | held-out loss |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, folder in FOLDERS.items():
        for seed in seeds:
            if name == MODELLING and raw[seed] == MINI:
                print(f"| {name} | {seed} | that of `mini`: see its card | | | | | |")
            else:
                print(f"| {name} | {seed} | {' | '.join(facts(RUNS / folder.format(seed=seed)))} |")
    print(f"\nTaken on {machine_name()}.")


def facts(run: Path) -> list[str]:
    settings = stored_settings(run)
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
