"""The ways of a GPU: proved on a CPU as far as that goes. Tests that need one are marked `cuda`."""

from __future__ import annotations

import contextlib
import importlib
import os
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests import tiny
from tests.runs import Overflows, rows, state
from tests.tolerances import FLOAT64
from tsdae import packing, training
from tsdae.autoencoder import TSDAE
from tsdae.losses import LossSum
from tsdae.objectives import OBJECTIVES, tsdae
from tsdae.packing import Batch
from tsdae.run.step_metrics import FP16_BAD_STEPS, NonFiniteLoss
from tsdae.training import train
from tsdae.utils import device, distributed

CUDA, META = torch.device("cuda"), torch.device("meta")
needs_cuda = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]


class Reached(Exception):
    """Raised by what stands in for a part, to end the test there."""


def reach(*arguments: object, **named: object) -> Any:
    raise Reached(arguments, named)


# ---------------------------------------------------------------------------------------------------------------
# The loop does not wait for the device. Stand-in for a GPU: PyTorch's device without memory, "meta".

WAIT = {  # operations whose result the host must know before it can go on
    "_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "unique_dim", "_unique2",
    "unique_consecutive",
}  # fmt: skip


class Waits(TorchDispatchMode):
    """The operations on tensors of a device for which the host would wait, in the order in which they were called."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.found = device, list[str]()

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        named = named or {}
        name = operation.name().removeprefix("aten::").split(".")[0]
        devices = [value.device for value in arguments if isinstance(value, Tensor)]
        there = self.device in devices
        if name == "_to_copy":
            devices.append(named.get("device") or devices[0])
        crosses = name in ("_to_copy", "copy_") and self.device in devices and len(set(devices)) > 1
        by_mask = name.startswith("index") and any(
            index is not None and index.dtype == torch.bool
            for indices in arguments
            if isinstance(indices, (list, tuple))
            for index in indices
        )
        of_unknown_size = name == "repeat_interleave" and named.get("output_size") is None
        if (there and (name in WAIT or by_mask or of_unknown_size)) or (crosses and not named.get("non_blocking")):
            self.found.append(name)
        if there and name == "_local_scalar_dense":
            return 1.0 if arguments[0].is_floating_point() else 1
        return operation(*arguments, **named)


class Made(TorchFunctionMode):
    """Numbers of the host that are made into tensors of the device: a copy, which the mode above does not see."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        named = named or {}
        there = named.get("device") is not None and torch.device(named["device"]) == self.waits.device
        if function in (torch.tensor, torch.as_tensor) and there and not isinstance(arguments[0], Tensor):
            self.waits.found.append(function.__name__)
        return function(*arguments, **named)


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """`train` takes the device "meta" for the one that was asked for, and copies to it as to a GPU."""
    monkeypatch.setattr(training, "choose_device", lambda name: META)
    monkeypatch.setattr(training, "choose_precision", lambda name, device: name)
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **named: contextlib.nullcontext())  # knows no meta
    monkeypatch.setattr(
        importlib.import_module("torch.optim.adam"), "_device_dtype_check_for_fused", lambda *arguments, **named: None
    )
    monkeypatch.setattr(packing, "copies_run_beside", lambda device: True)
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)


def waits(objective: Any = tsdae, changes: dict[str, Any] | None = None, **settings: Any) -> list[str]:
    """What is waited for in steps 2 to 4 of a run whose first row of the log comes later."""
    found: list[list[str]] = []

    def after_step(model: TSDAE, done: int) -> None:
        found.append(list(mode.found))
        if done == 4:
            raise Reached

    model = tiny.model(dtype=torch.float32, **(changes or {})).to(META)
    recipe: dict[str, Any] = {"steps": 50, "log_every": 50, "precision": "bf16"}
    with Waits(META) as mode, Made(mode):
        try:
            train(model, tiny.dataset(), tiny.settings(**(recipe | settings)), objective, after_step=after_step)
        except Reached:
            return found[-1][len(found[0]) :]
        except (NotImplementedError, RuntimeError) as error:  # meta has no values to wait for
            return [*mode.found, str(error)]
    raise AssertionError("the run has not reached its fourth step")


def noted(model: TSDAE, batch: Batch) -> LossSum:
    return tsdae(model, batch).note("temperature", 0.5)


# How many tokens these choose only the device knows, so they wait for that number.
CHOOSES = ("mlm", "tsdae_mlm", "retromae", "bag_of_words")
CASES: dict[str, dict[str, Any]] = {
    **{name: {"objective": objective} for name, objective in OBJECTIVES.items() if name not in CHOOSES},
    "a note": {"objective": noted},
    "fp16": {"precision": "fp16"},
    "fp64": {"precision": "fp64"},
    "no clipping": {"clip": 0.0},
    "micro-batches": {"accumulate": 2},
    "mean, untied": {"changes": {"pooling": "mean", "tie": False}},
    "max": {"changes": {"pooling": "max"}},
}


@pytest.mark.usefixtures("on_meta")
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_between_two_rows_of_the_log_nothing_waits_for_the_device(case: dict[str, Any]) -> None:
    assert waits(**case) == []


@pytest.mark.usefixtures("on_meta")
@pytest.mark.parametrize(
    "wait",
    [
        lambda x: torch.tensor(1.0, device=META),
        float,
        Tensor.cpu,
        bool,
        Tensor.nonzero,
        lambda x: x[x > 0],
        Tensor.tolist,
    ],
)
def test_what_waits_is_found(wait: Any) -> None:
    """The premise of the test above."""

    def objective(model: TSDAE, batch: Batch) -> LossSum:
        loss = tsdae(model, batch)
        wait(loss.mean.detach())
        return loss

    assert waits(objective) != []


# ---------------------------------------------------------------------------------------------------------------
# fp16, with the scaler of a CPU


@pytest.fixture
def fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "choose_precision", lambda name, device: name)


def train_fp16(overflows: set[int], **settings: Any) -> list[dict[str, Tensor]]:
    """The weights after each step."""
    weights: list[dict[str, Tensor]] = []

    def after_step(model: TSDAE, done: int) -> None:
        weights.append({name: value.clone() for name, value in model.state_dict().items()})

    model, config = tiny.model(dtype=torch.float32), tiny.settings(precision="fp16", **settings)
    train(model, tiny.dataset(), config, Overflows(overflows), after_step=after_step)
    return weights


@pytest.mark.usefixtures("fp16")
def test_fp16_steps_that_overflow_are_skipped_and_counted(tmp_path: Path) -> None:
    weights = train_fp16({2, 3, 6}, steps=8, log_every=4, output=str(tmp_path / "run"))
    changed = [any((after[name] != before[name]).any() for name in before) for before, after in pairwise(weights)]
    assert changed == [False, False, True, True, False, True, True]
    assert [row["skipped_steps"] for row in rows(tmp_path / "run")] == [2, 3]
    assert state(tmp_path / "run")["scaler"]["scale"] == 2.0 ** (16 - 3), "each halves the scale"


@pytest.mark.usefixtures("fp16")
def test_fp16_gradients_are_clipped_at_their_own_norm() -> None:
    norms: list[float] = []
    for precision in ("fp32", "fp16"):
        model = tiny.model(dtype=torch.float32, dropout=0.0, attention_dropout=0.0)
        settings = tiny.settings(precision=precision, steps=1)
        train(model, tiny.dataset(), settings, on_row=lambda row: norms.append(row["gradient_norm"]))
    assert norms[1] == pytest.approx(norms[0], rel=0.05)


@pytest.mark.usefixtures("fp16")
def test_twenty_fp16_overflows_in_a_row_are_an_error() -> None:
    """Over several rows of the log; a good step between them begins the count again."""
    most = FP16_BAD_STEPS - 1
    row = set(range(3, 3 + most))
    train_fp16(row | {most + 4}, steps=most + 5)
    message = f"20 fp16 steps in a row overflowed, the last of them step {most + 3}; use"
    with pytest.raises(NonFiniteLoss, match=message):
        train_fp16(row | {most + 3}, steps=most + 5)


@pytest.mark.usefixtures("fp16")
def test_a_resumed_fp16_run_has_its_scale_and_its_skipped_steps(tmp_path: Path) -> None:
    whole, run = ({"output": str(tmp_path / name), "log_every": 4} for name in ("whole", "run"))
    train_fp16({2, 3, 6}, steps=8, **whole)
    train_fp16({2, 3, 6}, steps=3, **run)
    train_fp16({2, 3, 6}, steps=8, resume=True, **run)
    assert [row for row in rows(tmp_path / "run") if row["step"] != 3][-1] == rows(tmp_path / "whole")[-1]
    assert torch.equal(*(state(tmp_path / n)["trained"]["model.head.bias"] for n in ("whole", "run")))
    assert state(tmp_path / "run")["scaler"] == state(tmp_path / "whole")["scaler"]


# ---------------------------------------------------------------------------------------------------------------
# Every place that asks for CUDA


def test_training_on_cuda_leaves_out_cudnns_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "choose_device", lambda name: CUDA)
    monkeypatch.setattr(training, "choose_precision", lambda name, device: "bf16")
    monkeypatch.setattr(training, "avoid_cudnn_attention", reach)
    with pytest.raises(Reached):
        train(tiny.model(), tiny.dataset(), tiny.settings())


def test_cudnns_attention_is_left_out() -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        device.avoid_cudnn_attention()
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.parametrize(
    ("wanted", "kind", "workspace"), [(True, "cuda", ":4096:8"), (True, "cpu", None), (False, "cuda", None)]
)
def test_deterministic_cublas_has_its_workspace(
    wanted: bool, kind: str, workspace: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with mock.patch("torch.use_deterministic_algorithms") as use:
        device.use_deterministic_algorithms(wanted, torch.device(kind))
    use.assert_called_once_with(wanted)
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None) == workspace


def test_copies_to_cuda_run_beside_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [packing.copies_run_beside(name) for name in ("cuda", "cuda:1", CUDA, "cpu", "mps")] == [True] * 3 + [
        False
    ] * 2
    pinned: list[Tensor] = []
    batch = tiny.batch()
    monkeypatch.setattr(packing, "copies_run_beside", lambda device: True)

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor)
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    there = batch.to(META)
    assert [len(tensor) for tensor in pinned] == [
        len(tensor) for packed in (batch.noisy, batch.target) for tensor in (packed.token_ids_T, packed.boundaries)
    ]
    there.to(META)
    assert len(pinned) == 4, "what is there already is not page-locked"


@pytest.fixture
def second_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("second_of_two")
def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    assert device.choose_device("cuda") == device.choose_device("auto") == torch.device("cuda", 1)
    assert taken == [torch.device("cuda", 1)] * 2
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="more processes than GPUs on this machine: it has 1"):
        device.choose_device("cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(ValueError, match="mps cannot be shared by several processes"):
        device.choose_device("mps")


@pytest.mark.usefixtures("second_of_two")
@pytest.mark.parametrize(("available", "backend"), [(True, "cpu:gloo,cuda:nccl"), (False, "gloo")])
def test_gpus_talk_by_nccl(available: bool, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    with mock.patch("torch.distributed.init_process_group") as connect:
        distributed.init_process_group()
    connect.assert_called_once_with(backend, timeout=distributed.TIMEOUT)


@pytest.mark.usefixtures("second_of_two")
def test_a_wrapped_model_is_on_its_process_s_gpu() -> None:
    module, gpu = nn.Linear(2, 2), torch.device("cuda", 1)
    with mock.patch.object(distributed, "DistributedDataParallel") as wrapped:
        distributed.wrap(module, gpu, all_used=True)
        distributed.wrap(module, torch.device("cpu"), all_used=True)
    assert [call.kwargs["device_ids"] for call in wrapped.call_args_list] == [[gpu], None]


def test_a_gpu_is_called_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    assert device.describe(CUDA, "bf16").startswith("device cuda (a card), precision bf16")


# ---------------------------------------------------------------------------------------------------------------
# On a GPU


@pytest.mark.parametrize("precision", [pytest.param(name, marks=needs_cuda) for name in ("fp32", "bf16", "fp16")])
def test_training_on_cuda(precision: str) -> None:
    model = tiny.model(dtype=torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, tiny.dataset(), tiny.settings(precision=precision, device="cuda"))
    after = {name: value.cpu() for name, value in model.state_dict().items()}
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any((after[name] != before[name]).any() for name in after)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_the_loss_is_the_cpus() -> None:
    model, batch = tiny.model(), tiny.batch()
    expected = model(batch).mean
    torch.testing.assert_close(model.to("cuda")(batch.to("cuda")).mean.cpu(), expected, **FLOAT64)
