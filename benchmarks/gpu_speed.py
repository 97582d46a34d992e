"""The parts of `benchmarks/gpu.py` about speed and memory: each returns what it found as plain numbers, or raises."""

from __future__ import annotations

import dataclasses
import importlib.util
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import ours, reference
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
    """(attention, seconds a step of each block, peak memory) with the fastest attention that is installed."""
    found = []
    flash = importlib.util.find_spec("flash_attn") is not None and not place.cpu
    batches = our.batches(batch_size, 0, warm + blocks * size)
    our.model.to("cpu")  # its memory is not theirs
    with tempfile.TemporaryDirectory() as folder:
        our.model.encoder.save_pretrained(folder)
        for attention in ("sdpa", *(["flash_attention_2"] if flash else [])):
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
    return min(found, key=lambda each: float(np.median(each[1])))


def batch_8(place: Place) -> dict[str, Any]:
    """12,500 steps, from 1,000 that are measured; the reference's from 300."""
    found: dict[str, Any] = {}
    size = place.steps(50)
    for suffix, dropout in (("", 0.1), ("-no-attention-dropout", 0.0)):
        side = place.side(attention_dropout=dropout)
        place.peak_gb()
        seconds = seconds_of_ours(place, side, 8, place.steps(100), 2 if place.cpu else 20, size)
        values = {OURS: [ARTICLE * s for s in seconds]}
        details: dict[str, Any] = {"steps": len(seconds) * size, "steps_per_second": spread(1 / s for s in seconds)}
        details["peak_gb"] = {OURS: place.peak_gb()}
        ratio = None
        if not suffix:
            attention, theirs, peak = seconds_of_theirs(place, side, 8, place.steps(50), 2 if place.cpu else 6, size)
            values[REFERENCE] = [ARTICLE * s for s in theirs]
            ratio = [t / s for t, s in zip(theirs, seconds, strict=False)]
            details |= {"peak_gb": details["peak_gb"] | {REFERENCE: peak}, "reference_attention": attention}
        found[f"gpu-8{suffix}"] = place.add(row(place, f"gpu-8{suffix}", "s", values, ratio, batch=8, **details))
    return found


def batch_256(place: Place) -> dict[str, Any]:
    """Share of the rate that square bf16 products reach; steps of the reference a second beside ours."""
    best = 1e12 if place.cpu else best_matrix_rate()
    found: dict[str, Any] = {}
    batch, warm, size, blocks = 8 if place.cpu else 256, place.steps(20), place.steps(10), 2 if place.cpu else 10
    for suffix, dropout in (("", 0.1), ("-no-attention-dropout", 0.0)):
        side = place.side(attention_dropout=dropout)
        place.peak_gb()
        seconds = seconds_of_ours(place, side, batch, warm, blocks, size)
        flops = [
            sum(side.flop(batch, warm + block * size + number) for number in range(size)) / size
            for block in range(blocks)
        ]
        share = [100 * flop / s / best for flop, s in zip(flops, seconds, strict=True)]
        details: dict[str, Any] = {"steps": blocks * size, "steps_per_second": spread(1 / s for s in seconds)}
        details |= {"gflop": spread(flops)["p50"] / 1e9, "best_tflop_per_second": best / 1e12}
        details |= {"tokens": dataclasses.asdict(side.tokens(batch, warm)), "peak_gb": {OURS: place.peak_gb()}}
        values, ratio = {OURS: share}, None
        if not suffix:
            attention, theirs, peak = seconds_of_theirs(
                place, side, batch, place.steps(10), 2 if place.cpu else 5, size
            )
            values[REFERENCE] = [100 * flop / s / best for flop, s in zip(flops, theirs, strict=False)]
            ratio = [t / s for t, s in zip(theirs, seconds, strict=False)]
            details |= {"peak_gb": details["peak_gb"] | {REFERENCE: peak}, "reference_attention": attention}
        found[f"gpu-256{suffix}"] = place.add(
            row(place, f"gpu-256{suffix}", "%", values, ratio, batch=batch, **details)
        )
    return found


def row(
    place: Place, name: str, unit: str, values: dict[str, list[float]], ratio: list[float] | None, **details: Any
) -> Row:
    return place.origin.row(name, unit, values, ratio, threads=torch.get_num_threads(), dtype="bf16", **details)


def graphs(place: Place) -> dict[str, Any]:
    """Batches of 8 filled up to few shapes: the cost of the filler, and whole steps captured once a shape."""
    side = place.side(positions=128)
    return compare_and_time(side.model, side.dataset, place.device, place.wait, place.steps(300), place.steps(ARTICLE))


def profiled(place: Place) -> dict[str, Any]:
    """Launches of a step of 8, how long the device works in it, and the twenty operations that take most of it."""
    warm, count = place.steps(50), place.steps(100) // 2
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
    kind, own = ("CPU", "self_cpu_time_total") if place.cpu else ("CUDA", "self_device_time_total")
    averages = profiler.key_averages()
    launches = sum(event.count for event in averages if "LaunchKernel" in event.key)
    events = sorted((e for e in averages if e.device_type.name == kind), key=lambda event: -getattr(event, own))
    return {
        "milliseconds of a step, under the profiler": 1e3 * clock.seconds[0],
        "of these the device works": sum(getattr(event, own) for event in events) / 1e3 / count,
        "launches": launches / count,
        "operations": [
            {"name": event.key[:100], "milliseconds": getattr(event, own) / 1e3 / count, "calls": event.count / count}
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
    model.to("cpu")
    place.peak_gb()
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
