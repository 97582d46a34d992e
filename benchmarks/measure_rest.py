"""Beside training: encoding, memory, and the start on a large corpus."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.bench import OURS, REFERENCE, Bench, NotEqual, NotRun, alternate, check_reference, per_second
from benchmarks.rows import Row, ratios, spread
from benchmarks.workers import Worker

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
GB = 1e9


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
    """Largest resident memory of a fresh process that does two training steps."""
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
