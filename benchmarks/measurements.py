"""The measurements, each as a function from a `Bench` to its rows. Both sides work in turn, block by block."""

from __future__ import annotations

import contextlib
import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.limits import best_matrix_rate
from benchmarks.rows import Origin, Row, ratios, spread
from benchmarks.workers import Worker

OURS, REFERENCE = "ours", "reference"  # as the workers are called
TRAINING = (("fp32", 8), ("bf16", 8), ("fp32", 64), ("bf16", 64))
XLMR_LIKE = {  # of `tsdae.bert.BertConfig`: MiniLM's layers under XLM-R's vocabulary
    "vocabulary_size": 250_002,
    "width": 384,
    "layers": 6,
    "heads": 12,
    "feed_forward": 1536,
    "positions": 514,
    "position_offset": 2,
    "token_types": 1,
}
STEPS_OF_THE_ARTICLE = 12_500  # 100,000 sentences in batches of 8
GB = 1e9


class NotEqual(Exception):
    """The two sides do not do the same work; the message names what differs."""


class NotRun(Exception):
    """This machine or these arguments do not allow the measurement; the message says what is missing."""


@dataclass
class Bench:
    """What to measure with.

    sentences: to train on. test_sentences: to encode; None: they cannot be had. corpus: a prepared corpus.
    short: a few repetitions of everything, for equality and not for numbers.
    scratch: a folder that is thrown away. rows: what has been measured so far.
    """

    model: Path
    sentences: list[str]
    test_sentences: list[str] | None
    corpus: str | None
    threads: int
    short: bool
    profile: bool
    vocabulary: int
    origin: Origin
    scratch: Path
    rows: dict[str, Row] = field(default_factory=dict)

    def add(self, row: Row) -> Row:
        self.rows[row.name] = row
        return row


Blocks = list[list[float]]
Block = Callable[[int, int], list[float]]  # (first step, how many) -> seconds of each


def alternate(first: Block, second: Block, start: int, blocks: int, size: int) -> tuple[Blocks, Blocks]:
    """Both sides' seconds, block by block over the same steps; who begins changes from block to block."""
    times: tuple[Blocks, Blocks] = ([], [])
    for block in range(blocks):
        sides = [(first, times[0]), (second, times[1])]
        for work, kept in sides if block % 2 == 0 else reversed(sides):
            kept.append(work(start + block * size, size))
    return times


def flat(blocks: Blocks) -> list[float]:
    return [seconds for block in blocks for seconds in block]


def per_second(blocks: Blocks, items: int = 1) -> list[float]:
    return [items / seconds for seconds in flat(blocks)]


# training


def check_reference() -> None:
    missing = [name for name in ("sentence_transformers", "nltk") if importlib.util.find_spec(name) is None]
    if missing:
        raise NotRun(f"{' and '.join(missing)} missing; run: python -m pip install -e '.[benchmark]'")


@contextlib.contextmanager
def training_pair(bench: Bench, threads: int) -> Iterator[tuple[Worker, Worker]]:
    """Both sides with the same weights, corpus and dropout."""
    check_reference()
    folder = tempfile.mkdtemp(dir=bench.scratch)
    with Worker("ours", threads) as ours, Worker("reference", threads) as theirs:
        ours.call("write_training_folder", str(bench.model), folder)
        theirs.call("load_training", folder)
        ours.call("load_training", folder, bench.sentences, theirs.call("weights"))
        dropout = [side.call("dropout") for side in (ours, theirs)]
        if dropout[0] != dropout[1]:
            raise NotEqual(f"dropout: ours {dropout[0]}, the reference's {dropout[1]}")
        yield ours, theirs


def prove_equal(ours: Worker, theirs: Worker, batch_size: int = 8) -> dict[str, float]:
    """Loss and every gradient of one real batch in three precisions. Returns the errors; raises NotEqual."""
    (batch,) = ours.call("batches", batch_size, 0, 1)
    errors = {}
    for precision in ("fp64", "fp32", "bf16"):
        found = ours.call("compare", precision, batch_size, *theirs.call("gradients", precision, batch))
        if found["differs"]:
            raise NotEqual(f"{precision}, batch of {batch_size}: {'; '.join(found['differs'])}")
        errors[precision] = found["error"]
        if "reference_error" in found:
            errors[f"reference {precision}"] = found["reference_error"]
    return errors


def train_pair(
    bench: Bench, name: str, sides: tuple[Worker, Worker], precision: str, batch_size: int, threads: int, **details: Any
) -> Row:
    """Both sides' steps per second on the same batches, and the limit."""
    ours, theirs = sides
    warm = 1 if bench.short else 3
    blocks, size = (1, 2) if bench.short else (12, 5) if batch_size <= 8 else (10, 2)
    total = warm + blocks * size
    ours.call("start_training", precision, batch_size)
    theirs.call("start_training", precision, ours.call("batches", batch_size, 0, total))
    for side in sides:
        side.call("train", 0, warm)
    our_times, their_times = alternate(
        lambda first, count: ours.call("train", first, count),
        lambda first, count: theirs.call("train", first, count),
        warm,
        blocks,
        size,
    )
    limit = limit_of(bench, ours, precision, batch_size, warm, flat(our_times))
    return bench.origin.row(
        name,
        "steps/s",
        {OURS: per_second(our_times), REFERENCE: per_second(their_times)},
        ratios(their_times, our_times),
        threads=threads,
        dtype=precision,
        batch=batch_size,
        limit=limit,
        **details,
    )


def limit_of(
    bench: Bench, ours: Worker, precision: str, batch_size: int, first: int, seconds: list[float]
) -> dict[str, Any]:
    """The arithmetic of the limit over a few of the timed steps; share: limit over the time that we took."""
    count = 1 if bench.short else min(6, len(seconds))
    chosen = np.linspace(0, len(seconds) - 1, count).astype(int).tolist()
    found = [ours.call("limit", precision, batch_size, first + i, 2 if bench.short else 7) for i in chosen]
    totals = [part["products"] + part["optimiser"] + part["softmax"] for part in found]
    middle = {name: spread(part[name] for part in found)["p50"] for name in found[0]}
    return {
        "products_ms": 1e3 * middle["products"],
        "optimiser_ms": 1e3 * middle["optimiser"],
        "softmax_ms": 1e3 * middle["softmax"],
        "total_ms": 1e3 * spread(totals)["p50"],
        "gflop": middle["flop"] / 1e9,
        "gflop_per_second": spread(part["flop"] / part["products"] / 1e9 for part in found)["p50"],
        "noisy_tokens": middle["noisy_tokens"],
        "target_tokens": middle["target_tokens"],
        "steps": count,
        "share": spread(total / seconds[i] for total, i in zip(totals, chosen, strict=True)),
    }


def training(bench: Bench) -> Iterator[Row]:
    """Steps per second in both precisions and two batch sizes, noise and tokens, and with ``profile`` the parts."""
    with training_pair(bench, bench.threads) as sides:
        errors = prove_equal(*sides)
        for precision, batch_size in TRAINING:
            name = f"train-{precision}-{batch_size}"
            yield bench.add(train_pair(bench, name, sides, precision, batch_size, bench.threads, errors=errors))
        yield bench.add(noise_and_tokens(bench, *sides))
        if bench.profile:
            for precision in ("fp32", "bf16"):
                yield bench.add(profile(bench, *sides, precision))


def noise_and_tokens(bench: Bench, ours: Worker, theirs: Worker, batch_size: int = 8) -> Row:
    """Milliseconds from text (the reference) or a tokenised corpus (ours) to the ids of a noisy and a clean batch."""
    blocks, size = (1, 3) if bench.short else (10, 20)
    rows = ours.call("rows", batch_size, 0, (1 + blocks) * size)
    texts = [[bench.sentences[row] for row in step] for step in rows]
    ours.call("make_batches", batch_size, 0, size)
    theirs.call("make_batches", texts[:size])
    our_times, their_times = alternate(
        lambda first, count: ours.call("make_batches", batch_size, first, count),
        lambda first, count: theirs.call("make_batches", texts[first : first + count]),
        size,
        blocks,
        size,
    )
    middle = spread(flat(our_times))["p50"]
    steps = {precision: bench.rows[f"train-{precision}-8"].values[OURS]["p50"] for precision in ("fp32", "bf16")}
    return bench.origin.row(
        "noise-tokens",
        "ms",
        {OURS: [1e3 * s for s in flat(our_times)], REFERENCE: [1e3 * s for s in flat(their_times)]},
        ratios(their_times, our_times),
        threads=bench.threads,
        dtype="int64",
        batch=batch_size,
        share_of_step={precision: middle * rate for precision, rate in steps.items()},
    )


def profile(bench: Bench, ours: Worker, theirs: Worker, precision: str, batch_size: int = 8) -> Row:
    """Milliseconds of a step by part, under the profiler, which slows it a little."""
    warm, count = 2, 2 if bench.short else 10
    ours.call("start_training", precision, batch_size)
    theirs.call("start_training", precision, ours.call("batches", batch_size, 0, warm + count))
    parts = {}
    for side in (ours, theirs):
        side.call("train", 0, warm)
        parts[side.side] = side.call("parts", warm, count)
    totals = {str(side): [sum(milliseconds.values())] for side, milliseconds in parts.items()}
    return bench.origin.row(
        f"profile-{precision}-8",
        "ms",
        totals,
        threads=bench.threads,
        dtype=precision,
        batch=batch_size,
        parts=parts,
        steps=count,
    )


def slower(bench: Bench) -> Iterator[Row]:
    """Cases that show us at our least: one thread, bf16 against fp32, one sentence a call."""
    with training_pair(bench, 1) as sides:
        yield bench.add(train_pair(bench, "slower-threads-1", sides, "fp32", 8, threads=1))
    with Worker("ours", bench.threads) as ours, Worker("ours", bench.threads) as other:
        warm, blocks, size = (1, 1, 2) if bench.short else (3, 8, 5)
        for worker, precision in ((ours, "bf16"), (other, "fp32")):
            worker.call("load_training", str(bench.model), bench.sentences)
            worker.call("start_training", precision, 8)
            worker.call("train", 0, warm)
        bf16, fp32 = alternate(
            lambda first, count: ours.call("train", first, count),
            lambda first, count: other.call("train", first, count),
            warm,
            blocks,
            size,
        )
        yield bench.add(
            bench.origin.row(
                "slower-bf16-8",
                "steps/s",
                {"bf16": per_second(bf16), "fp32": per_second(fp32)},
                ratios(fp32, bf16),
                threads=bench.threads,
                dtype="bf16",
                batch=8,
            )
        )


# encoding


def encode(bench: Bench) -> Iterator[Row]:
    """Sentences per second of `encode` with each side's default batch size, and of one sentence a call."""
    check_reference()
    if bench.test_sentences is None:
        raise NotRun("the sentences of STS-B are fetched only without --sentences")
    sentences = bench.test_sentences[: 100 if bench.short else None]
    with Worker("ours", bench.threads) as ours, Worker("reference", bench.threads) as theirs:
        for side in (ours, theirs):
            side.call("load_encoder", str(bench.model))
        error = float(np.abs(ours.call("vectors", sentences) - theirs.call("vectors", sentences)).max())
        if not error <= 1e-5:
            raise NotEqual(f"the sentence vectors of `encode` by {error:.3g}")
        if ours.call("count_encoded", sentences) != len(sentences):
            raise NotEqual("how many sentences are encoded: ours merges equal ones")
        times = alternate(
            lambda first, count: ours.call("encode", sentences, count),
            lambda first, count: theirs.call("encode", sentences, count),
            0,
            1 if bench.short else 7,
            1,
        )
        yield bench.add(
            bench.origin.row(
                "encode",
                "sentences/s",
                {side: per_second(t, len(sentences)) for side, t in zip((OURS, REFERENCE), times, strict=True)},
                ratios(times[1], times[0]),
                threads=bench.threads,
                dtype="fp32",
                sentences=len(sentences),
                batch_sizes={OURS: 64, REFERENCE: 32},
                largest_difference=error,
            )
        )
        blocks, size = (1, 2) if bench.short else (10, 20)
        singly = alternate(
            lambda first, count: ours.call("encode_singly", sentences[first : first + count]),
            lambda first, count: theirs.call("encode_singly", sentences[first : first + count]),
            0,
            blocks,
            size,
        )
        yield bench.add(
            bench.origin.row(
                "slower-encode-1",
                "sentences/s",
                {side: per_second(t) for side, t in zip((OURS, REFERENCE), singly, strict=True)},
                ratios(singly[1], singly[0]),
                threads=bench.threads,
                dtype="fp32",
                batch=1,
            )
        )


# memory, and the start on a large corpus


def memory(bench: Bench) -> Iterator[Row]:
    """Largest resident memory of a fresh process that does one training step."""
    check_reference()
    sentences, length = (8, 16) if bench.short else (64, 64)
    settings = XLMR_LIKE | {"vocabulary_size": bench.vocabulary}
    ids_BL = np.random.default_rng(0).integers(5, bench.vocabulary, (sentences, length))
    needed = 4.5 * 4 * sentences * length * bench.vocabulary  # the reference keeps four fp32 copies of the logits
    if available_memory() < needed:
        raise NotRun(
            f"the reference needs about {needed / GB:.0f} GB of memory, {available_memory() / GB:.0f} are free"
        )
    folder = str(bench.scratch / "xlm-roberta")
    with Worker("reference", bench.threads) as writer:
        writer.call("write_random_xlm_roberta", settings, folder)
    found: dict[str, list[dict[str, int]]] = {OURS: [], REFERENCE: []}
    for _ in range(1 if bench.short else 2):
        with Worker("ours", bench.threads) as ours:
            found[OURS].append(ours.call("memory_of_step", settings, ids_BL))
        with Worker("reference", bench.threads) as theirs:
            found[REFERENCE].append(theirs.call("memory_of_step", folder, ids_BL))
    peaks = {side: [each["peak"] / GB for each in runs] for side, runs in found.items()}
    beyond = {side: spread((e["peak"] - e["after_imports"]) / GB for e in runs) for side, runs in found.items()}
    yield bench.add(
        bench.origin.row(
            "memory",
            "GB",
            peaks,
            [theirs / ours for ours, theirs in zip(peaks[OURS], peaks[REFERENCE], strict=True)],
            threads=bench.threads,
            dtype="fp32",
            batch=sentences,
            beyond_imports_gb=beyond,
            vocabulary=bench.vocabulary,
            tokens_per_sentence=length,
        )
    )


def available_memory() -> int:
    """Bytes that a new process could have."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise NotRun("/proc/meminfo does not say how much memory is free")


def start(bench: Bench, sentences: int = 10_000_000) -> Iterator[Row]:
    """Seconds from the loaded model to the end of the first step, on a prepared corpus repeated to ``sentences``."""
    if bench.corpus is None:
        raise NotRun("--corpus FOLDER names no prepared corpus (scripts/prepare.py makes one)")
    sentences = 100_000 if bench.short else sentences
    large = str(bench.scratch / "large-corpus")
    with Worker("ours", bench.threads) as writer:
        writer.call("tile_corpus", bench.corpus, sentences, large)
    found = []
    for _ in range(1 if bench.short else 5):
        with Worker("ours", bench.threads) as ours:
            found.append(ours.call("start_on_corpus", str(bench.model), large))
    yield bench.add(
        bench.origin.row(
            "start",
            "s",
            {OURS: [each["seconds"] for each in found]},
            threads=bench.threads,
            dtype="fp32",
            batch=8,
            sentences=found[0]["sentences"],
            corpus="the arrays of a smaller prepared corpus, repeated; in the page cache",
            anonymous_gb={
                "after the step": spread(each["beyond_model"] / GB for each in found)["p50"],
                "peak": max(each["peak_beyond_model"] / GB for each in found),
            },
        )
    )


# GPU


def gpu(bench: Bench) -> Iterator[Row]:
    """bert-base's shape with random weights, bf16, on one CUDA device."""
    if not torch.cuda.is_available():
        raise NotRun("there is no CUDA device")
    best = best_matrix_rate()
    for suffix, attention_dropout in (("", 0.1), ("-no-attention-dropout", 0.0)):
        with Worker("ours", bench.threads, "cuda") as ours:
            settings = {"attention_dropout": attention_dropout}
            ours.call("load_random", settings, str(bench.model), bench.sentences)
            for batch_size in (8, 256):
                warm, blocks, size = (5, 1, 5) if bench.short else (50, 15, 20)
                ours.call("start_training", "bf16", batch_size)
                ours.call("train_on_device", 0, warm)
                starts = [warm + block * size for block in range(blocks)]
                seconds = [ours.call("train_on_device", first, size) / size for first in starts]
                name = f"gpu-{batch_size}{suffix}"
                details: dict[str, Any] = {"steps_per_second": spread(1 / s for s in seconds), "steps": blocks * size}
                if batch_size == 8:
                    unit, values = "s", [STEPS_OF_THE_ARTICLE * s for s in seconds]
                else:
                    flops = [
                        sum(ours.call("flop", batch_size, number) for number in range(first, first + size)) / size
                        for first in starts
                    ]
                    unit, values = "%", [100 * flop / s / best for flop, s in zip(flops, seconds, strict=True)]
                    details |= {"gflop": spread(flops)["p50"] / 1e9, "best_tflop_per_second": best / 1e12}
                    details["tokens"] = asdict(ours.call("tokens", batch_size, warm))
                yield bench.add(
                    bench.origin.row(
                        name, unit, {OURS: values}, threads=bench.threads, dtype="bf16", batch=batch_size, **details
                    )
                )


GROUPS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "training": training,
    "slower": slower,
    "encode": encode,
    "memory": memory,
    "start": start,
    "gpu": gpu,
}
