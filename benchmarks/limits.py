"""How fast a step could be at best on this machine: its matrix products alone, one optimiser pass, one softmax.

Counted are the products with a weight matrix, at the token counts of the step's own batches:

    forward    [T, inputs] x [inputs, outputs]
    backward   [T, outputs] x [outputs, inputs]  (gradient of the input)
               [outputs, T] x [T, inputs]        (gradient of the weight)

Left out, which makes the limit stricter: attention's own products, layer norms, dropout, GELU, embeddings, the casts of
autocast, and whatever Python costs. Pooling is [CLS]: the encoder's last layer has keys and values for all tokens, the
rest for one token a sentence.

# B sentences, T packed tokens, D width, F feed-forward width, V vocabulary
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

FORMULA = (
    "FLOP of a step = 3 (forward, gradient of input, gradient of weight) x 2 x sum over products of rows x inputs x "
    "outputs: encoder and decoder layers T (3 D D + D D + 2 D F), with T their own token counts; the encoder's last "
    "layer T 2 D D + B (2 D D + 2 D F), since only [CLS] is read; cross-attention per decoder layer B 2 D D; head "
    "T_decoder (D D + D V)"
)


@dataclass(frozen=True)
class Shape:
    """What of a model decides about its products."""

    width: int
    feed_forward: int
    layers: int
    decoder_layers: int
    vocabulary: int


@dataclass(frozen=True)
class Tokens:
    """What of a batch decides about its products. target: the tokens to predict, one less than each clean sentence."""

    noisy: int
    target: int
    sentences: int


@dataclass(frozen=True)
class Product:
    """``times`` applications of a weight [outputs, inputs] to so many rows, each with its two backward products."""

    rows: int
    inputs: int
    outputs: int
    times: int

    @property
    def flop(self) -> int:
        return 3 * 2 * self.rows * self.inputs * self.outputs * self.times


def products(shape: Shape, tokens: Tokens) -> list[Product]:
    """All products of one step with weight matrices."""
    width, made = shape.width, []
    for rows, layers, projected in (
        (tokens.noisy, shape.layers - 1, 3 * width),  # query, key, value
        (tokens.sentences, 1, width),  # the encoder's last: one query a sentence
        (tokens.target, shape.decoder_layers, 3 * width),
    ):
        made += [
            Product(rows, width, projected, layers),
            Product(rows, width, width, layers),  # attention's output
            Product(rows, width, shape.feed_forward, layers),
            Product(rows, shape.feed_forward, width, layers),
        ]
    made.append(Product(tokens.noisy, width, 2 * width, 1))  # key and value of the encoder's last layer
    made.append(Product(tokens.sentences, width, width, 2 * shape.decoder_layers))  # cross-attention: value, output
    made.append(Product(tokens.target, width, width, 1))  # the head's transform
    made.append(Product(tokens.target, width, shape.vocabulary, 1))
    return made


def flop(shape: Shape, tokens: Tokens) -> int:
    """`FORMULA`, in numbers."""
    return sum(product.flop for product in products(shape, tokens))


def seconds_of(work: Callable[[], object], repetitions: int) -> float:
    """Median time of ``work`` on a CPU, after one run that does not count."""
    work()
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times)


def seconds_of_products(shape: Shape, tokens: Tokens, dtype: torch.dtype, repetitions: int) -> float:
    """Time of all products of one step, each measured by itself with ``torch.mm`` into memory that is there already."""
    total = 0.0
    for product in products(shape, tokens):
        input_TI = torch.randn(product.rows, product.inputs).to(dtype)
        weight_OI = torch.randn(product.outputs, product.inputs).to(dtype)
        gradient_TO = torch.randn(product.rows, product.outputs).to(dtype)
        triples = (
            (input_TI, weight_OI.t(), torch.empty_like(gradient_TO)),
            (gradient_TO, weight_OI, torch.empty_like(input_TI)),
            (gradient_TO.t(), input_TI, torch.empty_like(weight_OI)),
        )
        total += product.times * sum(_seconds_of_mm(*triple, repetitions) for triple in triples)
    return total


def _seconds_of_mm(left: Tensor, right: Tensor, out: Tensor, repetitions: int) -> float:
    return seconds_of(lambda: torch.mm(left, right, out=out), repetitions)


def seconds_of_optimizer(shapes: Sequence[Sequence[int]], repetitions: int) -> float:
    """Time of one fused AdamW pass over fp32 parameters of these shapes."""
    parameters = [torch.nn.Parameter(torch.randn(*shape)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.AdamW(parameters, lr=1e-9, fused=True)
    return seconds_of(optimizer.step, repetitions)


def seconds_of_softmax(target_tokens: int, vocabulary: int, dtype: torch.dtype, repetitions: int) -> float:
    """Time of one softmax over the vocabulary for each target token."""
    logits_TV = torch.randn(target_tokens, vocabulary).to(dtype)
    out_TV = torch.empty_like(logits_TV)
    return seconds_of(lambda: torch.softmax(logits_TV, -1, out=out_TV), repetitions)


def best_matrix_rate(repetitions: int = 20) -> float:
    """The most FLOP/s that square bf16 products reach on the current CUDA device."""
    best = 0.0
    for size in (4096, 8192, 16384):
        left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        for _ in range(3):
            left @ right
        for _ in range(3):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(repetitions):
                left @ right
            torch.cuda.synchronize()
            best = max(best, 2 * size**3 * repetitions / (time.perf_counter() - start))
    return best
