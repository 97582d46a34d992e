"""The parts of `benchmarks/gpu.py`: each returns what it found as plain numbers, or raises."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks import ours, reference
from benchmarks.bench import OURS, REFERENCE
from benchmarks.gpu_graphs import compare_and_time
from benchmarks.limits import best_matrix_rate
from benchmarks.measure_rest import XLMR_LIKE
from benchmarks.rows import ROOT, Origin, Row, origin, spread, write
from benchmarks.workers import memory_of_process
from tests import tiny
from tests.runs import Overflows, assert_same_run
from tests.tolerances import BFLOAT16_RATIO, FLOAT32, FLOAT64
from tsdae import TSDAE, DenoisingDataset, SentenceEncoder, TrainConfig, ops, train
from tsdae.bert import Bert, BertConfig
from tsdae.hub.model_folder import load_tokenizer

MINI = ROOT / "tsdae" / "hub" / "mini"
ARTICLE = 12_500  # steps: 100,000 sentences in batches of 8
SMALL = {"width": 32, "layers": 2, "heads": 2, "feed_forward": 64, "positions": 128}  # with --cpu
WORDS_OF_BERT = 30_522
GB = 1e9


@dataclass(frozen=True)
class Place:
    """Where the parts run: on a CUDA device, or on a CPU with a tiny model and few steps (``cpu``)."""

    cpu: bool
    output: Path
    origin: Origin

    @classmethod
    def here(cls, cpu: bool, output: Path, command: str, commit: str | None) -> Place:
        return cls(cpu, output, origin(command, None if cpu else torch.cuda.get_device_name(), commit))

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.cpu else "cuda")

    def steps(self, count: int) -> int:
        """``count`` on a GPU; a few of them on a CPU."""
        return max(2, count // 50) if self.cpu else count

    def config(self, **settings: Any) -> TrainConfig:
        recipe: dict[str, Any] = {"device": self.device.type, "eval_every": 0, "precision": "bf16"}
        return TrainConfig(**(recipe | settings))

    def wait(self) -> None:
        if not self.cpu:
            torch.cuda.synchronize()

    def peak_gb(self) -> float:
        """The most memory since the last call: of tensors on a GPU, of the process on a CPU."""
        if self.cpu:
            return memory_of_process("VmHWM") / GB
        peak = torch.cuda.max_memory_allocated() / GB
        torch.cuda.reset_peak_memory_stats()
        return peak

    def side(self, **settings: Any) -> ours.Side:
        """Our side with BERT-base's shape and random weights; ``settings`` of `BertConfig`."""
        side = ours.Side(torch.get_num_threads(), self.device.type)
        shape = {"vocabulary_size": WORDS_OF_BERT} | (SMALL if self.cpu else {}) | settings
        side.load_random(shape, str(MINI), sentences(600 if self.cpu else 100_000))
        return side

    def add(self, row: Row) -> dict[str, Any]:
        """Write a row of the speed table at once."""
        folder = self.output / "rows"
        if self.cpu or self.origin.clean is False or self.origin.commit == "unknown":
            folder = self.output / "rows-of-no-commit"
            row = dataclasses.replace(row, clean=True, commit="none")
        write([row], folder)
        return {"values": row.values, "ratio": row.ratio} | row.details


def sentences(count: int) -> list[str]:
    """Words of mini's vocabulary at random; 5 to 40 in a sentence, 11 at the median, as in captions and news."""
    words = sorted(w for w in load_tokenizer(MINI).get_vocab() if w.isascii() and w.isalpha() and len(w) > 1)
    random = np.random.default_rng(0)
    lengths = np.clip(random.lognormal(2.4, 0.4, count), 5, 40).astype(int)
    return [" ".join(random.choice(words, length)) for length in lengths]


def mini(dropout: float | None = None, **settings: Any) -> TSDAE:
    encoder = SentenceEncoder.from_pretrained("mini", pooling=settings.pop("pooling", "cls"))
    if dropout is not None:
        encoder.bert.set_dropout(dropout, dropout)
    return TSDAE(encoder, **settings)


# right results


def parity(place: Place) -> dict[str, Any]:
    """Loss and every gradient against the CPU's in fp64; bf16 within twice the error of its plain operations."""
    found: dict[str, Any] = {}
    cases: dict[str, dict[str, Any]] = {"paper": {}, "mean, untied": {"pooling": "mean", "tie": False}}
    for name, settings in cases.items():
        model = mini(**settings)
        batch = DenoisingDataset(sentences(16), model.encoder.tokenizer).batch(np.zeros(16, int), np.arange(16))
        loss, exact = ours.loss_and_gradients(model, batch, "fp64")
        bounds: tuple[tuple[ours.Precision, dict[str, float]], ...] = (("fp64", FLOAT64), ("fp32", FLOAT32))
        for precision, tolerance in bounds:
            loss_there, there = ours.loss_and_gradients(model.to(place.device), batch, precision)
            found[f"{name}, {precision}"] = ours.relative_error(there, exact)
            close = abs(loss_there - loss) <= tolerance["rtol"] * loss
            if not close or found[f"{name}, {precision}"] > 10 * tolerance["rtol"]:
                raise AssertionError(f"{name}, {precision}: loss {loss_there} for {loss}, gradients {found}")
        fast = ours.relative_error(ours.loss_and_gradients(model, batch, "bf16")[1], exact)
        with ops.plain():
            plain = ours.relative_error(ours.loss_and_gradients(model, batch, "bf16")[1], exact)
        found |= {f"{name}, bf16": fast, f"{name}, plain bf16": plain}
        if fast > BFLOAT16_RATIO * plain:
            raise AssertionError(f"{name}: bf16 errs by {fast:.2g}, and {BFLOAT16_RATIO * plain:.2g} is allowed")
    return found


def fp16(place: Place) -> dict[str, Any]:
    """Steps that overflow are skipped and counted, the scale falls, and the others train."""
    weights: list[dict[str, Tensor]] = []
    logged: list[dict[str, Any]] = []
    config = place.config(steps=8, batch_size=4, precision="fp16", log_every=8, learning_rate=1e-3)
    with mock.patch("tsdae.training.choose_precision", lambda name, device: name):  # fp16 on a CPU is refused
        train(
            tiny.model(dtype=torch.float32), tiny.dataset(), config, Overflows({2, 3, 6}), on_row=logged.append,
            after_step=lambda model, done: weights.append({n: v.clone() for n, v in model.state_dict().items()}),
        )  # fmt: skip
        real = train_logged(place, mini(), place.steps(50), batch_size=2 if place.cpu else 32, precision="fp16")
    changed = [any((after[name] != before[name]).any() for name in before) for before, after in pairwise(weights)]
    if changed != [False, False, True, True, False, True, True] or logged[-1]["skipped_steps"] != 3:
        raise AssertionError(f"steps that changed a weight: {changed}; {logged[-1]}")
    return {"changed": changed, "skipped": logged[-1]["skipped_steps"], "mini": real}


def train_logged(place: Place, model: TSDAE, steps: int, **settings: Any) -> dict[str, Any]:
    """Train, and return the last row of the log."""
    logged: list[dict[str, Any]] = []
    dataset = DenoisingDataset(sentences(2000), model.encoder.tokenizer)
    train(model, dataset, place.config(steps=steps, **settings), on_row=logged.append)
    return logged[-1]


def resume(place: Place) -> dict[str, Any]:
    """200 deterministic steps, and the same ones stopped and resumed in the middle: bit for bit."""
    steps = place.steps(200)
    with tempfile.TemporaryDirectory() as folder:
        whole, run = Path(folder, "whole"), Path(folder, "run")
        recipe: dict[str, Any] = {"batch_size": 8 if place.cpu else 32, "deterministic": True, "log_every": 1}
        train_logged(place, mini(), steps, output=str(whole), **recipe)
        train_logged(place, mini(), steps // 2, output=str(run), **recipe)
        last = train_logged(place, mini(), steps, output=str(run), resume=True, **recipe)
        assert_same_run(whole, run, best=False)
    torch.use_deterministic_algorithms(False)
    return {"steps": steps, "stopped after": steps // 2, "last row": last}


def against_reference(place: Place) -> dict[str, Any]:
    """The loss and every gradient of sentence-transformers on this device, of mini's shape with its weights."""
    our, their = (
        ours.Side(torch.get_num_threads(), place.device.type),
        reference.Side(torch.get_num_threads(), place.device.type),
    )
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        our.write_training_folder(str(MINI), folder)
        their.load_training(folder)
        our.load_training(folder, sentences(64), their.weights())
        (batch,) = our.batches(8, 0, 1)
        precisions: tuple[ours.Precision, ...] = ("fp64", "fp32", "bf16")
        for precision in precisions:
            found[precision] = our.compare(precision, 8, *their.gradients(precision, batch))
    if any(each["differs"] for each in found.values()):
        raise AssertionError(found)
    return found


# speed


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


def tests(place: Place) -> dict[str, Any]:
    """The tests that need a CUDA device, and those of its ways that do not."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "",
        "-p",
        "no:cacheprovider",
        "tests/test_cuda.py",
        "tests/test_buckets.py",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    if done.returncode:
        raise AssertionError(done.stdout[-2000:] or done.stderr[-2000:])
    return {"pytest": done.stdout.strip().splitlines()[-1]}


PARTS: dict[str, Callable[[Place], dict[str, Any]]] = {
    "parity": parity,
    "fp16": fp16,
    "resume": resume,
    "reference": against_reference,
    "batch-8": batch_8,
    "batch-256": batch_256,
    "graphs": graphs,
    "profile": profiled,
    "memory": memory,
    "tests": tests,
}
