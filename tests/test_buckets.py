"""Batches filled up to few shapes compute what they compute unfilled."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.buckets import SHORTEST, bucket_of, fill, mean_without_filler
from tests import tiny
from tests.test_cuda import META, Waits
from tests.tolerances import FLOAT64
from tsdae import ops
from tsdae.autoencoder import TSDAE
from tsdae.packing import Batch

STEP, LONGEST, FILLER = 16, 40, 0


def mean_of_filled(model: TSDAE, batch: Batch) -> Tensor:
    hidden_TD = model.decode(batch.target, model.encode(batch.noisy))
    predicted = batch.target.without_first()
    return mean_without_filler(model.token_loss(hidden_TD, predicted.token_ids_T), predicted)


@pytest.mark.parametrize(
    "changes", [{}, {"pooling": "mean"}, {"pooling": "max"}, {"tie": False, "decoder_layers": 2}], ids=str
)
@pytest.mark.parametrize("plain", [False, True])
def test_loss_and_every_gradient_are_those_of_the_unfilled_batch(changes: dict[str, Any], plain: bool) -> None:
    model, batch = tiny.model(**changes), tiny.batch()
    filled = fill(batch, bucket_of(batch, STEP, LONGEST), FILLER)
    assert filled.target.token_count > batch.target.token_count, "the premise"
    found = []
    for loss in (model(batch).mean, mean_of_filled(model, filled)):
        model.zero_grad()
        loss.backward()
        found.append({"loss": loss.detach()} | {n: p.grad for n, p in model.named_parameters()})
    if plain:
        model.zero_grad()
        with ops.plain():
            mean_of_filled(model, filled).backward()
        found.append({"loss": found[0]["loss"]} | {n: p.grad for n, p in model.named_parameters()})
    for name, value in found[0].items():
        assert name == "loss" or value.any() or "project.bias" in name, "the premise"
        torch.testing.assert_close(found[-1][name], value, **FLOAT64, msg=name)


def test_a_run_has_few_shapes_and_each_batch_that_of_its_bucket() -> None:
    sentences = [" ".join(tiny.WORDS[i % 7 : i % 7 + 1 + i % 17]) for i in range(60)]
    batches = list(islice(tiny.dataset(sentences).batches(0, 8), 200))
    shapes = set()
    for batch in batches:
        bucket = bucket_of(batch, STEP, LONGEST)
        filled = fill(batch, bucket, FILLER)
        assert (filled.noisy.token_count, filled.target.token_count) == bucket[:2]
        for before, after in zip((*batch.views, batch.target), (*filled.views, filled.target), strict=True):
            *real, filler = after.sentences()
            assert real == list(before.sentences())
            assert SHORTEST <= len(filler) < STEP + SHORTEST
            assert after.longest == LONGEST
        shapes.add(bucket)
    rows = {(batch.noisy.token_count, batch.target.token_count) for batch in batches}
    assert len(shapes) <= 20 < 100 < len(rows)


def test_a_filler_that_would_be_longer_than_any_sentence_is_refused() -> None:
    with pytest.raises(ValueError, match="a filler of up to 41 tokens, of 40 at most"):
        bucket_of(tiny.batch(), LONGEST, LONGEST)
    bucket_of(tiny.batch(), LONGEST - 1, LONGEST)


def test_no_number_of_a_filled_batch_is_asked_of_the_device() -> None:
    batch = tiny.batch()
    model, filled = tiny.model().to(META), fill(batch, bucket_of(batch, STEP, LONGEST), FILLER).to(META)
    with Waits(META) as mode:
        mean_of_filled(model, filled).backward()
    assert mode.found == []
