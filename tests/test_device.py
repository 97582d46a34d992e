"""What --device and --precision auto choose, on machines that are not at hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tsdae.utils import device
from tsdae.utils.device import choose_device, choose_precision

CUDA, CPU, MPS = torch.device("cuda"), torch.device("cpu"), torch.device("mps")


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_cuda_takes_bf16_where_it_is_not_emulated(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], precision: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert choose_precision("auto", CUDA) == precision


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [({"avx2": True}, "fp32"), ({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True, "avx2": True}, "bf16")],
)
def test_a_cpu_takes_bf16_only_if_it_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], precision: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert choose_precision("auto", CPU) == precision


def test_what_is_asked_for_is_taken_or_refused() -> None:
    assert choose_precision("fp32", CUDA) == "fp32"
    assert choose_precision("auto", MPS) == "fp32"
    with pytest.raises(ValueError, match="fp16 needs CUDA"):
        choose_precision("fp16", CPU)
    with pytest.raises(ValueError, match="does not exist on mps"):
        choose_precision("fp64", MPS)
    with pytest.raises(ValueError, match="--device tpu is not available; choose from auto, cpu"):
        choose_device("tpu")


def test_auto_prefers_cuda_then_mps_then_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    with pytest.raises(ValueError, match="--device cuda is not available"):
        choose_device("cuda")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == MPS
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == CUDA


def test_a_card_that_pytorch_does_not_see_is_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "NVIDIA" not in device.describe(CPU, "fp32")
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/nvidia-smi")
    assert "is it a CPU build?" in device.describe(CPU, "fp32")


def test_without_a_cpp_compiler_parts_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    part = nn.Linear(2, 2)
    device.compile_parts([part, nn.Linear(2, 2)], CPU)
    assert part._compiled_call_impl is None
    assert capsys.readouterr().err.count("needs a C++ compiler") == 1
