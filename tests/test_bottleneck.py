"""One vector is all that the decoder learns of the source sentence, and no token sees what it has to predict."""

from __future__ import annotations

import copy
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.tolerances import FLOAT64
from tsdae import TSDAE, Batch
from tsdae.objectives import tsdae
from tsdae.packing import Packed

TIED_AND_NOT = pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])


def batch_of(noisy: list[str], target: list[str]) -> Batch:
    return Batch.from_texts(noisy, target, tiny.tokenizer())


def source_embeddings_and_vectors(model: TSDAE, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """(embedded noisy tokens, sentence_BD, loss), caught inside one call of the model."""
    embedded, vectors = [], []
    hooks = [
        model.encoder.bert.embeddings.register_forward_hook(lambda *call: embedded.append(call[-1])),
        model.encoder.register_forward_hook(lambda *call: vectors.append(call[-1])),
    ]
    loss = model(batch).mean
    for hook in hooks:
        hook.remove()
    assert len(vectors) == 1
    assert len(embedded) == (2 if model.tie else 1), "tied: the encoder's, then the decoder's"
    assert len(embedded[0]) == batch.noisy.token_count
    return embedded[0], vectors[0], loss


@TIED_AND_NOT
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_source_reaches_the_loss_through_the_sentence_vector_only(pooling: str, tie: bool) -> None:
    """The whole gradient at the noisy tokens is the one that arrives at the vector, sent on through the encoder."""
    embedded_TD, sentence_BD, loss = source_embeddings_and_vectors(tiny.model(pooling, tie), tiny.batch())
    whole, at_vector = torch.autograd.grad(loss, (embedded_TD, sentence_BD), retain_graph=True)
    (through_vector,) = torch.autograd.grad(sentence_BD, embedded_TD, at_vector)
    assert (whole.abs().max(1).values > 1e-6).all(), "a source token has no influence at all"
    torch.testing.assert_close(whole, through_vector, **FLOAT64)


@TIED_AND_NOT
def test_with_a_fixed_vector_the_source_makes_no_difference(tie: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, clean = tiny.model(tie=tie), tiny.SENTENCES
    one, other = batch_of(clean, clean), batch_of(["two red apples"] * 8, clean)
    assert abs(model(one).mean - model(other).mean) > 1e-8, "the source never makes a difference"
    monkeypatch.setattr(model, "encode", lambda packed: torch.ones(len(packed), 24, dtype=torch.float64))
    assert torch.equal(model(one).mean, model(other).mean)


@TIED_AND_NOT
def test_every_sentence_has_its_own_vector(tie: bool) -> None:
    """Changing one sentence's vector changes every token of that sentence and none of another."""
    model, batch, sentence_BD = tiny.model(tie=tie), tiny.batch(), torch.ones(8, 24, dtype=torch.float64)
    before = model.decode(batch.target, sentence_BD)
    sentence_T = torch.repeat_interleave(torch.arange(8), batch.target.lengths_B - 1)
    for changed in range(8):
        after = model.decode(batch.target, sentence_BD + (torch.arange(8) == changed).double()[:, None])
        assert ((after != before).any(1) == (sentence_T == changed)).all()


@TIED_AND_NOT
def test_a_position_sees_the_tokens_before_its_target_and_nothing_else(tie: bool) -> None:
    """Row t predicts target token t + 1. Another token at place p changes rows p and later of its own sentence, the
    first of which predicts place p + 1: no row ever sees its target, or what follows, or another sentence."""
    model, sentence_BD = tiny.model(tie=tie), torch.ones(3, 24, dtype=torch.float64)
    sentences = [tiny.tokenizer()(text).input_ids for text in tiny.SENTENCES[1:4]]
    changed_id = tiny.tokenizer().convert_tokens_to_ids("flute")
    assert all(changed_id not in ids for ids in sentences)

    def rows(lists: list[list[int]]) -> tuple[Tensor, ...]:
        target = Packed.from_lists(lists).to("cpu")
        return model.decode(target, sentence_BD).split((target.lengths_B - 1).tolist())

    before = rows(sentences)
    for b in range(3):
        for place in range(len(sentences[b])):
            changed_sentences = copy.deepcopy(sentences)
            changed_sentences[b][place] = changed_id
            after = rows(changed_sentences)
            for other in range(3):
                changed = (after[other] != before[other]).any(1).tolist()
                assert changed == [other == b and row >= place for row in range(len(sentences[other]) - 1)]


@TIED_AND_NOT
def test_labels_are_the_next_tokens(tie: bool) -> None:
    """The gradient of a cross-entropy at its logits is p - onehot(label): below zero at the label and nowhere else.
    A token's logits are shifted by the head's bias alone, so the bias of a single token's loss has that gradient."""
    model, batch = tiny.model(tie=tie), tiny.batch()
    with mock.patch.object(model, "token_loss", wraps=model.token_loss) as token_loss:
        mean = model(batch).mean
    loss_T = model.token_loss(*token_loss.call_args.args)
    assert torch.equal(mean, loss_T.mean())
    following = [token for ids in batch.target.sentences() for token in ids[1:]]
    assert following != [token for ids in batch.target.sentences() for token in ids[:-1]]
    for row, token in enumerate(following):
        (gradient_V,) = torch.autograd.grad(loss_T[row], model.head.bias, retain_graph=True)
        assert (gradient_V < 0).nonzero().tolist() == [[token]]


def test_cls_pooling_takes_the_row_of_the_first_token() -> None:
    model = tiny.model("cls")
    vectors = model.encode(tiny.batch().noisy)
    for b, ids in enumerate(tiny.batch().noisy.sentences()):
        hidden_TD = model.encoder.bert(Packed.from_lists([ids]).to("cpu"))
        torch.testing.assert_close(vectors[b], hidden_TD[0], **FLOAT64)
        assert not torch.isclose(hidden_TD[1:], hidden_TD[0]).all(1).any(), "any row would do"


@TIED_AND_NOT
def test_the_output_matrix_is_the_word_embedding_matrix(tie: bool) -> None:
    """Scaling one word's embedding scales that word's logit (without its bias), and no other."""
    model, word = tiny.model(tie=tie), tiny.tokenizer().convert_tokens_to_ids("flute")
    hidden_TD = tiny.model().encoder.bert(tiny.batch().noisy).detach()
    with torch.no_grad():
        before = model.logits(hidden_TD) - model.head.bias
        model.decoder_bert.embeddings.words.weight[word] *= 3.0
        after = model.logits(hidden_TD) - model.head.bias
    assert before[:, word].abs().min() > 1e-6
    expected = before.clone()
    expected[:, word] *= 3.0
    torch.testing.assert_close(after, expected, **FLOAT64)


@TIED_AND_NOT
def test_words_that_no_sentence_holds_are_still_pushed_away(tie: bool) -> None:
    """As wrong answers: the loss reaches their embeddings through the output matrix, the encoder's own when tied."""
    model, batch = tiny.model(tie=tie), tiny.batch()
    model(batch).mean.backward()
    seen = torch.cat([batch.noisy.token_ids_T, batch.target.token_ids_T]).unique()
    unseen = torch.ones(model.encoder.bert.config.vocabulary_size, dtype=torch.bool).index_fill(0, seen, False)
    gradient: Any = model.encoder.bert.embeddings.words.weight.grad
    assert unseen.any()
    assert (gradient[unseen].abs().max(1).values > 1e-6).all() == tie
    assert (gradient[unseen] == 0).all() == (not tie)


def test_a_target_beyond_the_position_table_is_refused() -> None:
    """The encoder reads the noisy sentence, which may fit where the clean one does not."""
    model = tiny.model()
    longest = model.encoder.bert.config.longest_sentence
    noisy, clean = (Packed.from_lists([[2, *[9] * size, 3]]).to("cpu") for size in (3, longest))
    with pytest.raises((ValueError, IndexError)) as raised:
        tsdae(model, Batch(noisy, clean))
    assert f"the position table allows {longest}; cut sentences by max_length" in str(raised.value)
