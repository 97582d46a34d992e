"""Each operation's fast version beside its plain one: ragged batches, forward and backward, in three precisions.

Without dropout they compute the same. With dropout they have the same law, which `sigmas_apart` tells; what that law
is, site by site, stands in tests/test_dropout.

# B sentences, T packed tokens, R repetitions, X numbers that are compared
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from tests import tiny
from tests.test_dropout import sigmas_apart
from tests.tolerances import FLOAT32, FLOAT64
from tsdae import ops
from tsdae.bert import LanguageModelHead
from tsdae.packing import Layout, Packed

RAGGED = [[2, 10, 11, 12, 3], [2, 3], [2, 20, 21, 22, 23, 24, 25, 26, 3], [2, 30, 3]]
HEADS, WIDTH = 3, 24
Operation = Callable[[Tensor, Layout], Tensor]


def linear(seed: int, out: int = WIDTH) -> nn.Linear:
    made = nn.Linear(WIDTH, out)
    tiny.randomise(made, seed)
    return made


PROJECT, OUTPUT = linear(1, 3 * WIDTH), linear(2)


def attention(dropout: float = 0.0, causal: bool = False, first_only: bool = False) -> Operation:
    return lambda hidden, layout: ops.attention(
        hidden, PROJECT.to(hidden.dtype), HEADS, layout, causal, dropout, first_only
    )


def one_vector(dropout: float = 0.0) -> Operation:
    return lambda hidden, layout: ops.one_vector_attention(
        layout.first(hidden), OUTPUT.to(hidden.dtype), HEADS, layout, dropout
    )


OPERATIONS: dict[str, Operation] = {
    "attention": attention(),
    "causal attention": attention(causal=True),
    "attention of the first token": attention(first_only=True),
    "attention to one vector": one_vector(),
    "feed-forward": lambda hidden, layout: ops.gelu_linear(hidden, OUTPUT.to(hidden.dtype)),
}
DROPPING: dict[str, Operation] = {
    "attention": attention(0.4),
    "causal attention": attention(0.4, causal=True),
    "attention of the first token": attention(0.4, first_only=True),
    "attention to one vector": one_vector(0.4),
    "dropout": lambda hidden, layout: ops.dropout(hidden, 0.3, True, layout),
}


def of_operation(operation: Operation, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Its value and gradients on a ragged batch."""
    generator = torch.Generator().manual_seed(0)
    layout = Layout.of(Packed.from_lists(RAGGED).to("cpu"))
    hidden_TD = torch.randn(layout.rows, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    out = operation(hidden_TD, layout)
    weight = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(dtype)
    parameters = [p for module in (PROJECT, OUTPUT) for p in module.parameters()]
    gradients = torch.autograd.grad((out * weight).sum(), [hidden_TD, *parameters], allow_unused=True)
    used = [gradient for gradient in gradients if gradient is not None]
    assert len(used) == 3, "the premise: it depends on what it reads, and on one matrix and its bias"
    return out.detach(), *used


def of_word_embedding(dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The loss and gradients of E's two uses: rows of it, and the softmax over it."""
    words, head = ops.WordEmbeddings(80, WIDTH), LanguageModelHead(tiny.config(vocabulary_size=80))
    for module in (words, head):
        tiny.randomise(module, 3)
        module.to(dtype)
    ids_T = torch.arange(100) % 80
    loss_T = ops.cross_entropy(words(ids_T), head, words, ids_T.flip(0))
    gradients = torch.autograd.grad(loss_T.double().square().mean(), [*words.parameters(), *head.parameters()])
    return loss_T.detach(), *gradients


def both(found: Callable[[torch.dtype], tuple[Tensor, ...]], dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """(fast, plain) of every tensor."""
    fast = found(dtype)
    with ops.plain():
        plain = found(dtype)
    return list(zip(fast, plain, strict=True))


CASES: dict[str, Callable[[torch.dtype], tuple[Tensor, ...]]] = {
    name: lambda dtype, operation=operation: of_operation(operation, dtype) for name, operation in OPERATIONS.items()
} | {"word embedding": of_word_embedding}


@pytest.mark.parametrize("name", CASES)
def test_the_fast_version_computes_what_the_plain_one_does(name: str) -> None:
    for dtype, tolerance in ((torch.float64, FLOAT64), (torch.float32, FLOAT32)):
        for fast, plain in both(CASES[name], dtype):
            torch.testing.assert_close(fast, plain, **tolerance)


@pytest.mark.parametrize("name", CASES)
def test_in_bfloat16_the_fast_version_errs_at_most_twice_as_much(name: str) -> None:
    """Each against float64."""
    exact = [plain for _, plain in both(CASES[name], torch.float64)]
    for (fast, plain), right in zip(both(CASES[name], torch.bfloat16), exact, strict=True):
        ours, theirs = ((found.double() - right).norm() / right.norm() for found in (fast, plain))
        assert theirs > 1e-4, "the premise: bfloat16 errs"
        assert ours <= 2 * theirs


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
@pytest.mark.parametrize("tie", [True, False])
def test_the_whole_model_computes_the_same_plainly(pooling: str, tie: bool) -> None:
    model, batch = tiny.model(pooling, tie), tiny.batch()

    def found(dtype: torch.dtype) -> tuple[Tensor, ...]:
        loss = model(batch).mean
        return loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))

    for dtype, tolerance in ((torch.float64, FLOAT64), (torch.float32, FLOAT32)):
        model.to(dtype)
        for fast, plain in both(found, dtype):
            torch.testing.assert_close(fast, plain, **tolerance)


def test_the_switch_is_seen_inside_and_ends_with_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard on the other tests: within it the fast version does not run, and after it, or an error in it, it does."""
    model, batch = tiny.model(), tiny.batch()
    split = mock.Mock(wraps=sys.modules["tsdae.ops.attention"].split_heads)
    monkeypatch.setattr(sys.modules["tsdae.ops.attention"], "split_heads", split)
    with contextlib.suppress(KeyError), ops.plain():
        model(batch)
        raise KeyError
    assert split.call_count == 0
    model(batch)
    assert split.call_count > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", DROPPING)
def test_dropout_has_the_same_law_in_both(name: str, dtype: torch.dtype) -> None:
    """Means and variances of every number, forward and backward, and of random sums over all, in 2,000 repetitions."""
    repeats, sentences = 2000, [RAGGED[0], RAGGED[3]]
    many = Packed.from_lists(sentences * repeats).to("cpu")
    generator = torch.Generator().manual_seed(4)
    tokens = sum(map(len, sentences))
    hidden_TD = torch.randn(tokens, WIDTH, generator=generator).to(dtype).repeat(repeats, 1).requires_grad_()

    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        mixed = torch.Generator().manual_seed(5)
        out = DROPPING[name](hidden_TD, Layout.of(many))
        weight = torch.randn(out[: len(out) // repeats].shape, generator=mixed).to(dtype).repeat(repeats, 1)
        (gradient_TD,) = torch.autograd.grad((out * weight).sum(), hidden_TD)
        both_RX = torch.cat([part.detach().double().reshape(repeats, -1) for part in (out, gradient_TD)], 1)
        mix = torch.randn(both_RX.shape[1], 20, generator=mixed, dtype=torch.float64)
        return torch.cat([both_RX, both_RX @ mix], 1)

    fast = drawn(0)
    with ops.plain():
        plain, again = drawn(1), drawn(2)
    assert fast.var(0).max() > 0.01, "the premise: it drops"
    moves_X = plain.var(0) > 0
    torch.testing.assert_close(fast[:, ~moves_X], plain[:, ~moves_X])  # gradients that are zero whatever is dropped
    assert sigmas_apart(plain[:, moves_X], again[:, moves_X]) < 5
    assert sigmas_apart(fast[:, moves_X], plain[:, moves_X]) < 5
