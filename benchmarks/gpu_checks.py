"""The parts of `benchmarks/gpu.py` about right results: each returns what it found as plain numbers, or raises."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from benchmarks import ours
from benchmarks.gpu_place import MINI, Place, mini, sentences
from benchmarks.rows import ROOT
from tests import tiny
from tests.runs import Overflows, assert_same_run
from tests.tolerances import BFLOAT16_RATIO, FLOAT32, FLOAT64
from tsdae import TSDAE, DenoisingDataset, ops, train


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
            close = abs(loss_there - loss) <= tolerance["atol"] + tolerance["rtol"] * loss
            if not close or found[f"{name}, {precision}"] > max(tolerance["atol"], 10 * tolerance["rtol"]):
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
    from benchmarks import reference  # which the other parts do without

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


def tests(place: Place) -> dict[str, Any]:
    """The tests that need a CUDA device, and those of its ways that do not."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "",
        "-p",
        "no:cacheprovider",
        "-W",
        "default",  # another version's warnings are no error here
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
    "tests": tests,
}
