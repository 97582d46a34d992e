"""The parts of `benchmarks/gpu.py` about speed and memory: each returns what it found as plain numbers, or raises."""

from __future__ import annotations

import dataclasses
import importlib.util
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import ours
from benchmarks.bench import OURS, REFERENCE
from benchmarks.gpu_graphs import compare_and_time
from benchmarks.gpu_place import Place
from benchmarks.limits import best_matrix_rate
from benchmarks.measure_rest import XLMR_LIKE
from benchmarks.rows import Row, spread
from tests import tiny
from tsdae import TSDAE, DenoisingDataset, SentenceEncoder, train
from tsdae.bert import Bert, BertConfig

ARTICLE = 12_500  # steps: 100,000 sentences in batches of 8


class Clock:
    """``after_step`` of `train`: seconds a step of each block, the device waited for at both ends of it."""

    def __init__(self, place: Place, warm: int, size: int) -> None:
        self.place, self.warm, self.size, self.seconds = place, warm, size, list[float]()
        self._since = 0.0

    def __call__(self, model: TSDAE, done: int) -> None:
        if done >= self.warm and (done - self.warm) % self.size == 0:
            self.place.wait()
            now = time.perf_counter()
            if done > self.warm:
                self.seconds.append((now - self._since) / self.size)
            self._since = now


def seconds_of_ours(place: Place, side: ours.Side, batch_size: int, warm: int, blocks: int, size: int) -> list[float]:
    clock = Clock(place, warm, size)
    config = place.config(steps=warm + blocks * size, batch_size=batch_size)
    train(side.model, side.dataset, config, after_step=clock)
    return clock.seconds


def seconds_of_theirs(
    place: Place, our: ours.Side, batch_size: int, warm: int, blocks: int, size: int
) -> tuple[str, list[float], float]:
    """(attention, seconds a step of each block, peak memory) with the fastest attention that runs here.

    Features are padded: its loss reads a mask [B, L], so it has no unpadded form.
    """
    from benchmarks import reference  # which our own numbers do without

    found, failed = [], []
    flash = importlib.util.find_spec("flash_attn") is not None and not place.cpu
    batches = our.batches(batch_size, 0, warm + blocks * size)
    our.model.to("cpu")  # its memory is not theirs
    with tempfile.TemporaryDirectory() as folder:
        our.model.encoder.save_pretrained(folder)
        for attention in ("sdpa", *(["flash_attention_2"] if flash else [])):
            try:
                their = reference.Side(torch.get_num_threads(), place.device.type)
                place.peak_gb()
                their.load_training(folder, attention)
                their.start_training("bf16", batches)
                their.train(0, warm)
                seconds = []
                for block in range(blocks):
                    place.wait()
                    since = time.perf_counter()
                    their.train(warm + block * size, size)
                    place.wait()
                    seconds.append((time.perf_counter() - since) / size)
                found.append((attention, seconds, place.peak_gb()))
            except Exception as error:
                traceback.print_exc()
                failed.append(f"{attention}: {error}")
    if not found:
        raise AssertionError(f"the reference did not run: {'; '.join(failed)}")
    return min(found, key=lambda each: float(np.median(each[1])))


def speeds(
    place: Place,
    batch: int,
    plans: tuple[tuple[int, int, int], tuple[int, int, int]],
    unit: str,
    value: Callable[[ours.Side, list[float], int], list[float]],
    about: Callable[[ours.Side], dict[str, Any]],
) -> dict[str, Any]:
    """Write the rows of a batch size, with and without attention dropout, each at once; then the first one again, with
    the reference's values beside ours.

    plans: steps to warm up, blocks and steps of a block, of ours and of the reference. value: what the row holds, of
    seconds a step in each block and the number of the first step. about: further details of the row.
    """
    found, sides = {}, []
    warm, _, size = plans[0]
    for name, dropout in ((f"gpu-{batch}", 0.1), (f"gpu-{batch}-no-attention-dropout", 0.0)):
        side = place.side(attention_dropout=dropout)
        place.peak_gb()
        seconds = seconds_of_ours(place, side, own(place, batch), *plans[0])
        details: dict[str, Any] = {"steps": len(seconds) * size, "steps_per_second": spread(1 / s for s in seconds)}
        details |= {"peak_gb": {OURS: place.peak_gb()}, "batch": own(place, batch)} | about(side)
        values = {OURS: value(side, seconds, warm)}
        found[name] = place.add(row(place, name, unit, values, None, **details))
        side.model.to("cpu")
        sides.append((name, side, seconds, values, details))
    name, side, seconds, values, details = sides[0]
    attention, theirs, peak = seconds_of_theirs(place, side, own(place, batch), *plans[1])
    values[REFERENCE] = value(side, theirs, plans[1][0])
    details |= {"peak_gb": details["peak_gb"] | {REFERENCE: peak}, "reference_attention": attention}
    ratio = [t / s for t, s in zip(theirs, seconds, strict=False)]
    found[name] = place.add(row(place, name, unit, values, ratio, **details))
    return found


def own(place: Place, batch: int) -> int:
    return 8 if place.cpu else batch


def batch_8(place: Place) -> dict[str, Any]:
    """12,500 steps, from 1,000 that are measured; the reference's from 300."""
    size = place.steps(50)
    plans = (place.steps(100), 2 if place.cpu else 20, size), (place.steps(50), 2 if place.cpu else 6, size)
    return speeds(place, 8, plans, "s", lambda side, seconds, first: [ARTICLE * s for s in seconds], lambda side: {})


def batch_256(place: Place) -> dict[str, Any]:
    """Share of the rate that square bf16 products reach."""
    best, batch = 1e12 if place.cpu else best_matrix_rate(), own(place, 256)
    size = place.steps(10)
    plans = (place.steps(20), 2 if place.cpu else 10, size), (place.steps(10), 2 if place.cpu else 5, size)

    def flops(side: ours.Side, first: int, blocks: int) -> list[float]:
        return [
            sum(side.flop(batch, first + block * size + number) for number in range(size)) / size
            for block in range(blocks)
        ]

    def share(side: ours.Side, seconds: list[float], first: int) -> list[float]:
        made = flops(side, first, len(seconds))
        return [100 * flop / s / best for flop, s in zip(made, seconds, strict=True)]

    def about(side: ours.Side) -> dict[str, Any]:
        first = plans[0][0]
        return {
            "gflop": spread(flops(side, first, plans[0][1]))["p50"] / 1e9,
            "best_tflop_per_second": best / 1e12,
            "tokens": dataclasses.asdict(side.tokens(batch, first)),
        }

    return speeds(place, 256, plans, "%", share, about)


def row(
    place: Place, name: str, unit: str, values: dict[str, list[float]], ratio: list[float] | None, **details: Any
) -> Row:
    return place.origin.row(name, unit, values, ratio, threads=torch.get_num_threads(), dtype="bf16", **details)


def graphs(place: Place) -> dict[str, Any]:
    """Batches of 8 filled up to few shapes: the cost of the filler, and whole steps captured once a shape."""
    side = place.side(100_000, positions=128)
    return compare_and_time(side.model, side.dataset, place.device, place.wait, place.steps(300), place.steps(ARTICLE))


def profiled(place: Place) -> dict[str, Any]:
    """Launches of a step of 8, how long the device works in it, and the twenty operations that take most of it."""
    warm, count = place.steps(50), 2 if place.cpu else 5  # twenty thousand events a step
    activities = [ProfilerActivity.CPU] + ([] if place.cpu else [ProfilerActivity.CUDA])
    profiler, clock = profile(activities=activities), Clock(place, warm, count)

    def after_step(model: TSDAE, done: int) -> None:
        if done == warm:
            profiler.__enter__()
        clock(model, done)
        if done == warm + count:
            profiler.__exit__(None, None, None)

    side = place.side()
    train(side.model, side.dataset, place.config(steps=warm + count, batch_size=8), after_step=after_step)
    kind, own_time = ("CPU", "self_cpu_time_total") if place.cpu else ("CUDA", "self_device_time_total")
    averages = profiler.key_averages()
    launches = sum(event.count for event in averages if "LaunchKernel" in event.key)
    own_events = (e for e in averages if e.device_type.name == kind and not e.is_user_annotation)
    events = sorted(own_events, key=lambda event: -getattr(event, own_time))
    return {
        "milliseconds of a step, under the profiler": 1e3 * clock.seconds[0],
        "of these the device works": sum(getattr(event, own_time) for event in events) / 1e3 / count,
        "launches": launches / count,
        "operations": [
            {
                "name": event.key[:100],
                "milliseconds": getattr(event, own_time) / 1e3 / count,
                "calls": event.count / count,
            }
            for event in events[:20]
        ],
    }


def memory(place: Place) -> dict[str, Any]:
    """Peak of two fp32 steps of 64 sentences of 64 tokens under a vocabulary of 250,002: the memory row, on a GPU."""
    count, length, words = (4, 16, 2000) if place.cpu else (64, 64, 250_002)
    settings: dict[str, Any] = XLMR_LIKE | {"vocabulary_size": words}
    ids_BL = np.random.default_rng(0).integers(5, words, (count, length))
    tokenizer = tiny.tokenizer()
    model = TSDAE(SentenceEncoder(Bert(BertConfig(**settings)), tokenizer))
    place.peak_gb()
    dataset = DenoisingDataset(ours.corpus_of(ids_BL), tokenizer, noise_ratio=0.0)
    train(model, dataset, place.config(steps=2, batch_size=count, precision="fp32"))
    found = {OURS: place.peak_gb()}
    print(found, flush=True)  # in the log, should the reference fail
    model.to("cpu")
    place.peak_gb()
    from benchmarks import reference  # which our own number does without

    their = reference.Side(torch.get_num_threads(), place.device.type)
    with tempfile.TemporaryDirectory() as folder:
        their.write_random_xlm_roberta(settings, folder)
        their.load_training(folder)
        their.start_training("fp32", [(ids_BL.tolist(), ids_BL.tolist())] * 2)
        their.train(0, 2)
    return found | {REFERENCE: place.peak_gb()}


PARTS: dict[str, Callable[[Place], dict[str, Any]]] = {
    "batch-8": batch_8,
    "batch-256": batch_256,
    "graphs": graphs,
    "profile": profiled,
    "memory": memory,
}
