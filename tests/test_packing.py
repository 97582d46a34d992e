"""Packed sentences, and the way to the padded tensor and back.

# B sentences, T packed tokens, L padded length, X any further axes
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from tests import tiny
from tests.tolerances import FLOAT64
from tsdae import ops
from tsdae.ops import common as spare_rows
from tsdae.ops.attention import join_heads, split_heads
from tsdae.ops.common import few_lengths
from tsdae.packing import Layout, Packed, ranges

RAGGED = [[11, 12, 13], [21], [31, 32, 33, 34], [41, 42]]
EVEN = [[11, 12], [21, 22], [31, 32]]
both_shapes = pytest.mark.parametrize("sentences", [RAGGED, EVEN, [[7]]], ids=["ragged", "even", "one token"])


def layout_of(sentences: list[list[int]]) -> Layout:
    return Layout.of(Packed.from_lists(sentences).to("cpu"))


@both_shapes
def test_packed_holds_its_sentences(sentences: list[list[int]]) -> None:
    for packed in (Packed.from_lists(sentences), Packed.from_lists(sentences).to("cpu")):
        assert list(packed.sentences()) == sentences
        assert len(packed) == len(sentences)
        assert packed.lengths_B.tolist() == [len(sentence) for sentence in sentences]
        assert packed.token_count == sum(map(len, sentences))
        assert packed.longest == max(map(len, sentences))
    assert packed.token_ids_T.dtype == packed.boundaries.dtype == torch.int64


@pytest.mark.parametrize("sentences", [[], [[1], []]])
def test_nothing_to_pack(sentences: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="at least one sentence, and each at least one token"):
        Packed.from_lists(sentences)


@pytest.mark.parametrize("sentences", [RAGGED[2:], [[1, 2, 3], [4, 5], [6, 7, 8, 9]], EVEN], ids=str)
def test_without_last_and_without_first(sentences: list[list[int]]) -> None:
    packed = Packed.from_lists(sentences).to("cpu")
    for shorter, expected in (
        (packed.without_last(), [sentence[:-1] for sentence in sentences]),
        (packed.without_first(), [sentence[1:] for sentence in sentences]),
    ):
        assert list(shorter.sentences()) == expected
        assert shorter.longest == max(map(len, expected))
        assert shorter.token_count == sum(map(len, expected))


@both_shapes
def test_layout_says_where_each_token_stands(sentences: list[list[int]]) -> None:
    layout = layout_of(sentences)
    places = [(b, position) for b, sentence in enumerate(sentences) for position in range(len(sentence))]
    assert list(zip(layout.sentence_T.tolist(), layout.position_T.tolist(), strict=True)) == places
    longest = max(map(len, sentences))
    assert layout.real_BL.dtype == torch.bool
    assert layout.real_BL.tolist() == [[i < len(sentence) for i in range(longest)] for sentence in sentences]
    assert layout.is_full == all(len(sentence) == longest for sentence in sentences)


@both_shapes
@pytest.mark.parametrize("further", [(), (5,), (2, 3)], ids=str)
def test_pad_and_unpad(sentences: list[list[int]], further: tuple[int, ...]) -> None:
    layout = layout_of(sentences)
    rows_TX = torch.randn(layout.token_count, *further)
    padded_BLX = layout.pad(rows_TX)
    assert padded_BLX.shape == (len(sentences), max(map(len, sentences)), *further)
    row = iter(rows_TX)
    for b, sentence in enumerate(sentences):
        for position in range(padded_BLX.shape[1]):
            expected_X = next(row) if position < len(sentence) else torch.zeros(further)
            assert torch.equal(padded_BLX[b, position], expected_X)
    assert torch.equal(layout.unpad(padded_BLX), rows_TX)
    in_the_padding = padded_BLX.masked_fill(~layout.real_BL.view(*layout.real_BL.shape, *(1 for _ in further)), 9.0)
    assert torch.equal(layout.unpad(in_the_padding), rows_TX)


@both_shapes
def test_gradients_of_pad_and_unpad(sentences: list[list[int]]) -> None:
    """Each token's gradient comes back to its own row, through what was done to its own place of the padded tensor."""
    layout = layout_of(sentences)
    rows_TX = torch.randn(layout.token_count, 3, dtype=torch.float64, requires_grad=True)
    weight_TX = torch.randn_like(rows_TX)
    factor_BLX = torch.randn(layout.batch, layout.longest, 3, dtype=torch.float64)
    out_TX = layout.unpad(layout.pad(rows_TX) * factor_BLX)
    (gradient_TX,) = torch.autograd.grad((out_TX * weight_TX).sum(), rows_TX)
    assert torch.equal(gradient_TX, weight_TX * layout.unpad(factor_BLX))


@both_shapes
@pytest.mark.parametrize("fill", [False, True])
def test_heads_apart_and_together(sentences: list[list[int]], fill: bool) -> None:
    """By a loop over tokens, parts and heads: values, and gradients. The padding and what fills up have none."""
    parts, heads, width = 3, 2, 5
    packed = Packed.from_lists(sentences).to("cpu")
    longest, rows = (few_lengths(size) if fill else size for size in (packed.longest, packed.token_count))
    layout = Layout(packed.boundaries, packed.token_count, longest, rows)
    rows_TX = torch.randn(layout.rows, parts * heads * width, dtype=torch.float64, requires_grad=True)
    split = split_heads(rows_TX, parts, heads, layout)
    assert split.shape == (parts, len(sentences), heads, layout.longest, width)
    assert split.isfinite().all()
    factor = torch.randn_like(split)
    expected_X = torch.zeros_like(rows_TX)
    for row, (b, position) in enumerate((b, i) for b, sentence in enumerate(sentences) for i in range(len(sentence))):
        for part in range(parts):
            for head in range(heads):
                columns = slice((part * heads + head) * width, (part * heads + head + 1) * width)
                assert torch.equal(split[part, b, head, position], rows_TX[row, columns])
                expected_X[row, columns] = factor[part, b, head, position]
    assert torch.equal(torch.autograd.grad((split * factor).sum(), rows_TX)[0], expected_X)

    one_BNLH = split[1].detach().requires_grad_()
    joined_TX = join_heads(one_BNLH, layout)
    expected_TX = rows_TX.unflatten(1, (parts, -1))[:, 1]
    assert torch.equal(layout.tokens(joined_TX), layout.tokens(expected_TX))
    factor_TX = torch.randn_like(joined_TX)
    (grad_BNLH,) = torch.autograd.grad((layout.tokens(joined_TX * factor_TX)).sum(), one_BNLH)
    assert torch.equal(layout.tokens(join_heads(grad_BNLH, layout)), layout.tokens(factor_TX))
    assert not grad_BNLH.masked_select(~layout.real_BL[:, None, :, None]).any()


@pytest.mark.parametrize(
    ("starts", "lengths"), [([0, 10, 5], [3, 1, 2]), ([4], [0]), ([7, 7, 2], [0, 2, 0]), ([], [])], ids=str
)
def test_ranges_against_a_loop(starts: list[int], lengths: list[int]) -> None:
    expected = [i for start, length in zip(starts, lengths, strict=True) for i in range(start, start + length)]
    made = ranges(np.array(starts, dtype=np.int64), np.array(lengths, dtype=np.int64))
    assert made.tolist() == expected


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
def test_split(size: int) -> None:
    groups = [RAGGED[first : first + size] for first in range(0, len(RAGGED), size)]
    for packed, group in zip(Packed.from_lists(RAGGED).split(size), groups, strict=True):
        assert list(packed.sentences()) == group
        assert packed.longest == max(map(len, group))
        assert packed.boundaries[0] == 0


def test_few_lengths_are_few_and_little_longer() -> None:
    rounded = [few_lengths(length) for length in range(1, 5000)]
    assert all(length <= up and up - length < max(8, length / 16) for length, up in enumerate(rounded, start=1))
    assert rounded == sorted(rounded)
    assert len({up for up in rounded if 1024 < up <= 2048}) <= 32
    assert len(set(rounded)) < 150


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
@pytest.mark.parametrize("dropout", [0.0, 1e-9], ids=["without dropout", "dropout that drops nothing"])
def test_filled_up_batches_compute_the_same(pooling: str, dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and every gradient; with dropout through the attention and masks of training as well."""
    model, batch = tiny.model(pooling, dropout=dropout, attention_dropout=dropout), tiny.batch(5)
    reference = tiny.model(pooling)
    loss = reference(batch).mean
    expected_grads = torch.autograd.grad(loss, list(reference.parameters()))
    for fill in (False, True):
        monkeypatch.setattr(spare_rows, "new_lengths_cost", lambda device, fill=fill: fill)
        monkeypatch.setattr(sys.modules["tsdae.ops.word_embedding"], "new_lengths_cost", lambda device, fill=fill: fill)
        filled = ops.layout_of(batch.noisy)
        assert (filled.rows > filled.token_count and filled.longest > batch.noisy.longest) == fill
        found = model.train()(batch).mean
        assert_close(found, loss, **FLOAT64)
        grads = torch.autograd.grad(found, list(model.parameters()))
        assert_close(grads, expected_grads, **FLOAT64)
