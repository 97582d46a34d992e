"""The algebra of `LossSum`: sums with counts, normalised once, by the counts of the whole step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.tolerances import FLOAT64
from tsdae import TSDAE, Batch, LossSum
from tsdae.objectives import tsdae
from tsdae.objectives.interface import step_counts


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def test_a_loss_is_a_sum_over_a_count() -> None:
    loss = LossSum(number(12.0), 8)
    assert loss.counts == {"reconstruction": 8}
    assert loss.mean.item() == 1.5
    assert loss.share_of({"reconstruction": 24}).item() == 0.5


def test_each_term_is_divided_by_its_own_count() -> None:
    loss = LossSum(number(12.0), 8) + 0.1 * LossSum(number(30.0), 3, "contrast")
    assert loss.counts == {"reconstruction": 8, "contrast": 3}
    assert loss.mean.item() == pytest.approx(12 / 8 + 0.1 * 30 / 3)
    assert loss.share_of({"reconstruction": 16, "contrast": 5}).item() == pytest.approx(12 / 16 + 0.1 * 30 / 5)


def test_a_count_may_be_a_sum_and_a_weight_may_be_learned() -> None:
    """As they are written: ``mask.sum()``, ``scale.exp() * loss``."""
    scale = number(0.0).requires_grad_()
    loss = scale.exp() * LossSum(number(12.0), torch.ones(8).sum())
    assert (loss.mean.item(), loss.counts) == (1.5, {"reconstruction": 8})
    assert type(loss.counts["reconstruction"]) is int
    loss.mean.backward()
    torch.testing.assert_close(scale.grad, number(1.5), **FLOAT64)


def test_weights_multiply_and_leave_the_operands_alone() -> None:
    contrast = LossSum(number(30.0), 3, "contrast")
    assert (0.5 * (contrast * 0.2)).mean.item() == pytest.approx(0.1 * 30 / 3)
    weighted_sum = 2 * (LossSum(number(12.0), 8) + 0.1 * contrast)
    assert weighted_sum.mean.item() == pytest.approx(2 * (12 / 8 + 0.1 * 30 / 3))
    assert contrast.mean.item() == 10.0


def test_the_gradient_is_that_of_the_formula() -> None:
    x, y = number(3.0).requires_grad_(), number(5.0).requires_grad_()
    (LossSum(x * x, 4) + 0.1 * LossSum(x * y, 2, "contrast")).mean.backward()
    torch.testing.assert_close(x.grad, number(2 * 3 / 4 + 0.1 * 5 / 2), **FLOAT64)
    torch.testing.assert_close(y.grad, number(0.1 * 3 / 2), **FLOAT64)


def test_two_terms_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two terms are both called contrast"):
        LossSum(number(1.0), 1, "contrast") + (LossSum(number(1.0), 1) + LossSum(number(2.0), 1, "contrast"))


@pytest.mark.parametrize("count", [0, -3])
def test_a_count_below_one_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"'contrast' has a count of {count}; it must be at least 1"):
        LossSum(number(1.0), count, "contrast")


def test_a_loss_that_was_not_summed_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be a sum, a tensor without axes; it has shape \(3,\)"):
        LossSum(torch.ones(3), 3)


def parts(sizes: list[int]) -> list[Batch]:
    """The first sentences of the tiny corpus, in their order, cut into batches of these sizes."""
    data, start, batches = tiny.dataset(), 0, []
    for size in sizes:
        batches.append(data.collate([data[row] for row in range(start, start + size)]))
        start += size
    return batches


@pytest.mark.parametrize("sizes", [[1], [8], [2, 1, 3]])
def test_counts_before_forward_are_those_of_the_losses(sizes: list[int]) -> None:
    """Counted from batches alone: all tokens of the clean sentences but the first of each."""
    model = tiny.model()
    with torch.no_grad():
        counted = sum(model(batch).counts["reconstruction"] for batch in parts(sizes))
    tokens = [len(ids) - 1 for batch in parts(sizes) for ids in batch.target.sentences()]
    assert step_counts(tsdae, parts(sizes)) == {"reconstruction": counted} == {"reconstruction": sum(tokens)}


def test_counts_of_several_terms_are_added_term_by_term() -> None:
    def objective(model: TSDAE, batch: Batch) -> LossSum:
        raise AssertionError("counts must be known without a forward pass")

    objective.counts = lambda batch: {"words": 10 * len(batch.target), "sentences": len(batch.target)}
    assert step_counts(objective, parts([2, 1, 3])) == {"words": 60, "sentences": 6}
