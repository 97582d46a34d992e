"""Choose the device and precision of a run, and describe them."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from tsdae.utils import distributed
from tsdae.utils.plural import counted

MALLOPT_TRIM_THRESHOLD, MALLOPT_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def choose_device(name: str) -> torch.device:
    """Return the device: for auto CUDA, else Apple's MPS, else the CPU. ValueError if it is not available.

    Each of several processes on a machine gets a GPU of its own.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    try:
        is_available = available.get(torch.device(name).type, False)
    except RuntimeError:  # PyTorch knows no such name
        is_available = False
    if not is_available:
        there = ", ".join(kind for kind, is_there in available.items() if is_there)
        raise ValueError(f"--device {name} is not available; choose from auto, {there}")
    device = torch.device(name)
    if distributed.world_size() == 1 or device.type == "cpu":
        return device
    if device.type != "cuda":
        raise ValueError(f"--device {name} cannot be shared by several processes; use cuda or cpu")
    if distributed.local_rank() >= torch.cuda.device_count():
        raise ValueError(f"more processes than GPUs on this machine: it has {torch.cuda.device_count()}")
    device = torch.device("cuda", distributed.local_rank())
    torch.cuda.set_device(device)
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """Return the precision: for auto bf16 where the hardware multiplies it, fp16 on older CUDA cards, else fp32.

    ValueError for fp16 without CUDA and fp64 on MPS.
    """
    if name == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
        return "bf16" if device.type == "cpu" and cpu_multiplies_bf16() else "fp32"
    if name == "fp16" and device.type != "cuda":
        raise ValueError(f"--precision fp16 needs CUDA; on {device.type} use bf16 or fp32")
    if name == "fp64" and device.type == "mps":
        raise ValueError("--precision fp64 does not exist on mps; use fp32")
    return name


def avoid_cudnn_attention() -> None:
    """Use PyTorch's own attention kernels on CUDA, where cuDNN's may come first (Hopper and newer).

    cuDNN's round dropout to sixteenths, which changes BERT's 0.1 (pytorch#174245), and plan anew for each length.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def use_deterministic_algorithms(wanted: bool, device: torch.device) -> None:
    """Ask PyTorch for deterministic algorithms, or for any. cuBLAS has them with this workspace alone."""
    if wanted and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first product
    torch.use_deterministic_algorithms(wanted)


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory for the next step instead of returning it to the system.

    A bf16 step on a CPU then takes 5 % less (measured). Other C libraries have no such switch.
    """
    if mallopt := _of_glibc("mallopt"):
        mallopt(MALLOPT_TRIM_THRESHOLD, 2**28)  # bytes; what is above goes back
        mallopt(MALLOPT_MMAP_THRESHOLD, 2**25)  # the largest value it takes


def give_back_freed_memory() -> None:
    """Ask glibc to return the free memory between tensors in use: batches of changing lengths leave holes."""
    if malloc_trim := _of_glibc("malloc_trim"):
        malloc_trim(0)


def _of_glibc(function: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), function, None) if sys.platform == "linux" else None


def compile_parts(parts: Sequence[nn.Module], device: torch.device) -> None:
    """Compile each part in place, for any lengths; print a note instead if a CPU lacks the C++ compiler for it."""
    compilers = (os.environ.get("CXX", "g++"), "clang++", "cl")  # PyTorch's own search
    if device.type == "cpu" and not any(shutil.which(name) for name in compilers):
        print("--compile needs a C++ compiler (g++ or clang++) for a CPU; training without it", file=sys.stderr)
        return
    for part in parts:
        part.compile(dynamic=True)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context in which a loss is computed: mixed with "bf16" and "fp16", as it is with the others."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision in ("bf16", "fp16"))


def cpu_multiplies_bf16() -> bool:
    """True with avx512_bf16, AMX or ARM's bf16: elsewhere bf16 is emulated and slower than fp32."""
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    if known:
        return any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16", "sve_bf16"))
    words = " ".join(_cpuinfo().values()).split()  # older PyTorch: ask Linux; elsewhere fp32 is the safe answer
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(words)


def describe(device: torch.device, precision: str) -> str:
    """Return the line that a run prints about its device when it starts."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else counted(torch.get_num_threads(), "thread")
    line = f"device {device.type} ({name}), precision {precision}, PyTorch {torch.__version__}"
    if device.type == "cpu" and shutil.which("nvidia-smi"):
        line += "; an NVIDIA driver is installed, but this PyTorch does not see a GPU: is it a CPU build?"
    return line


def machine_name() -> str:
    """Return the processor's name, how many cores this process may use, and the instructions that decide about bf16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cpuinfo = _cpuinfo()
    name = cpuinfo.get("model name") or platform.processor() or platform.machine()
    flags = cpuinfo.get("flags", "").split()
    known = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return ", ".join([name, counted(cores or 1, "core"), *known])


def _cpuinfo() -> dict[str, str]:
    """Return what Linux says of the last core, by name; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
