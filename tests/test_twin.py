"""The packed, batched code computes what `slow_twin` computes: the loss, and the gradient of every parameter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests import slow_twin, tiny
from tests.tolerances import FLOAT64
from tsdae import TSDAE, Batch
from tsdae.packing import Layout

RAGGED = ["a woman cooks bread", "dog", "is the house very big ?", "unknown cats eating slowly"]
EQUALLY_LONG = ["the dog eats bread", "a cat is running", "an apple in house"]
SHAPES: dict[str, dict[str, Any]] = {
    "BERT": {},
    "RoBERTa, positions begin later": {"position_offset": 2, "token_types": 1},
    "DistilBERT, no token types": {"token_types": 0, "attention_output_dropout": False},
    "a coarse layer-norm epsilon": {"layer_norm_epsilon": 1e-2},
}


def batch_of(sentences: list[str], noise: str = "delete") -> Batch:
    data = tiny.dataset(sentences, noise=noise)
    return data.collate([data[row] for row in range(len(sentences))])


def loss_and_gradients(loss: Tensor, model: TSDAE) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True))
    for name, gradient in gradients.items():
        assert gradient is not None, f"{name} has no gradient"
        assert gradient.abs().max() > 1e-6, f"the gradient of {name} is zero: nothing would be compared"
    return {"loss": loss.detach()} | gradients


def assert_equal_to_twin(model: TSDAE, batch: Batch) -> None:
    assert not model.training, "dropout is on"
    fast = loss_and_gradients(model(batch).mean, model)
    noisy, clean = list(batch.noisy.sentences()), list(batch.target.sentences())
    slow = loss_and_gradients(slow_twin.mean_loss(model, noisy, clean), model)
    for name, expected in slow.items():
        torch.testing.assert_close(fast[name], expected, **FLOAT64, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_every_way_to_tie_and_pool(tie: bool, pooling: str) -> None:
    batch = batch_of(RAGGED)
    assert len(set(batch.noisy.lengths_B.tolist())) > 1, "not ragged"
    assert_equal_to_twin(tiny.model(pooling, tie, layers=2), batch)


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_a_decoder_of_one_layer(tie: bool) -> None:
    assert_equal_to_twin(tiny.model(tie=tie, decoder_layers=1, layers=2), batch_of(RAGGED))


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_equally_long_sentences_which_need_no_padding(pooling: str) -> None:
    batch = batch_of(EQUALLY_LONG, noise="replace")  # which keeps the lengths
    assert Layout.of(batch.noisy).is_full
    assert Layout.of(batch.target).is_full
    assert_equal_to_twin(tiny.model(pooling, layers=2), batch)


def test_a_batch_of_one_sentence() -> None:
    assert_equal_to_twin(tiny.model(layers=2), batch_of(RAGGED[:1]))


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape(shape: str) -> None:
    assert_equal_to_twin(tiny.model(layers=2, **SHAPES[shape]), batch_of(RAGGED[:3]))
