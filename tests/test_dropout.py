"""Dropout has the law of the original at every site: the same means and variances over thousands of draws.

Two sentences of unequal length are repeated in one batch, every repetition with draws of its own. Compared are the
outputs number by number, and random sums over them: their variance tells whether the draws of different tokens, heads
and features hang together as they should.

# R repetitions, B = 2 R sentences, T packed tokens, L tokens of one sentence, D width, X numbers that are compared
"""

from __future__ import annotations

import sys
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, BertLMHeadModel, BertModel, DistilBertModel

from tests import families, tiny
from tests.hf_names import as_ours, encoder_as_ours
from tests.tolerances import FLOAT64
from tsdae import TSDAE, SentenceEncoder
from tsdae.bert import Bert
from tsdae.ops import common as switch
from tsdae.ops.dropout import DRAWN_AT_ONCE, dropout_mask
from tsdae.packing import Layout, Packed

REPEATS = 3000
SENTENCES = [[2, 10, 11, 12, 13, 3], [2, 20, 21, 3]]
DROPOUT, ATTENTION_DROPOUT = 0.3, 0.4  # unlike each other: one in the place of the other would be seen
SITES = [
    "embeddings",
    "attention probabilities",
    "attention output",
    "cross-attention probabilities",
    "cross-attention output",
    "feed-forward output",
]
SHAPE = {"vocab_size": len(tiny.tokenizer()), "max_position_embeddings": 40, "attn_implementation": "eager"}
DISTILBERT = {"token_types": 0, "attention_output_dropout": False}
Places = dict[str, list[tuple[object, str]]]  # a site -> the attributes that hold its probability, one a layer


def sigmas_apart(one_RX: Tensor, other_RX: Tensor) -> float:
    """The largest difference between means, or between variances, in units of its standard error."""
    centre_X, apart = (one_RX.mean(0) + other_RX.mean(0)) / 2, []
    for power in (1, 2):
        one, other = (one_RX - centre_X) ** power, (other_RX - centre_X) ** power
        error_X = ((one.var(0) + other.var(0)) / len(one)).sqrt()
        apart.append(((one.mean(0) - other.mean(0)).abs() / error_X).max())
    return float(max(apart))


def test_the_comparison_tells_laws_apart() -> None:
    """Draws of one law pass it; a mean that is off by a fifth of the deviation, or a deviation by a fifth, does not."""
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, REPEATS, 500, generator=generator)
    assert sigmas_apart(one, other) < 5
    assert sigmas_apart(one, other + 0.2) > 5
    assert sigmas_apart(one, other * 1.2) > 5


def assert_same_law(ours_TD: Tensor, theirs: list[Tensor]) -> None:
    """ours: the packed outputs of all repetitions of the first sentence, then of the second. theirs: [R, L, D] each."""
    generator = torch.Generator().manual_seed(0)
    rows = [theirs_RLD.shape[0] * theirs_RLD.shape[1] for theirs_RLD in theirs]
    for ours_of_one_TD, theirs_RLD in zip(ours_TD.split(rows), theirs, strict=True):
        ours_RX, theirs_RX = ours_of_one_TD.reshape(REPEATS, -1), theirs_RLD.flatten(1)
        assert (theirs_RX.var(0) > 1e-12).all(), "the reference has no dropout here"
        weight_XX = torch.randn(theirs_RX.shape[1], 100, generator=generator, dtype=torch.float64)
        assert sigmas_apart(*(torch.cat([x, x @ weight_XX], dim=1) for x in (ours_RX, theirs_RX))) < 5


def repeated() -> Packed[Tensor]:
    return Packed.from_lists([ids for ids in SENTENCES for _ in range(REPEATS)]).to("cpu")


def their_config(**changes: object) -> Any:
    rates = {"hidden_dropout_prob": DROPOUT, "attention_probs_dropout_prob": ATTENTION_DROPOUT}
    settings = families.shape("bert", num_hidden_layers=2, layer_norm_eps=1e-12, **SHAPE, **rates, **changes)
    return AutoConfig.for_model("bert", **settings)


def our_encoder(**changes: object) -> SentenceEncoder:
    config = tiny.config(layers=2, dropout=DROPOUT, attention_dropout=ATTENTION_DROPOUT, **changes)
    return SentenceEncoder(Bert(config), tiny.tokenizer()).double()


def decoders() -> tuple[TSDAE, BertLMHeadModel]:
    """Ours and transformers', with the same random weights, in training mode."""
    theirs = BertLMHeadModel(their_config(is_decoder=True, add_cross_attention=True)).double().train()
    tiny.randomise(theirs)
    ours = TSDAE(our_encoder()).double().train()
    ours.load_state_dict(as_ours(ours, "bert", dict(theirs.bert.named_parameters()), dict(theirs.named_parameters())))
    return ours, theirs


def our_places(model: TSDAE) -> Places:
    layers, crosses = model.encoder.bert.layers, model.crosses
    return {
        "embeddings": [(model.encoder.bert.embeddings.dropout, "p")],
        "attention probabilities": [(layer.attention, "attention_dropout") for layer in layers],
        "attention output": [(layer.attention.dropout, "p") for layer in layers],
        "cross-attention probabilities": [(cross, "attention_dropout") for cross in crosses],
        "cross-attention output": [(cross.dropout, "p") for cross in crosses],
        "feed-forward output": [(layer.feed_forward.dropout, "p") for layer in layers],
    }


def their_places(model: BertLMHeadModel) -> Places:
    layers = model.bert.encoder.layer
    return {
        "embeddings": [(model.bert.embeddings.dropout, "p")],
        "attention probabilities": [(layer.attention.self.dropout, "p") for layer in layers],
        "attention output": [(layer.attention.output.dropout, "p") for layer in layers],
        "cross-attention probabilities": [(layer.crossattention.self.dropout, "p") for layer in layers],
        "cross-attention output": [(layer.crossattention.output.dropout, "p") for layer in layers],
        "feed-forward output": [(layer.output.dropout, "p") for layer in layers],
    }


def leave_on(site: str | None, places: Places) -> None:
    """Switches off all sites but this one (None: all)."""
    for name, attributes in places.items():
        for owner, attribute in attributes:
            assert getattr(owner, attribute) > 0.0, f"the configuration's dropout did not arrive at {name}"
            if name != site:
                setattr(owner, attribute, 0.0)


def decode_both(ours: TSDAE, theirs: BertLMHeadModel) -> tuple[Tensor, list[Tensor]]:
    vectors = torch.randn(2, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.manual_seed(0)
    with torch.no_grad():
        ours_TD = ours.decode(repeated(), vectors.repeat_interleave(REPEATS, 0))
        theirs_outputs = [
            theirs.bert(
                torch.tensor([ids[:-1]] * REPEATS), encoder_hidden_states=vector.expand(REPEATS, 1, 24)
            ).last_hidden_state
            for ids, vector in zip(SENTENCES, vectors, strict=True)
        ]
    return ours_TD, theirs_outputs


def test_without_dropout_the_decoders_are_equal() -> None:
    """The premise of the rest: the same weights, and no draw but those of the listed sites."""
    ours, theirs = decoders()
    leave_on(None, our_places(ours))
    leave_on(None, their_places(theirs))
    ours_TD, theirs_outputs = decode_both(ours, theirs)
    torch.testing.assert_close(ours_TD, torch.cat([output.flatten(0, 1) for output in theirs_outputs]), **FLOAT64)


@pytest.mark.parametrize("site", SITES)
def test_one_site_of_the_decoder(site: str) -> None:
    ours, theirs = decoders()
    leave_on(site, our_places(ours))
    leave_on(site, their_places(theirs))
    assert_same_law(*decode_both(ours, theirs))


def test_all_sites_of_the_decoder() -> None:
    assert_same_law(*decode_both(*decoders()))


def encode_both(ours: SentenceEncoder, theirs: nn.Module) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = [theirs(torch.tensor([ids] * REPEATS)).last_hidden_state for ids in SENTENCES]
        return ours.bert(repeated()), outputs


def test_all_sites_of_the_encoder() -> None:
    theirs = BertModel(their_config(), add_pooling_layer=False).double().train()
    tiny.randomise(theirs)
    ours = our_encoder().train()
    ours.bert.load_state_dict(encoder_as_ours(ours.bert, "bert", dict(theirs.named_parameters())))
    assert_same_law(*encode_both(ours, theirs))


def test_all_sites_of_distilbert() -> None:
    rates = {"dropout": DROPOUT, "attention_dropout": ATTENTION_DROPOUT}
    config = AutoConfig.for_model("distilbert", **families.shape("distilbert", n_layers=2, **SHAPE, **rates))
    theirs = DistilBertModel(config).double().train()
    tiny.randomise(theirs)
    ours = our_encoder(**DISTILBERT).train()
    ours.bert.load_state_dict(encoder_as_ours(ours.bert, "distilbert", dict(theirs.named_parameters())))
    assert_same_law(*encode_both(ours, theirs))


@pytest.mark.parametrize("family", ["BERT", "DistilBERT"])
def test_only_distilbert_has_none_after_the_attention_output(family: str) -> None:
    """With all other sites switched off a DistilBERT, encoder and decoder, draws nothing."""
    ours = TSDAE(our_encoder(**(DISTILBERT if family == "DistilBERT" else {}))).double().train()
    for site, attributes in our_places(ours).items():
        for owner, attribute in attributes:
            if not site.endswith("attention output"):
                setattr(owner, attribute, 0.0)
    batch, sentence_BD = tiny.batch(), torch.ones(8, 24, dtype=torch.float64)
    outputs = [(ours.encode(batch.noisy), ours.decode(batch.target, sentence_BD)) for _ in range(2)]
    for first, second in zip(*outputs, strict=True):
        assert torch.equal(first, second) == (family == "DistilBERT")


@pytest.mark.parametrize("shape", [(1000, 1001), (3, 77)], ids=["drawn alone", "drawn with others"])
def test_the_mask_on_cpus_drops_with_its_probability_and_keeps_the_mean(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    for p in (0.1, 0.5, 0.9):
        layout = Layout.of(Packed.from_lists([[2, 3]]).to("cpu"))
        drawn = [dropout_mask(torch.empty(shape), p, layout) for _ in range(-(-1_000_000 // (shape[0] * shape[1])))]
        assert {mask.shape for mask in drawn} == {torch.Size(shape)}
        mask = torch.cat(drawn)
        dropped = (mask == 0).double().mean().item()
        assert abs(dropped - p) < 5 * (p * (1 - p) / mask.numel()) ** 0.5
        (scale,) = mask[mask > 0].unique().tolist()
        assert scale == pytest.approx(1 / (1 - p), rel=1e-4)
        columns = (mask == 0).double()
        together = (columns[:, 1:] * columns[:, :-1]).mean().item()  # neighbours share 64 random bits
        assert abs(together - p**2) < 5 * (p**2 / mask.numel()) ** 0.5


def test_masks_follow_the_seed_and_differ_from_site_to_site() -> None:
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        layout = Layout.of(Packed.from_lists([[2, 3]]).to("cpu"))
        draws.append(
            [dropout_mask(torch.empty(size), p, layout) for size in (40, DRAWN_AT_ONCE) for p in (0.5, 0.5, 0.2)]
        )
    assert all(torch.equal(first, second) for first, second in zip(*draws, strict=True))
    kept = [(mask != 0)[:40].tolist() for mask in draws[0]]
    assert len({tuple(each) for each in kept}) == len(kept)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_what_is_computed_again_changes_nothing(pooling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same masks, loss and gradients, bit for bit; and the softmax of attention runs a second time."""
    found, passes = [], []
    for large in (2**62, 0):
        monkeypatch.setattr(switch, "LARGE_BYTES", large)
        monkeypatch.setattr(
            sys.modules["tsdae.ops.dropout"], "DRAWN_AT_ONCE", 0
        )  # small masks are drawn as large ones are
        model, batch = tiny.model(pooling, dropout=0.3, attention_dropout=0.4).train(), tiny.batch()
        torch.manual_seed(1)
        with mock.patch.object(torch, "softmax", wraps=torch.softmax) as softmax:
            loss = model(batch).mean
            grads = torch.autograd.grad(loss, list(model.parameters()))
        found.append((loss, *grads))
        passes.append(softmax.call_count)
    assert passes[1] == 2 * passes[0] > 0
    assert all(torch.equal(kept, again) for kept, again in zip(*found, strict=True))
    assert all(gradient.any() for gradient in found[0])
