"""Batches of few shapes, for what is made once a shape, such as a CUDA graph: a filler sentence makes up the rows.

A packed batch of 8 sentences has a new number of rows at nearly every step. With one more sentence, which no loss
counts, there are as many rows as in its bucket. Order and noise are pure functions, so all shapes of a run are known
before its first step.

# B sentences, T packed tokens
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tsdae.packing import Batch, Packed

SHORTEST = 2  # tokens of the filler: of its clean side one is read and one predicted


class Bucket(NamedTuple):
    """The shape of a filled batch: rows of the noisy and of the clean sentences, filler included, and padded length."""

    noisy: int
    target: int
    longest: int


def bucket_of(batch: Batch, step: int, longest: int) -> Bucket:
    """Return the smallest bucket for a batch and its filler, with rows in multiples of ``step``.

    longest: tokens of the longest sentence of the run. ValueError if the filler could be longer than that.
    """
    if step + SHORTEST - 1 > longest:
        raise ValueError(f"step {step}: a filler of up to {step + SHORTEST - 1} tokens, of {longest} at most")
    noisy, target = (-(-(packed.token_count + SHORTEST) // step) * step for packed in (batch.noisy, batch.target))
    return Bucket(noisy, target, longest)


def fill(batch: Batch, bucket: Bucket, filler_id: int) -> Batch:
    """Return the batch with one more sentence, made of ``filler_id`` alone; read the loss by `mean_without_filler`.

    >>> bucket = bucket_of(batch, 64, dataset.max_length)
    >>> filled = fill(batch, bucket, tokenizer.pad_token_id)
    """
    noisy = _fill(batch.noisy, bucket.noisy, bucket.longest, filler_id)
    return Batch(noisy, _fill(batch.target, bucket.target, bucket.longest, filler_id))


def _fill(packed: Packed[Tensor], rows: int, longest: int, filler_id: int) -> Packed[Tensor]:
    filler_T = packed.token_ids_T.new_full((rows - packed.token_count,), filler_id)
    end = packed.boundaries.new_full((1,), rows)
    return Packed(torch.cat([packed.token_ids_T, filler_T]), torch.cat([packed.boundaries, end]), longest)


def mean_without_filler(loss_T: Tensor, predicted: Packed[Tensor]) -> Tensor:
    """Return the mean over the tokens of all sentences but the last, the filler, without asking the device.

    loss_T: one number for each token of ``predicted``, which is ``target.without_first()`` of a filled batch.
    """
    is_real_T = torch.arange(len(loss_T), device=loss_T.device) < predicted.boundaries[-2]
    return torch.where(is_real_T, loss_T, 0.0).sum() / predicted.boundaries[-2]
