"""What the defaults do to three raw models on three texts: nine runs, and what they warn of.

    python benchmarks/defaults.py RAW_MODEL TEXT SCIFACT_TEXT            # trains what has no row yet
    python benchmarks/defaults.py --table > benchmarks/defaults.md

Each run is `tsdae train --model MODEL [--corpus TEXT]`; `--evaluate stsb` adds STS-B's labels to every evaluation and
changes nothing in training. RAW_MODEL: the folder of a raw language model of other origin than mini.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForMaskedLM

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.label_free import METRICS, guide  # noqa: E402
from benchmarks.rows import tree_state  # noqa: E402
from tsdae.ablation.render import Section, Table, markdown  # noqa: E402
from tsdae.commands.summary import harm  # noqa: E402
from tsdae.hub.model_folder import load_tokenizer, model_folder  # noqa: E402
from tsdae.utils.device import machine_name  # noqa: E402  # the root has to be on the path first

ROWS = ROOT / "benchmarks" / "rows" / "defaults.jsonl"
RUNS = ROOT / "runs" / "defaults"
WARNING = "WARNING: "
HEAD = """The three raw models are `mini`, another small BERT (4 layers x 256, pretrained on another text) and a random
network of mini's shape; the three texts are STS-B's train sentences, 100,000 everyday sentences and the sentences of
SciFact's abstracts. Every run is `tsdae train --model MODEL [--corpus TEXT]`, seed 0; only evaluations read labels.
STS-B dev, Spearman x 100: before, the lowest evaluation, the last step, and the step that `best/` holds (chosen without
labels); noisy retrieval and effective rank before and after; and the warning at the end, by today's rule (when these
runs were made, a fall of the rank by a fifth was one; the random network's did that). The four runs of 2,000 steps were
first made with 1,500 (an epoch of SciFact: 1,534), the default then, after which one was 1.2 points of dev below its
start without a warning; they were resumed, which ends as a run that was never stopped."""
CHOICE = """Points of dev that are lost, on average over the nine runs, by keeping the evaluation that a metric without
labels calls best, and how often it moved as dev did from one evaluation to the next."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs the defaults on three raw models and three texts.")
    parser.add_argument("paths", nargs="*", metavar="PATH", help="RAW_MODEL TEXT SCIFACT_TEXT")
    parser.add_argument("--table", action="store_true", help="print the table of the rows instead")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(), end="")
        return
    if len(arguments.paths) != 3:
        parser.error("needs the three paths RAW_MODEL TEXT SCIFACT_TEXT")
    raw, everyday, scifact = arguments.paths
    models = {"mini": "mini", "other raw BERT": raw, "random": str(random_model())}
    texts = {"STS-B": None, "everyday": everyday, "SciFact": scifact}
    done = {(row["model"], row["text"]) for row in rows()}
    for text, corpus in texts.items():
        for name, model in models.items():
            if (name, text) not in done:
                row = {"model": name, "text": text, **run(model, corpus, RUNS / f"{name}-{text}".replace(" ", "-"))}
                with ROWS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in ROWS.read_text("utf-8").splitlines()] if ROWS.exists() else []


def random_model() -> Path:
    """Write a network of mini's shape and tokenizer, with weights as transformers draws them; return its folder."""
    folder = RUNS / "random-start"
    if not folder.exists():
        torch.manual_seed(0)
        AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(model_folder("mini"))).save_pretrained(folder)
        load_tokenizer(model_folder("mini")).save_pretrained(folder)
    return folder


def run(model: str, corpus: str | None, output: Path) -> dict[str, Any]:
    """Train by the defaults, or resume; return what the run logged at its evaluations."""
    command = [sys.executable, "scripts/train.py", "--model", model, "--evaluate", "stsb", "--output", str(output)]
    command += ["--corpus", corpus] if corpus else []
    command += ["--resume"] if (output / "config.json").exists() else []
    subprocess.run(command, cwd=ROOT, check=True)
    logged = [json.loads(line) for line in (output / "metrics.jsonl").read_text("utf-8").splitlines()]
    return {
        "evaluations": [entry for entry in logged if "stsb_dev" in entry],
        "commit": tree_state()[0],
        "machine": machine_name(),
    }


def table() -> str:
    """Return the page: what every run did to dev, what it warns of, and how well each metric chooses the step."""
    lines, curves = [], []
    for row in rows():
        curve = row["evaluations"]
        curves.append(curve)
        first, last = curve[0], curve[-1]
        best = max(curve, key=lambda entry: -math.inf if math.isnan(v := entry["noisy_retrieval"]) else v)
        moved = [f"{first[key]:.1f} to {last[key]:.1f}" for key in ("noisy_retrieval", "effective_rank")]
        dev = [f"{entry['stsb_dev']:.1f}" for entry in (first, min(curve, key=lambda e: e["stsb_dev"]), last, best)]
        said = harm(curve, RUNS, "") or ""
        warned = said.removeprefix(WARNING).split(":")[0] if said.startswith(WARNING) else "none"
        lines.append([row["model"], row["text"], str(last["step"]), *dev, *moved, warned])
    header = ["model", "text", "steps", "dev before", "lowest", "last step", "best/"]
    header += ["noisy retrieval", "effective rank", "warning at the end"]
    chosen = []
    for metric in METRICS:
        found = guide(metric, curves, [str(number) for number in range(len(curves))])
        if found is not None:
            chosen.append([metric, f"{found.regret:.2f}", f"{100 * found.agreement:.0f} % of {found.moves}"])
    origin = sorted({f"{row['machine']}, commit {row['commit'][:7]}" for row in rows()})
    command = "`python benchmarks/defaults.py RAW_MODEL TEXT SCIFACT_TEXT`"
    return markdown(
        [
            Section("What the defaults do", [command, HEAD], table=Table(header, lines)),
            Section("Which metric chooses the step", [CHOICE], table=Table(["metric", "lost", "moves as dev"], chosen)),
            Section("Origin", ["; ".join(origin)]),
        ]
    )


if __name__ == "__main__":
    main()
