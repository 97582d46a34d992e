"""E's one gradient and the loss without logits: equal to what PyTorch's own embedding, product and loss give.

# T packed tokens, D width, V vocabulary
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from tests import tiny
from tests.tolerances import BFLOAT16_RATIO, FLOAT64
from tsdae import TSDAE
from tsdae.ops import word_embedding as tied
from tsdae.ops.word_embedding import WordEmbeddings

VOCABULARY, WIDTH, TOKENS = 50, 6, 11


def words(dtype: torch.dtype = torch.float64) -> WordEmbeddings:
    made = WordEmbeddings(VOCABULARY, WIDTH)
    tiny.randomise(made)
    return made.to(dtype)


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


IDS = torch.tensor([4, 9, 4, 0, 49, 7, 7, 7, 1, 2, 3])
TARGETS = torch.tensor([0, 49, 3, 3, 8, 4, 4, 11, 20, 30, 9])


def three_uses(
    looked_up: Callable[[Tensor], Tensor], token_loss: Callable[[Tensor, Tensor, Tensor], Tensor], bias_V: Tensor
) -> Tensor:
    """As in a step: two lookups, and a loss whose tokens weigh differently."""
    hidden_TD = looked_up(IDS).tanh() + looked_up(IDS.flip(0)) * random(TOKENS, WIDTH)
    return (token_loss(hidden_TD, bias_V, TARGETS) * random(TOKENS, seed=2)).sum()


def plain(matrix: WordEmbeddings, bias_V: Tensor) -> Tensor:
    return three_uses(
        lambda ids_T: F.embedding(ids_T, matrix.weight),
        lambda hidden_TD, bias, target_T: F.cross_entropy(
            F.linear(hidden_TD, matrix.weight, bias), target_T, reduction="none"
        ),
        bias_V,
    )


@pytest.mark.parametrize("chunk", [256, 4], ids=["one chunk", "three chunks"])
def test_loss_and_gradients_are_autograds(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tied, "CHUNK_TOKENS", chunk)
    monkeypatch.setattr(tied, "CHUNK_BYTES", 0)
    matrix, bias_V = words(), random(VOCABULARY, seed=3).requires_grad_()
    expected, found = plain(matrix, bias_V), three_uses(matrix, matrix.token_loss, bias_V)
    assert_close(found, expected, **FLOAT64)
    expected_grads = torch.autograd.grad(expected, [matrix.weight, bias_V])
    for _ in range(2):  # a graph that is kept can be gone through again
        grads = torch.autograd.grad(found, [matrix.weight, bias_V], retain_graph=True)
        assert_close(grads, expected_grads, **FLOAT64)
    assert all(grad.any() for grad in grads)


def test_a_loss_does_not_disturb_one_whose_backward_is_still_to_come() -> None:
    """The second call overwrites what the first had kept."""
    matrix, bias_V = words(), random(VOCABULARY, seed=3)
    hidden_TD = random(TOKENS, WIDTH).requires_grad_()
    expected = F.cross_entropy(F.linear(hidden_TD, matrix.weight, bias_V), TARGETS)
    first = matrix.token_loss(hidden_TD, bias_V, TARGETS).mean()
    matrix.token_loss(2 * hidden_TD, bias_V, TARGETS)
    assert_close(torch.autograd.grad(first, hidden_TD), torch.autograd.grad(expected, hidden_TD), **FLOAT64)


def test_nothing_is_left_behind_by_what_did_not_ask_for_it() -> None:
    """Forward passes that are thrown away, gradients of something else, and a backward pass that fails half-way."""
    matrix, bias_V = words(), random(VOCABULARY, seed=3)
    expected = torch.autograd.grad(plain(matrix, bias_V), matrix.weight)

    def step() -> Tensor:
        return three_uses(matrix, matrix.token_loss, bias_V)

    step()
    with torch.no_grad():
        step()
    hidden_TD = random(TOKENS, WIDTH).requires_grad_()
    torch.autograd.grad(matrix.token_loss(hidden_TD, bias_V, TARGETS).sum(), hidden_TD)
    rows_TD = matrix(IDS)
    rows_TD.register_hook(lambda grad: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        matrix.token_loss(rows_TD, bias_V, TARGETS).sum().backward()
    matrix.weight.grad = None
    assert_close(torch.autograd.grad(step(), matrix.weight), expected, **FLOAT64)


def test_gradients_add_up_over_backward_passes_and_their_memory_is_used_again() -> None:
    matrix, bias_V = words(), random(VOCABULARY, seed=3)
    (once,) = torch.autograd.grad(plain(matrix, bias_V), matrix.weight)
    for _ in range(2):
        three_uses(matrix, matrix.token_loss, bias_V).backward()
    assert matrix.weight.grad is not None
    assert_close(matrix.weight.grad, 2 * once, **FLOAT64)
    place = matrix.weight.grad.data_ptr()
    matrix.reclaim_gradient()
    assert matrix.weight.grad is None
    three_uses(matrix, matrix.token_loss, bias_V).backward()
    assert_close(matrix.weight.grad, once, **FLOAT64)
    assert matrix.weight.grad.data_ptr() == place


@pytest.mark.parametrize("kind", ["fused", "foreach"])
def test_new_weights_are_seen(kind: str) -> None:
    """bfloat16 works on a copy of E; a fused optimizer changes E and leaves no trace in its version counter."""
    matrix, bias_V = words(torch.float32), torch.zeros(VOCABULARY)
    hidden_TD = random(TOKENS, WIDTH).float()
    optimizer = torch.optim.AdamW(matrix.parameters(), lr=0.1, **{kind: True})
    with torch.autocast("cpu", torch.bfloat16):
        before = matrix.token_loss(hidden_TD, bias_V, TARGETS)
    before.sum().backward()
    optimizer.step()
    fresh = words(torch.float32)
    fresh.load_state_dict(matrix.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        after, expected = (each.token_loss(hidden_TD, bias_V, TARGETS) for each in (matrix, fresh))
    assert torch.equal(after, expected)
    assert not torch.equal(after, before)


def test_a_model_that_has_run_can_be_copied_and_moved_to_another_precision() -> None:
    model = tiny.model(dtype=torch.float32)
    model(tiny.batch())  # makes a ticket in fp32
    twin = copy.deepcopy(model).double()
    model.double()
    grads = [torch.autograd.grad(each(tiny.batch()).mean, list(each.parameters())) for each in (model, twin)]
    assert_close(grads[0], grads[1], **FLOAT64)
    assert {grad.dtype for grad in grads[0]} == {torch.float64}
    fresh = torch.autograd.grad(plain_loss(model), list(model.parameters()))
    assert_close(grads[0], fresh, **FLOAT64)


def plain_loss(model: TSDAE) -> Tensor:
    """The loss by way of the logits, which E's own product and lookups have no part in."""
    batch = tiny.batch()
    matrix = model.decoder_bert.embeddings.words
    with mock.patch.object(matrix, "forward", lambda ids_T: F.embedding(ids_T, matrix.weight)):
        logits_TV = model.logits(model.decode(batch.target, model.encode(batch.noisy)))
    return F.cross_entropy(logits_TV, batch.target.without_first().token_ids_T)


def test_the_loss_is_that_of_the_logits() -> None:
    """`TSDAE.logits` is what objectives and readers use, `token_loss` what trains; the bias is in both."""
    model, target = tiny.model(), tiny.batch().target
    hidden_TD, target_T = model.encoder.bert(target.without_last()).detach(), target.without_first().token_ids_T
    expected_T = F.cross_entropy(model.logits(hidden_TD), target_T, reduction="none")
    assert_close(model.token_loss(hidden_TD, target_T), expected_T, **FLOAT64)
    assert model.head.bias.all()


def test_bfloat16_errs_no_more_than_plain_bfloat16() -> None:
    matrix, bias_V = words(torch.float32), random(VOCABULARY, seed=3).float()
    hidden_TD = random(TOKENS, WIDTH)
    exact_matrix = words()

    def grads(loss: Tensor, weight: Tensor) -> Tensor:
        return torch.autograd.grad(loss.mean(), weight)[0].double()

    exact = grads(
        F.cross_entropy(F.linear(hidden_TD, exact_matrix.weight, bias_V.double()), TARGETS, reduction="none"),
        exact_matrix.weight,
    )
    with torch.autocast("cpu", torch.bfloat16):
        logits_TV = F.linear(hidden_TD.float(), matrix.weight, bias_V).float()
        theirs = F.cross_entropy(logits_TV, TARGETS, reduction="none")
        ours = matrix.token_loss(hidden_TD.float(), bias_V, TARGETS)
    errors = [(grads(loss, matrix.weight) - exact).norm() for loss in (ours, theirs)]
    assert errors[1] > 1e-4, "it was not computed in bfloat16"
    assert errors[0] <= BFLOAT16_RATIO * errors[1]
