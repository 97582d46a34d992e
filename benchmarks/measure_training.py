"""Training against the reference: speed and its limit, noise and tokens, the parts of a step, and slower cases."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench import OURS, REFERENCE, Bench, Blocks, NotEqual, alternate, check_reference, flat, per_second
from benchmarks.rows import Row, ratios, spread
from benchmarks.workers import Worker
from tsdae.dataset import NOISED_AT_ONCE
from tsdae.hub.model_folder import model_folder

TRAINING = (("fp32", 8), ("bf16", 8), ("fp32", 64), ("bf16", 64))


@contextlib.contextmanager
def training_pair(bench: Bench, threads: int, model: Path | None = None) -> Iterator[tuple[Worker, Worker]]:
    """Both sides with the same weights, corpus and dropout. model: its folder, by default the benchmark's."""
    check_reference()
    folder = tempfile.mkdtemp(dir=bench.scratch)
    with Worker("ours", threads) as ours, Worker("reference", threads) as theirs:
        ours.call("write_training_folder", str(model or bench.model), folder)
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


def train_in_turn(first: Worker, second: Worker, warm: int, blocks: int, size: int) -> tuple[Blocks, Blocks]:
    """Both workers' seconds a step, after ``warm`` steps of each that are not timed."""
    for worker in (first, second):
        worker.call("train", 0, warm)
    return alternate(partial(first.call, "train"), partial(second.call, "train"), warm, blocks, size)


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
    our_times, their_times = train_in_turn(ours, theirs, warm, blocks, size)
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


def default_run(bench: Bench) -> Iterator[Row]:
    """Steps per second of the default run: the built-in raw model at batch 32."""
    with training_pair(bench, bench.threads, model_folder("mini")) as sides:
        errors = prove_equal(*sides)
        for precision in ("fp32", "bf16"):
            yield bench.add(
                train_pair(bench, f"mini-{precision}-32", sides, precision, 32, bench.threads, errors=errors)
            )


def noise_and_tokens(bench: Bench, ours: Worker, theirs: Worker, batch_size: int = 8) -> Row:
    """Milliseconds from text (the reference) or a tokenised corpus (ours) to the ids of a noisy and a clean batch."""
    size = NOISED_AT_ONCE // batch_size  # as many batches as are made at once
    blocks = 1 if bench.short else 10
    rows = ours.call("rows", batch_size, 0, (1 + blocks) * size)
    texts = [[bench.sentences[row] for row in step] for step in rows]
    ours.call("make_batches", batch_size, 0, size)
    theirs.call("make_batches", texts[:2])
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
        bf16, fp32 = train_in_turn(ours, other, warm, blocks, size)
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
