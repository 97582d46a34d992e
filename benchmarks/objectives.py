"""TSDAE beside what the field compares it with: one start, one text, one loop; equal sentences seen, and equal time.

    python benchmarks/objectives.py                  # the STS-B sentences; resumes where it was stopped
    python benchmarks/objectives.py --text TEXT      # then 200,000 sentences of a text, by the rates chosen there
    python benchmarks/objectives.py --table > benchmarks/objectives.md

Every objective starts from `mini`, with its recipe's batch size. On the STS-B sentences seed 0 tries learning rates
half a decade apart, until the best one has a worse one on either side; all seeds then use it, on the other text too.
Training reads no label. Dev chooses the rate, for each of the two comparisons; test is reported for the chosen rates
alone.

The rate is constant, so one run serves both comparisons: it is scored after 48,000 sentences, and after the time that
TSDAE with the [CLS] vector takes for them. Seconds a sentence are measured beforehand, all objectives in turn.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.rows import tree_state  # noqa: E402
from tsdae import TSDAE, DenoisingDataset, SentenceEncoder, TrainConfig, evaluate_sts, load_stsb, train  # noqa: E402
from tsdae.ablation.render import Section, Table, markdown  # noqa: E402
from tsdae.commands.train import sample_sentences  # noqa: E402
from tsdae.config import DataConfig  # noqa: E402
from tsdae.evaluation.pairs import Pairs  # noqa: E402
from tsdae.evaluation.scores import bracketed  # noqa: E402
from tsdae.evaluation.statistics import RESAMPLES, Comparison, compare, detectable, holm  # noqa: E402
from tsdae.evaluation.whitening import Whitening  # noqa: E402
from tsdae.hub.auto_encoder import load_encoder  # noqa: E402
from tsdae.objectives import OBJECTIVES  # noqa: E402
from tsdae.run.step_metrics import NonFiniteLoss  # noqa: E402
from tsdae.text.corpus import Corpus  # noqa: E402
from tsdae.text.preparation import build_corpora  # noqa: E402
from tsdae.text.reading import Texts, load_sentences  # noqa: E402
from tsdae.utils.device import choose_precision, machine_name  # noqa: E402
from tsdae.utils.files import locked  # noqa: E402
from tsdae.utils.plural import counted  # noqa: E402
from tsdae.utils.signals import when_parent_ends  # noqa: E402  # the root has to be on the path first

ROWS = ROOT / "benchmarks" / "rows"
STSB = "STS-B"
SENTENCES, SEEDS, OF_A_TEXT = 48_000, 3, 200_000
RATES = (3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
FIRST_RATES = (1e-4, 3e-4, 1e-3)
ROUNDS, SENTENCES_OF_A_ROUND = 3, 1024  # of the time of a sentence, after as many to warm up
SENTENCES_WAY, TIME_WAY = WAYS = ("sentences", "time")  # the two comparisons
Row = dict[str, Any]
Encode = Callable[[list[str]], np.ndarray]


class Arm(NamedTuple):
    """An objective with pooling and batch size."""

    objective: str
    pooling: str
    batch: int

    @property
    def name(self) -> str:
        return f"{self.objective}, {self.pooling}"

    @property
    def steps(self) -> int:
        return SENTENCES // self.batch


TSDAE_CLS, TSDAE_MEAN = Arm("tsdae", "cls", 32), Arm("tsdae", "mean", 32)
ARMS = (
    TSDAE_CLS,
    TSDAE_MEAN,
    Arm("mlm", "mean", 32),
    Arm("tsdae_mlm", "cls", 32),
    Arm("bag_of_words", "cls", 32),
    Arm("retromae", "cls", 64),
    Arm("simcse", "cls", 64),
    Arm("ct", "mean", 128),
    Arm("barlow_twins", "mean", 64),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares TSDAE with other objectives on one text.")
    parser.add_argument("--text", help=f"a text of {OF_A_TEXT:,} sentences or more; default: the sentences of STS-B")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time; default: one a core")
    parser.add_argument("--table", action="store_true", help="print the page of the rows instead")
    arguments = parser.parse_args()
    if arguments.table:
        print(page(), end="")
        return
    name = Path(arguments.text).name.split(".")[0] if arguments.text else STSB
    text = Text(name, arguments.text, max(1, (os.cpu_count() or 1) // arguments.jobs))
    begin(text.threads)
    if origin()["commit"] is None:
        parser.error("the tree differs from its commit; commit first, so that the rows can name the code")
    if arguments.text and (missing := [arm.name for arm in ARMS if not has_its_rates(arm)]):
        parser.error(f"run the STS-B sentences first, which choose the rates: not finished for {'; '.join(missing)}")
    with locked(ROWS / "objectives.lock", "another process is writing these rows; wait for it"):
        write_baselines(text)
        if not of("cost", name):
            write(name, "cost", {"seconds_per_sentence": costs(text)})
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(arguments.jobs, spawn, begin, (text.threads, origin())) as pool:
            if not arguments.text:
                list(pool.map(functools.partial(search, text), ARMS))
            list(pool.map(functools.partial(repeat, text), ARMS))


# ---------------------------------------------------------------------------------------------------------------
# Measuring


class Text(NamedTuple):
    """What is trained on. source: a file; None: the sentences of STS-B. threads: of each run."""

    name: str
    source: str | None
    threads: int


@functools.cache
def load(text: Text) -> tuple[list[str], Corpus, dict[str, Pairs]]:
    """Return all sentences, those to train on (1,000 are held out, as by `tsdae train`), and STS-B's dev and test."""
    stsb = load_stsb()
    sentences = load_sentences(text.source, limit=OF_A_TEXT) if text.source else sample_sentences(stsb)
    if text.source and len(sentences) < OF_A_TEXT:
        raise SystemExit(f"{text.source} has {len(sentences):,} sentences, fewer than {OF_A_TEXT:,}")
    tokenizer = SentenceEncoder.from_pretrained("mini").tokenizer
    corpus, _ = build_corpora(Texts(sentences), "", DataConfig(), tokenizer, workers=1)
    return sentences, corpus, {split: stsb[split] for split in ("dev", "test")}


def search(text: Text, arm: Arm) -> None:
    """Run seed 0 by one rate after the other, until the best one has its neighbours, for either comparison."""
    while rates := rates_to_try(arm):
        run(text, arm, rates[0], 0)


def repeat(text: Text, arm: Arm) -> None:
    """Run the chosen rates in all seeds."""
    for rate, seed in chosen_runs(arm):
        run(text, arm, rate, seed)


def run(text: Text, arm: Arm, rate: float, seed: int) -> None:
    """Train for the longer of the two comparisons, and write a row with the scores at both; or do nothing: done."""
    if any((row["rate"], row["seed"]) == (rate, seed) for row in runs_of(arm, text.name)):
        return
    splits = load(text)[2]
    steps = {SENTENCES_WAY: arm.steps, TIME_WAY: steps_in_time(arm, text.name)}
    found: dict[str, Row] = {}
    since, scoring = time.perf_counter(), 0.0

    def score(model: TSDAE, done: int) -> None:
        nonlocal scoring
        for way in [way for way, wanted in steps.items() if wanted == done]:
            before = time.perf_counter()
            name = f"{text.name}-{arm.name}-{rate:g}-{seed}-{way}"
            found[way] = {"seconds": round(before - since - scoring)} | scores_of(model.encoder.encode, splits, name)
            scoring += time.perf_counter() - before

    try:
        train_arm(text, arm, rate, seed, max(steps.values()), score)
    except NonFiniteLoss as error:
        print(f"{arm.name}, rate {rate:g}, seed {seed}: {error}", flush=True)
    found = {way: found.get(way, {"dev": math.nan, "test": math.nan, "resamples": None}) for way in WAYS}
    write(text.name, "run", {"name": arm.name, "rate": rate, "seed": seed, "steps": steps} | found)
    shown = ", ".join(f"dev {found[way]['dev']:.2f} at equal {way}" for way in WAYS)
    print(f"{text.name}: {arm.name}, rate {rate:g}, seed {seed}: {shown}", flush=True)


def train_arm(
    text: Text, arm: Arm, rate: float, seed: int, steps: int, after_step: Callable[[TSDAE, int], object]
) -> None:
    encoder = SentenceEncoder.from_pretrained("mini", arm.pooling)
    dataset = DenoisingDataset(load(text)[1], encoder.tokenizer, seed=seed)
    config = TrainConfig(steps=steps, batch_size=arm.batch, learning_rate=rate, seed=seed, eval_every=0, save_every=0)
    train(TSDAE(encoder, seed=seed), dataset, config, OBJECTIVES[arm.objective], after_step=after_step)


def costs(text: Text) -> dict[str, list[float]]:
    """Return each arm's seconds per sentence in each round; a round takes all arms through the same sentences."""
    seconds: dict[str, list[float]] = {arm.name: [] for arm in ARMS}
    for number in range(ROUNDS):
        for arm in ARMS:
            ends: list[float] = []

            def note(model: TSDAE, done: int, ends: list[float] = ends) -> None:
                ends.append(time.perf_counter())

            steps = SENTENCES_OF_A_ROUND // arm.batch
            train_arm(text, arm, 1e-4, number, 2 * steps, note)
            seconds[arm.name].append(round((ends[-1] - ends[steps - 1]) / SENTENCES_OF_A_ROUND, 7))
    return seconds


def steps_in_time(arm: Arm, text: str) -> int:
    """Return how many steps of this arm take as long as TSDAE's 48,000 sentences: the median ratio of the rounds."""
    (cost,) = of("cost", text)
    seconds = cost["seconds_per_sentence"]
    faster = median(tsdae / own for tsdae, own in zip(seconds[TSDAE_CLS.name], seconds[arm.name], strict=True))
    return round(arm.steps * faster)


def best_rate(arm: Arm, way: str) -> float:
    """Return the rate with the best dev of seed 0 on the STS-B sentences."""
    tried = [row for row in runs_of(arm, STSB) if row["seed"] == 0]
    return float(max(tried, key=lambda row: np.nan_to_num(row[way]["dev"], nan=-math.inf))["rate"])


def rates_to_try(arm: Arm) -> list[float]:
    """Return what seed 0 lacks of the first rates; if nothing, of those beside the best ones."""
    tried = {row["rate"] for row in runs_of(arm, STSB) if row["seed"] == 0}
    wanted = set(FIRST_RATES)
    if wanted <= tried:
        places = [RATES.index(best_rate(arm, way)) for way in WAYS]
        wanted = {rate for place in places for rate in RATES[max(0, place - 1) : place + 2]}
    return sorted(wanted - tried)


def chosen_runs(arm: Arm) -> list[tuple[float, int]]:
    """Return rate and seed of the runs that the page reports."""
    return [(rate, seed) for seed in range(SEEDS) for rate in sorted({best_rate(arm, way) for way in WAYS})]


def has_its_rates(arm: Arm) -> bool:
    """True if the runs on the STS-B sentences are finished."""
    done = {(row["rate"], row["seed"]) for row in runs_of(arm, STSB)}
    return not rates_to_try(arm) and done.issuperset(chosen_runs(arm))


def write_baselines(text: Text) -> None:
    """Write a row of each baseline that has none."""
    done = {row["name"] for row in of("baseline", text.name)}
    for name, pooling, encode in baselines(text):
        if name not in done:
            scores = scores_of(encode(), load(text)[2], f"{text.name}-{name}")
            write(text.name, "baseline", {"name": name, "pooling": pooling} | scores)


def baselines(text: Text) -> Iterator[tuple[str, str, Callable[[], Encode]]]:
    """Yield what needs no training, as (name, pooling of the TSDAE that it is compared with, what makes its encode).

    Whitening is fitted on the text. Word vectors: of `mini` itself, and WordLlama's (PyPI, 256 numbers a token), which
    were trained on labelled pairs; its row is left out where the package is not installed.
    """
    for pooling in ("cls", "mean", "first-last-mean"):
        encode = load_encoder("mini", pooling).encode
        like = "cls" if pooling == "cls" else "mean"
        yield f"untrained, {pooling}", like, functools.partial(lambda encode: encode, encode)
        if pooling != "cls":
            yield f"untrained, {pooling}, whitened", like, functools.partial(whitened, encode, text)
    yield "mean of mini's word embeddings", "mean", mean_of_words
    try:
        import wordllama
    except ImportError:
        print("python -m pip install wordllama, for a row of word vectors", flush=True)
    else:
        files = Path(wordllama.__file__).parent  # where it looks itself, it does not find its tokenizer
        loaded = functools.partial(wordllama.WordLlama.load, cache_dir=files, disable_download=True)
        yield "mean of WordLlama's word vectors (labels)", "mean", lambda: loaded().embed


def whitened(encode: Encode, text: Text) -> Encode:
    whitening = Whitening(encode(load(text)[0]))
    return lambda texts: whitening(encode(texts))


def mean_of_words() -> Encode:
    encoder = SentenceEncoder.from_pretrained("mini")
    words_VD, tokenizer = encoder.bert.embeddings.words.weight.detach().numpy(), encoder.tokenizer

    def encode(texts: list[str]) -> np.ndarray:
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return np.stack([words_VD[one or [tokenizer.unk_token_id]].mean(0) for one in ids])

    return encode


def scores_of(encode: Encode, splits: dict[str, Pairs], name: str) -> Row:
    """Return {split: Spearman x 100} and keep test's resamples in a file."""
    dev = evaluate_sts(encode, splits["dev"], intervals=False)
    test = evaluate_sts(encode, splits["test"])
    path = ROWS / "objectives" / f"{name.replace(', ', '-').replace(' ', '-')}.npy"
    path.parent.mkdir(exist_ok=True)
    np.save(path, test.values_S.get("spearman", np.full(RESAMPLES, math.nan)).astype(np.float32))
    return {"dev": round(dev.spearman, 3), "test": round(test.spearman, 3), "resamples": path.name}


# ---------------------------------------------------------------------------------------------------------------
# Rows


def begin(threads: int, parents: Row | None = None) -> None:
    """Do first in every process. ValueError if its code is not that of the process whose `origin` is given."""
    when_parent_ends(lambda: os._exit(1))
    torch.set_num_threads(threads)
    if parents is not None and origin() != parents:
        raise ValueError("the code has changed since the start; run the same command again")


@functools.cache
def origin() -> Row:
    """Return where rows come from; the commit is None where the tree differs from it. Read once, as the code is."""
    commit, clean = tree_state()
    where = {"machine": machine_name(), "threads": torch.get_num_threads()}
    return {"commit": commit if clean else None, **where, "precision": choose_precision("auto", torch.device("cpu"))}


def rows() -> list[Row]:
    path = ROWS / "objectives.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def of(kind: str, text: str) -> list[Row]:
    return [row for row in rows() if row["kind"] == kind and row["text"] == text]


def runs_of(arm: Arm, text: str) -> list[Row]:
    """Return one row a rate and seed."""
    return list({(row["rate"], row["seed"]): row for row in of("run", text) if row["name"] == arm.name}.values())


def write(text: str, kind: str, values: Row) -> None:
    with (ROWS / "objectives.jsonl").open("a", encoding="utf-8") as file:  # one short write: processes do not mix
        file.write(json.dumps({"text": text, "kind": kind} | values | origin()) + "\n")


# ---------------------------------------------------------------------------------------------------------------
# The page


HOW_TO_READ = """Spearman x 100 on STS-B at the last step, mean and standard deviation over the seeds (seed 0 has also
chosen the rate). Differences are of test, against TSDAE with the same pooling (TSDAE's mean: against its [CLS];
first-last-mean and word vectors: against the mean), with 95 % intervals over the pairs and over the seeds. The verdict
rests on the less certain of the two, corrected for the lines of its table (Holm), separately for objectives and for
models without training."""
LIMITS = f"""What it cannot show: `mini` has 4 layers of 256, and {SENTENCES:,} sentences are few. The published recipes
train models of BERT-base's size on about a million sentences; in most the rate decays, and SimCSE keeps the checkpoint
with the best dev score. Here the rate is constant and the last step counts. Of a text of {OF_A_TEXT:,} sentences a run
reads the {SENTENCES:,} of its seed's order, more in equal time if its steps are cheaper; whitening is fitted on all.
`mini` was pretrained on `english_open`, so that text is new to no objective. Time is that of this code on a CPU."""


def page() -> str:
    """Return the page: two tables a text."""
    _, commands, *paragraphs = (__doc__ or "").split("\n\n")
    made_by = "; ".join(f"`{line.split('#')[0].strip()}`" for line in commands.splitlines())
    sections = [Section("TSDAE beside other objectives", [f"Made by {made_by}.", *paragraphs, HOW_TO_READ, LIMITS])]
    for text in dict.fromkeys(row["text"] for row in rows() if row["kind"] == "cost"):
        name = "The STS-B sentences" if text == STSB else f"{OF_A_TEXT:,} sentences of {text}"
        for way in WAYS:
            what = f"{SENTENCES:,} sentences seen" if way == SENTENCES_WAY else "equal time"
            sections.append(Section(f"{name}, {what}", [power(way, text)], Table(HEADER, lines(way, text))))
    origins = [
        f"{row['machine']}, {counted(row['threads'], 'thread')} a run, {row['precision']}, "
        f"commit {str(row['commit'])[:7]}"
        for row in rows()
    ]
    return markdown([*sections, Section("Origin", ["; ".join(dict.fromkeys(origins))])])


HEADER = [
    "setting",
    "rate",
    "steps",
    "seeds",
    "dev",
    "test",
    "difference",
    "over the pairs",
    "over the seeds",
    "verdict",
]


def lines(way: str, text: str) -> list[list[str]]:
    """Return a line a baseline and an objective; those whose seeds are missing show what is there."""
    found = compared(way, text)
    arms = {arm.name: arm for arm in ARMS}
    made = []
    for name, settings in settings_of(way, text).items():
        line = [name, "", "", ""]
        if name in arms:
            steps = arms[name].steps if way == SENTENCES_WAY else steps_in_time(arms[name], text)
            line = [name, f"{settings[0]['rate']:g}" if settings else "", f"{steps:,}", str(len(settings))]
        line += [spread([row[split] for row in settings]) for split in ("dev", "test")]
        if one := found.get(name):
            over_seeds = bracketed(one.over_seeds, "+") if one.over_seeds else ""
            line += [f"{one.difference:+.2f}", bracketed(one.over_pairs, "+"), over_seeds, one.verdict]
        made.append(line + [""] * (len(HEADER) - len(line)))
    return made


def settings_of(way: str, text: str) -> dict[str, list[Row]]:
    """Return the scores of each line: of a baseline, or of the chosen rate's runs by seed."""
    found = {row["name"]: [row] for row in of("baseline", text)}
    for arm in ARMS:
        runs = runs_of(arm, text)
        chosen = [row for row in runs if row["rate"] == best_rate(arm, way)] if runs else []
        found[arm.name] = [row | row[way] for row in sorted(chosen, key=lambda row: row["seed"])]
    return found


def compared(way: str, text: str) -> dict[str, Comparison]:
    """Return each line against TSDAE with the same pooling, in the seeds that both have."""
    settings = settings_of(way, text)
    against = {row["name"]: row["pooling"] for row in of("baseline", text)} | {arm.name: arm.pooling for arm in ARMS}
    against[TSDAE_MEAN.name] = "cls"
    made: dict[bool, list[Comparison]] = {True: [], False: []}  # objectives, and what was not trained
    for name, ours in settings.items():
        theirs = settings[TSDAE_MEAN.name if against[name] == "mean" else TSDAE_CLS.name]
        pairs = [(one, other) for one in ours for other in theirs if one.get("seed", other["seed"]) == other["seed"]]
        if name != TSDAE_CLS.name and pairs:
            tests_KP = np.array([[one["test"], other["test"]] for one, other in pairs])
            ours_K = tests_KP[:, 0] if "seed" in ours[0] else tests_KP[:1, 0]
            resampled_KS = np.stack([resampled(one) - resampled(other) for one, other in pairs])
            made["seed" in ours[0]].append(compare(name, ours_K, tests_KP[:, 1], resampled_KS))
    return {one.name: one for family in made.values() if family for one in holm(family)}


def power(way: str, text: str) -> str:
    """Say how large a difference has to be to show."""
    count = len({arm.name for arm in ARMS} & compared(way, text).keys())
    seeds = len(settings_of(way, text)[TSDAE_CLS.name])
    if seeds < 2 or not count:
        return "Not yet run with several seeds."
    reach = f"{detectable(seeds, count):.1f} standard deviations of the paired differences"
    return f"With {seeds} seeds and {count} objectives to correct for, the clearest difference has to exceed {reach}."


def resampled(found: Row) -> np.ndarray:
    name = found["resamples"]
    return np.full(RESAMPLES, math.nan) if name is None else np.load(ROWS / "objectives" / name)


def spread(values: Sequence[float]) -> str:
    if not values:
        return "not yet run"
    if np.isnan(values).any():
        return "diverged"
    return f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
