"""TSDAE beside what the field compares it with: one start, one corpus, one loop; equal sentences seen, and equal time.

    python benchmarks/objectives.py                  # the STS-B sentences: a row a run, resumes where it was stopped
    python benchmarks/objectives.py --text TEXT      # the first 200,000 sentences of a text
    python benchmarks/objectives.py --table > benchmarks/objectives.md

Every objective starts from `mini`, in bf16 where the processor multiplies it. Seed 0 tries the rates of its recipe,
scaled to this model; the rate with the best dev after 48,000 sentences is run in two more seeds. The rate is constant,
so one run gives both comparisons: it is scored after 48,000 sentences, and after the time that TSDAE takes for them.
Seconds a step are measured beforehand, all objectives in turn. Training reads no label; dev chooses the rate; test is
in the table.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.rows import tree_state  # noqa: E402
from tsdae import TSDAE, DenoisingDataset, SentenceEncoder, TrainConfig, evaluate_sts, load_stsb, train  # noqa: E402
from tsdae.ablation.render import Section, Table, markdown  # noqa: E402
from tsdae.commands.train import sample_sentences  # noqa: E402
from tsdae.evaluation.scores import Scores, bracketed  # noqa: E402
from tsdae.evaluation.statistics import compare, holm  # noqa: E402
from tsdae.evaluation.whitening import Whitening  # noqa: E402
from tsdae.hub.auto_encoder import Encoder, load_encoder  # noqa: E402
from tsdae.objectives import OBJECTIVES  # noqa: E402
from tsdae.text.reading import load_sentences  # noqa: E402
from tsdae.utils.device import machine_name  # noqa: E402  # the root has to be on the path first

ROWS = ROOT / "benchmarks" / "rows"
SENTENCES, SEEDS, OF_A_TEXT = 48_000, 3, 200_000


class Arm(NamedTuple):
    """An objective with pooling, batch size and the learning rates that are tried."""

    objective: str
    pooling: str
    batch: int
    rates: tuple[float, ...]

    @property
    def name(self) -> str:
        return f"{self.objective}, {self.pooling}"

    @property
    def steps(self) -> int:
        return SENTENCES // self.batch


ARMS = (
    Arm("tsdae", "cls", 32, (3e-4, 5e-4, 1e-3)),
    Arm("tsdae", "mean", 32, (3e-4, 5e-4, 1e-3)),
    Arm("mlm", "mean", 32, (3e-4, 5e-4, 1e-3)),
    Arm("tsdae_mlm", "cls", 32, (3e-4, 5e-4, 1e-3)),
    Arm("bag_of_words", "cls", 32, (3e-4, 5e-4, 1e-3)),
    Arm("retromae", "cls", 64, (3e-4, 1e-3)),
    Arm("simcse", "cls", 64, (1e-4, 3e-4)),
    Arm("ct", "mean", 128, (1e-4, 3e-4)),
    Arm("barlow_twins", "mean", 64, (1e-4, 3e-4)),
)
WAYS = {"sentences": "48,000 sentences", "time": "the time of TSDAE's 48,000"}  # the two comparisons
POOLINGS = ("cls", "mean", "first-last-mean")
ROUNDS, STEPS_OF_A_ROUND = 5, 8  # of the time of a step
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares TSDAE with other objectives on one corpus.")
    parser.add_argument("--text", help=f"a text, of which the first {OF_A_TEXT:,} sentences are read; default: STS-B's")
    parser.add_argument("--table", action="store_true", help="print the page of the rows instead")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"of the best rate; default: {SEEDS}")
    arguments = parser.parse_args()
    if arguments.table:
        print(page(), end="")
        return
    name = "text" if arguments.text else "STS-B"
    stsb = load_stsb()
    splits = {split: stsb[split] for split in ("dev", "test")}
    sentences = load_sentences(arguments.text, limit=OF_A_TEXT) if arguments.text else sample_sentences(stsb)
    if not of("baseline", name):
        for baseline, encode in baselines(sentences):
            write(name, "baseline", {"name": baseline} | scores_of(encode, splits, f"{name}-{baseline}"))
    if not of("cost", name):
        write(name, "cost", {"seconds_per_step": costs(sentences)})
    for arm in ARMS:
        for rate in arm.rates:
            run(arm, rate, 0, name, sentences, splits)
    for seed in range(1, arguments.seeds):
        for arm in ARMS:
            run(arm, best_rate(arm, name), seed, name, sentences, splits)


# ---------------------------------------------------------------------------------------------------------------
# Measuring


def run(arm: Arm, rate: float, seed: int, text: str, sentences: list[str], splits: dict[str, Any]) -> None:
    """Train for the longer of the two comparisons, and write a row with the scores at both; or do nothing: done."""
    key = {"name": arm.name, "rate": rate, "seed": seed}
    if any(row.items() >= key.items() for row in of("run", text)):
        return
    steps = {"sentences": arm.steps, "time": steps_in_time(arm, text)}
    found: Row = {}

    def score(model: TSDAE, done: int) -> None:
        for way in [way for way, wanted in steps.items() if wanted == done]:
            found[way] = scores_of(model.encoder.encode, splits, f"{text}-{arm.name}-{rate:g}-{seed}-{way}")

    since = time.perf_counter()
    train_arm(arm, rate, seed, sentences, max(steps.values()), score)
    write(text, "run", key | {"steps": steps, "minutes": round((time.perf_counter() - since) / 60, 1)} | found)


def train_arm(
    arm: Arm, rate: float, seed: int, sentences: list[str], steps: int, after_step: Callable[[TSDAE, int], object]
) -> None:
    encoder = SentenceEncoder.from_pretrained("mini", arm.pooling)
    dataset = DenoisingDataset(sentences, encoder.tokenizer, seed=seed)
    config = TrainConfig(steps=steps, batch_size=arm.batch, learning_rate=rate, seed=seed, eval_every=0, save_every=0)
    train(TSDAE(encoder, seed=seed), dataset, config, OBJECTIVES[arm.objective], after_step=after_step)


def costs(sentences: list[str]) -> dict[str, float]:
    """Return each arm's seconds per step, median of rounds in which all take their turn."""
    seconds: dict[str, list[float]] = {arm.name: [] for arm in ARMS}
    for _ in range(ROUNDS):
        for arm in ARMS:
            ends: list[float] = []

            def note(model: TSDAE, done: int, ends: list[float] = ends) -> None:
                ends.append(time.perf_counter())

            train_arm(arm, 1e-4, 0, sentences, STEPS_OF_A_ROUND, note)
            seconds[arm.name] += np.diff(ends[1:]).tolist()  # two steps to warm up
    return {name: round(median(taken), 5) for name, taken in seconds.items()}


def steps_in_time(arm: Arm, text: str) -> int:
    """Return how many steps of this arm take as long as TSDAE's 48,000 sentences."""
    (cost,) = of("cost", text)
    seconds = cost["seconds_per_step"]
    return round(ARMS[0].steps * seconds[ARMS[0].name] / seconds[arm.name])


def best_rate(arm: Arm, text: str) -> float:
    """Return the rate with the best dev of seed 0 after 48,000 sentences."""
    tried = [row for row in of("run", text) if row["name"] == arm.name and row["seed"] == 0]
    return float(max(tried, key=lambda row: row["sentences"]["dev"])["rate"])


def baselines(sentences: list[str]) -> list[tuple[str, Callable[[list[str]], np.ndarray]]]:
    """Return what needs no training: the start in its poolings, means also whitened on the text; mean word vectors."""
    made: list[tuple[str, Callable[[list[str]], np.ndarray]]] = []
    for pooling in POOLINGS:
        encoder = load_encoder("mini", pooling)
        made.append((f"untrained, {pooling}", encoder.encode))
        if pooling != "cls":
            made.append((f"untrained, {pooling}, whitened", whitened(encoder, Whitening(encoder.encode(sentences)))))
    encoder = SentenceEncoder.from_pretrained("mini")
    words_VD, tokenizer = encoder.bert.embeddings.words.weight.detach().numpy(), encoder.tokenizer

    def mean_word_vector(texts: list[str]) -> np.ndarray:
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return np.stack([words_VD[one or [tokenizer.unk_token_id]].mean(0) for one in ids])

    return [*made, ("mean of mini's word embeddings", mean_word_vector)]


def whitened(encoder: Encoder, whitening: Whitening) -> Callable[[list[str]], np.ndarray]:
    return lambda texts: whitening(encoder.encode(texts))


def scores_of(encode: Callable[[list[str]], np.ndarray], splits: dict[str, Any], name: str) -> Row:
    """Return {split: Spearman x 100} and keep test's resamples in a file."""
    scores: dict[str, Scores] = {split: evaluate_sts(encode, pairs) for split, pairs in splits.items()}
    path = ROWS / "objectives" / f"{name.replace(', ', '-').replace(' ', '-')}.npy"
    path.parent.mkdir(exist_ok=True)
    np.save(path, scores["test"].values_S["spearman"].astype(np.float32))
    return {split: round(found.spearman, 3) for split, found in scores.items()} | {"resamples": path.name}


# ---------------------------------------------------------------------------------------------------------------
# Rows and page


def rows() -> list[Row]:
    path = ROWS / "objectives.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def of(kind: str, text: str) -> list[Row]:
    return [row for row in rows() if row["kind"] == kind and row["text"] == text]


def write(text: str, kind: str, values: Row) -> None:
    origin = {"commit": tree_state()[0], "machine": machine_name()}
    with (ROWS / "objectives.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"text": text, "kind": kind} | values | origin) + "\n")


def resampled(found: Row) -> np.ndarray:
    return np.load(ROWS / "objectives" / found["resamples"])


def page() -> str:
    """Return a table a corpus: dev and test of each way to compare, mean over the seeds, and the verdict on test."""
    sections = [Section("TSDAE beside other objectives", [(__doc__ or "").split("\n\n")[2], READING])]
    for text in dict.fromkeys(row["text"] for row in rows() if row["kind"] == "cost"):
        title = "The STS-B sentences" if text == "STS-B" else f"{OF_A_TEXT:,} sentences of open text"
        header = ["setting", "rate", "seeds"]
        for way in WAYS.values():
            header += [f"dev after {way}", "test", "test against TSDAE, [CLS]", "verdict"]
        header.append("steps in that time")
        sections.append(Section(title, table=Table(header, [*baseline_lines(text), *arm_lines(text)])))
    origin = sorted({f"{row['machine']}, commit {row['commit'][:7]}" for row in rows()})
    return markdown([*sections, Section("Origin", ["; ".join(origin)])])


READING = """Spearman x 100 on STS-B, mean and standard deviation over the seeds; differences on test are paired over
seeds and pairs, with the wider of the two 95 % intervals' verdict, corrected for the number of rows (Holm)."""


def baseline_lines(text: str) -> list[list[str]]:
    return [[row["name"], "", "", f"{row['dev']:.2f}", f"{row['test']:.2f}", *[""] * 7] for row in of("baseline", text)]


def arm_lines(text: str) -> list[list[str]]:
    """Return a line an objective; those whose seeds are missing are shown with those that are there."""
    lines = {arm.name: [arm.name] for arm in ARMS}
    chosen = {arm.name: chosen_runs(arm, text) for arm in ARMS}
    for number, way in enumerate(WAYS):
        compared = []
        theirs = chosen[ARMS[0].name]
        for arm in ARMS[1:]:
            pairs = list(zip(chosen[arm.name], theirs, strict=False))  # of the same seed
            if pairs:
                ours_K, theirs_K = (np.array([pair[side][way]["test"] for pair in pairs]) for side in (0, 1))
                resampled_KS = np.stack([resampled(one[way]) - resampled(other[way]) for one, other in pairs])
                compared.append(compare(arm.name, ours_K, theirs_K, resampled_KS))
        verdicts = {one.name: one for one in holm(compared)}
        for arm in ARMS:
            runs = chosen[arm.name]
            if number == 0:
                lines[arm.name] += [f"{runs[0]['rate']:g}" if runs else "", str(len(runs))]
            for split in ("dev", "test"):
                lines[arm.name].append(spread([row[way][split] for row in runs]))
            verdict = verdicts.get(arm.name)
            shown = f"{verdict.difference:+.2f} {bracketed(verdict.over_pairs, '+')}" if verdict else ""
            lines[arm.name] += [shown, verdict.verdict if verdict else ""]
    for arm in ARMS:
        lines[arm.name].append(f"{steps_in_time(arm, text):,}")
    return list(lines.values())


def chosen_runs(arm: Arm, text: str) -> list[Row]:
    """Return the runs of the best rate, by seed."""
    found = [row for row in of("run", text) if row["name"] == arm.name]
    return sorted((row for row in found if row["rate"] == best_rate(arm, text)), key=lambda row: row["seed"])


def spread(values: list[float]) -> str:
    if not values:
        return "not yet run"
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
