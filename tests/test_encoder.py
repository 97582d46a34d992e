"""SentenceEncoder: pooling, and what `encode` promises whatever the batch.

# B sentences, T packed tokens, L padded length, D width
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from tests import tiny
from tests.tiny import SENTENCES
from tests.tolerances import FLOAT32, FLOAT64
from tsdae.bert import Bert, LanguageModelHead
from tsdae.encoder import SentenceEncoder, pool
from tsdae.packing import Layout, Packed
from tsdae.text.tokenization import token_ids

POOLINGS = ("cls", "mean", "max")
every_pooling = pytest.mark.parametrize("pooling", POOLINGS)


def sentence_by_sentence(rows_LD: Tensor, pooling: str) -> Tensor:
    """The vector of one sentence, as one would write it down."""
    if pooling == "cls":
        return rows_LD[0]
    return rows_LD.mean(0) if pooling == "mean" else rows_LD.amax(0)


@every_pooling
@pytest.mark.parametrize("lengths", [[4, 1, 9, 2], [5, 5, 5], [6]], ids=str)
def test_pooling_against_a_loop(pooling: str, lengths: list[int]) -> None:
    """All rows lie below zero, so that padding (zeros) that got into a mean or a maximum would show."""
    rows = [torch.randn(length, 8, dtype=torch.float64).abs().neg() - 1 for length in lengths]
    hidden_TD = torch.cat(rows).requires_grad_()
    layout = Layout.of(Packed.from_lists([[7] * length for length in lengths]).to("cpu"))
    expected_BD = torch.stack([sentence_by_sentence(part, pooling) for part in hidden_TD.split(lengths)])
    pooled_BD = pool(hidden_TD, layout, pooling)
    assert_close(pooled_BD, expected_BD, **FLOAT64)
    weight_BD = torch.randn_like(expected_BD)
    gradients = [torch.autograd.grad((vector * weight_BD).sum(), hidden_TD)[0] for vector in (pooled_BD, expected_BD)]
    assert gradients[1].abs().max() > 0.1
    assert_close(*gradients, **FLOAT64)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("lengths", [[4, 1, 9, 2], [5, 5, 5], [6]], ids=str)
def test_first_tokens_alone_are_the_rows_of_all(lengths: list[int], layers: int) -> None:
    """What CLS pooling computes; values and every gradient."""
    bert = tiny.encoder(layers=layers).bert
    packed = Packed.from_lists([list(range(5, 5 + length)) for length in lengths]).to("cpu")
    firsts = torch.tensor([sum(lengths[:b]) for b in range(len(lengths))])
    expected_BD, found_BD = bert(packed).index_select(0, firsts), bert(packed, first_only=True)
    assert_close(found_BD, expected_BD, **FLOAT64)
    factor_BD = torch.randn_like(expected_BD)
    grads = [torch.autograd.grad((x * factor_BD).sum(), list(bert.parameters())) for x in (found_BD, expected_BD)]
    assert all(gradient.abs().max() > 1e-6 for gradient in grads[1][3:])
    assert_close(*grads, **FLOAT64)


@every_pooling
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_encode_is_the_model_sentence_by_sentence(pooling: str, batch_size: int) -> None:
    """In the order given, though batches are made by length."""
    encoder = tiny.encoder(pooling, dtype=torch.float64)
    vectors = encoder.encode(SENTENCES, batch_size)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(SENTENCES), 24)
    assert len(set(token_ids(SENTENCES, encoder.tokenizer).lengths_B.tolist())) > 4  # ragged
    for sentence, vector in zip(SENTENCES, vectors, strict=True):
        packed = token_ids([sentence], encoder.tokenizer).to("cpu")
        with torch.no_grad():
            expected_D = sentence_by_sentence(encoder.bert(packed), pooling)
        assert_close(torch.from_numpy(vector), expected_D.float(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("folder_says", [True, False])
def test_normalize(folder_says: bool) -> None:
    encoder = tiny.encoder("mean", dtype=torch.float32)
    encoder.normalize = folder_says
    plain, unit = encoder.encode(SENTENCES, normalize=False), encoder.encode(SENTENCES, normalize=True)
    norms = np.linalg.norm(plain, axis=1, keepdims=True)
    assert (np.abs(norms - 1) > 0.01).all()
    np.testing.assert_allclose(unit, plain / norms, atol=1e-6)
    np.testing.assert_array_equal(encoder.encode(SENTENCES), unit if folder_says else plain)
    # The decoder gets the plain vector whatever the folder says.
    with torch.no_grad():
        forward_BD = encoder(token_ids(SENTENCES, encoder.tokenizer).to("cpu"))
    np.testing.assert_allclose(forward_BD, plain, **FLOAT32)


def test_no_sentences() -> None:
    vectors = tiny.encoder().encode([])
    assert vectors.shape == (0, 24)
    assert vectors.dtype == np.float32


def test_what_encode_refuses() -> None:
    encoder = tiny.encoder()
    with pytest.raises(ValueError, match="is one string; give a list of sentences"):
        encoder.encode("a dog")
    for batch_size in (0, -1):
        with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
            encoder.encode(SENTENCES, batch_size)


def test_unknown_pooling() -> None:
    with pytest.raises(ValueError, match="pooling must be one of cls, mean, max, got 'last'"):
        SentenceEncoder(Bert(tiny.config()), tiny.tokenizer(), "last")


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_and_the_flag_restored(training: bool) -> None:
    encoder = tiny.encoder(dtype=torch.float32, dropout=0.5, attention_dropout=0.5)
    expected = encoder.encode(SENTENCES)
    encoder.train(training)
    np.testing.assert_array_equal(encoder.encode(SENTENCES), expected)
    assert {part.training for part in encoder.modules()} == {training}
    encoder.train()
    with torch.no_grad():  # premise: this model's dropout does something
        noisy_BD = encoder(token_ids(SENTENCES, encoder.tokenizer).to("cpu"))
    assert np.abs(noisy_BD.numpy() - expected).max() > 0.1


def test_flag_is_restored_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = tiny.encoder().train()

    def interrupted(_packed: Packed[Tensor]) -> Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(encoder, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encoder.encode(SENTENCES)
    assert encoder.training


def test_longer_sentences_are_cut_and_keep_their_sep() -> None:
    long_one = SENTENCES[5]
    short = tiny.encoder(dtype=torch.float64)
    short.max_length = 8
    ids = next(token_ids([long_one], short.tokenizer).sentences())
    assert len(ids) > 8
    cut = [*ids[:7], short.tokenizer.sep_token_id]
    with torch.no_grad():
        expected_BD = short(Packed.from_lists([cut]).to("cpu"))
    vectors = short.encode(["dog", long_one])
    np.testing.assert_allclose(vectors[1:], expected_BD, **FLOAT32)
    np.testing.assert_allclose(vectors[0], tiny.encoder(dtype=torch.float64).encode(["dog"])[0], **FLOAT32)


def test_padding_left_behind_by_the_tokenizer_is_not_encoded() -> None:
    """Whoever calls a tokenizer with padding or truncation leaves them switched on in it."""
    encoder = tiny.encoder("mean")
    expected = encoder.encode(SENTENCES)
    encoder.tokenizer(SENTENCES, padding="max_length", truncation=True, max_length=6)
    np.testing.assert_array_equal(encoder.encode(SENTENCES), expected)


def test_encode_within_autocast_is_fp32() -> None:
    """Evaluation runs within a training loop that computes in bfloat16."""
    encoder = tiny.encoder(dtype=torch.float32)
    expected = encoder.encode(SENTENCES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():  # premise: here the model itself does compute in bfloat16
            rounded_BD = encoder(token_ids(SENTENCES, encoder.tokenizer).to("cpu"))
        vectors = encoder.encode(SENTENCES)
    assert np.abs(rounded_BD.float().numpy() - expected).max() > 1e-3
    np.testing.assert_array_equal(vectors, expected)


def test_model_in_half_precision_still_gives_float32() -> None:
    """Computed in bfloat16, since that was asked for."""
    encoder = tiny.encoder(dtype=torch.bfloat16)
    vectors = encoder.encode(SENTENCES)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, tiny.encoder(dtype=torch.float32).encode(SENTENCES), atol=0.1)


def test_vectors_can_be_trained_on_afterwards() -> None:
    """encode leaves no trace in the model: its parameters still take gradients."""
    encoder = tiny.encoder()
    encoder.encode(SENTENCES)
    encoder(token_ids(SENTENCES, encoder.tokenizer).to("cpu")).sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_head_is_new_where_the_checkpoint_has_none() -> None:
    """And then a function of the seed alone, whatever the global random state."""
    encoder = tiny.encoder()
    torch.manual_seed(1)
    first = encoder.head(seed=3).state_dict()
    torch.manual_seed(2)
    assert all(torch.equal(first[name], tensor) for name, tensor in encoder.head(seed=3).state_dict().items())
    assert not torch.equal(first["transform.weight"], encoder.head(seed=4).state_dict()["transform.weight"])


def test_head_of_the_checkpoint_is_taken() -> None:
    encoder = tiny.encoder()
    head = tiny.randomise(LanguageModelHead(encoder.bert.config), seed=9).state_dict()
    encoder.pretrained.head = head
    taken = encoder.head(seed=3).state_dict()
    assert all(torch.equal(taken[name], head[name]) for name in head)
