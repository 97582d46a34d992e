"""Where the time of one training step goes, part by part: PyTorch's profiler, self time, CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile

REST = "Python, padding, additions and the rest"

# The first part one of whose words begins the name of an operation, or of one that called it, gets its time. Names are
# those of the operations, without "aten::" and "autograd::engine::evaluate_function: ".
PARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("matrix products", ("mm", "addmm", "mkldnn_linear", "mkldnn_matmul", "linear_cross_entropy")),
    ("attention", ("_scaled_dot_product", "scaled_dot_product", "ScaledDotProduct", "bmm", "baddbmm", "_Moved")),
    (
        "softmax, loss and their products",
        ("_TokenLoss", "cross_entropy", "_log_softmax", "log_softmax", "nll_loss", "LogSoftmax", "NllLoss"),
    ),
    ("dropout", ("dropout", "native_dropout", "bernoulli", "random_", "ge", "NativeDropoutBackward")),
    (
        "layer norm and GELU",
        ("layer_norm", "native_layer_norm", "NativeLayerNorm", "gelu", "Gelu"),
    ),
    ("embedding and its gradient", ("embedding", "Embedding", "_Rows", "_Ticket", "torch::autograd::AccumulateGrad")),
    ("optimiser", ("_fused_adamw", "Optimizer.")),
    ("clip", ("linalg_vector_norm", "dot", "_foreach_norm", "_foreach_mul_", "clamp", "_foreach_lerp")),
    ("copies and casts", ("copy_", "_to_copy", "to", "clone", "contiguous", "ToCopy", "TBackward", "cat")),
)
EXACT = {"mm", "to", "cat", "clamp", "bmm", "ge", "dot"}  # short words that begin the names of other operations as well


def part_of(event: Any) -> str:
    """The part that an operation's own time belongs to; ``event``: of torch.profiler, with its callers."""
    while event is not None:
        name = event.name.removeprefix("autograd::engine::evaluate_function: ").removeprefix("aten::")
        for part, words in PARTS:
            if any(name == word if word in EXACT else name.startswith(word) for word in words):
                return part
        event = event.cpu_parent
    return REST


def time_of_parts(step: Callable[[int], object], first: int, count: int) -> dict[str, float]:
    """Milliseconds of a step by part, over so many steps from ``first`` on; what no operation took is in `REST`."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        start = time.perf_counter()
        for number in range(first, first + count):
            step(number)
        total = time.perf_counter() - start
    parts = {part: 0.0 for part, _ in PARTS}
    for event in profiled.events() or []:
        part = part_of(event)
        if part != REST:
            parts[part] += event.self_cpu_time_total / 1e6
    parts[REST] = total - sum(parts.values())
    return {part: round(1e3 * seconds / count, 3) for part, seconds in parts.items()}
