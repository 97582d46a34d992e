"""Packed sentences, and the way to the padded tensor and back.

# B sentences, T packed tokens, L padded length, X any further axes
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from tests.tolerances import FLOAT64
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


def test_shortcut_for_equal_lengths_equals_the_padded_path() -> None:
    """Values and gradients; the shortcut must not change a result, only save the copies."""
    results = []
    for shortcut in (True, False):
        layout = layout_of(EVEN)
        assert layout.is_full
        layout.is_full = shortcut
        rows_TX = torch.arange(12.0, dtype=torch.float64).view(6, 2).requires_grad_()
        padded_BLX = layout.pad(rows_TX)
        back_TX = layout.unpad(padded_BLX.cumsum(1) ** 2)
        back_TX.mul(torch.arange(12.0, dtype=torch.float64).view(6, 2)).sum().backward()
        results.append((padded_BLX.detach(), back_TX.detach(), rows_TX.grad))
    assert results[0][2].abs().max() > 0
    for with_shortcut, without in zip(*results, strict=True):
        assert_close(with_shortcut, without, **FLOAT64)


def test_gradients_of_the_padded_path() -> None:
    """Each token's gradient comes back to its own row."""
    layout = layout_of(RAGGED)
    assert not layout.is_full
    rows_TX = torch.randn(layout.token_count, 3, dtype=torch.float64, requires_grad=True)
    weight_TX = torch.randn_like(rows_TX)
    (gradient_TX,) = torch.autograd.grad((layout.unpad(layout.pad(rows_TX)) * weight_TX).sum(), rows_TX)
    assert torch.equal(gradient_TX, weight_TX)


@pytest.mark.parametrize(
    ("starts", "lengths"), [([0, 10, 5], [3, 1, 2]), ([4], [0]), ([7, 7, 2], [0, 2, 0]), ([], [])], ids=str
)
def test_ranges_against_a_loop(starts: list[int], lengths: list[int]) -> None:
    expected = [i for start, length in zip(starts, lengths, strict=True) for i in range(start, start + length)]
    made = ranges(np.array(starts, dtype=np.int64), np.array(lengths, dtype=np.int64))
    assert made.tolist() == expected
