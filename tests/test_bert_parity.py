"""Our BERT equals transformers', element by element: each part, the whole, its gradients, the head, the causal mode.

Every parameter is random and sentences are ragged: with fresh weights or equal lengths most errors hide.

# B sentences, T packed tokens, D width
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from tests import families
from tests.families import FAMILIES, LENGTHS, padded, ragged
from tests.tolerances import BFLOAT16_RATIO, FLOAT32, FLOAT64
from tsdae.bert import LanguageModelHead, OneVectorAttention, Pretrained
from tsdae.hub.conversion import FAMILIES as OUR_FAMILIES
from tsdae.hub.conversion import read_pretrained
from tsdae.packing import Layout, Packed

PRECISIONS = {torch.float64: FLOAT64, torch.float32: FLOAT32}
precisions = pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
every_family = pytest.mark.parametrize("family", FAMILIES)
LAYERS = 3


@cache
def both(family: str, auto: Any, dtype: torch.dtype) -> tuple[PreTrainedModel, Pretrained]:
    """A random model of transformers, and what we read from the folder that it saved. Not to be changed.

    With a head the names of the weights have a prefix, and without one they have none.
    """
    with TemporaryDirectory() as folder:
        theirs = families.save(Path(folder), family, auto).to(dtype)
        checkpoint = read_pretrained(Path(folder))
        names = load_file(Path(folder) / "model.safetensors")
    assert any(name.startswith(f"{theirs.base_model_prefix}.") for name in names) == (auto is not AutoModel)
    assert (checkpoint.head is None) == (auto is AutoModel)
    checkpoint.bert.to(dtype).eval()
    return theirs, checkpoint


def norms_of(theirs: PreTrainedModel) -> dict[str, nn.Module]:
    """The layer norm that ends each part, in transformers' own names."""
    distil = theirs.config.model_type == "distilbert"
    parts = {"embeddings": theirs.embeddings.LayerNorm}
    for i, layer in enumerate(theirs.transformer.layer if distil else theirs.encoder.layer):
        parts[f"attention {i}"] = layer.sa_layer_norm if distil else layer.attention.output.LayerNorm
        parts[f"layer {i}"] = layer.output_layer_norm if distil else layer.output.LayerNorm
    return parts


def stages(theirs: PreTrainedModel) -> dict[str, Tensor]:
    """What transformers computes after each part of the model, padding taken out: hidden_TD."""
    inputs = padded(ragged(), theirs.config.pad_token_id)
    seen: dict[str, Tensor] = {}
    handles = [
        norm.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
        for name, norm in norms_of(theirs).items()
    ]
    with torch.no_grad():
        theirs(**inputs)
    for handle in handles:
        handle.remove()
    return {name: hidden_BLD[inputs["attention_mask"].bool()] for name, hidden_BLD in seen.items()}


@every_family
@precisions
def test_each_part(family: str, dtype: torch.dtype) -> None:
    """Every part gets what transformers' part got, so that an error shows where it is made."""
    theirs, checkpoint = both(family, AutoModel, dtype)
    expected = stages(theirs)
    assert len(expected) == 1 + 2 * LAYERS  # the hooks were called
    bert, packed = checkpoint.bert, ragged()
    layout = Layout.of(packed)
    with torch.no_grad():
        ours = {"embeddings": bert.embeddings(packed.token_ids_T, layout)}
        for i, layer in enumerate(bert.layers):
            before_TD = expected["embeddings" if i == 0 else f"layer {i - 1}"]
            ours[f"attention {i}"] = layer.attention(before_TD, layout, causal=False)
            ours[f"feed-forward {i}"] = layer.feed_forward(expected[f"attention {i}"], layout)
            ours[f"layer {i}"] = layer(before_TD, layout)
    for name, hidden_TD in ours.items():
        expected_TD = expected[name.replace("feed-forward", "layer")]
        assert_close(hidden_TD, expected_TD, **PRECISIONS[dtype], msg=lambda text, name=name: f"{name}: {text}")


@every_family
@precisions
def test_whole_encoder_and_its_gradients(family: str, dtype: torch.dtype) -> None:
    theirs, checkpoint = both(family, AutoModel, dtype)
    bert, packed = checkpoint.bert, ragged()
    expected_TD, hidden_TD = families.hidden(theirs, packed), bert(packed)
    assert_close(hidden_TD, expected_TD, **PRECISIONS[dtype])

    weight_TD = torch.randn(expected_TD.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    theirs_by_name = {name: p for name, p in theirs.named_parameters() if not name.startswith("pooler")}
    expected = torch.autograd.grad((expected_TD * weight_TD).sum(), list(theirs_by_name.values()))
    expected_of = dict(zip(theirs_by_name, expected, strict=True))
    # The true gradient of key biases is zero; all others must have something to compare.
    assert all(g.abs().max() > 1e-4 for name, g in expected_of.items() if not name.endswith(("key.bias", "k_lin.bias")))

    ours = torch.autograd.grad((hidden_TD * weight_TD).sum(), list(bert.parameters()))
    for (name, _), gradient in zip(bert.named_parameters(), ours, strict=True):
        joined = torch.cat([expected_of.pop(their_name) for their_name in OUR_FAMILIES[family].names_of(name)])
        assert_close(gradient, joined, **PRECISIONS[dtype], msg=lambda text, name=name: f"{name}: {text}")
    assert not expected_of  # every parameter of theirs is one of ours


@every_family
def test_a_text_may_spell_the_padding_token(family: str) -> None:
    """RoBERTa gives such a token the padding's own position, and does not count it."""
    theirs, checkpoint = both(family, AutoModel, torch.float64)
    padding, sentences = theirs.config.pad_token_id, list(ragged().sentences())
    for row, place in ((0, 3), (0, 4), (2, 0), (2, 6), (4, 8)):
        sentences[row][place] = padding
    packed = Packed.from_lists(sentences).to("cpu")
    ids_BL = torch.full((len(LENGTHS), max(LENGTHS)), padding)
    mask_BL = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    ids_BL[mask_BL] = packed.token_ids_T
    with torch.no_grad():
        expected_TD = theirs(input_ids=ids_BL, attention_mask=mask_BL.long()).last_hidden_state[mask_BL]
        assert_close(checkpoint.bert(packed), expected_TD, **FLOAT64)


@every_family
@precisions
def test_language_model_head(family: str, dtype: torch.dtype) -> None:
    theirs, checkpoint = both(family, AutoModelForMaskedLM, dtype)
    packed, bert = ragged(), checkpoint.bert
    inputs = padded(packed, theirs.config.pad_token_id)
    with torch.no_grad():
        expected_TV = theirs(**inputs).logits[inputs["attention_mask"].bool()]
        logits_TV = head_of(checkpoint).to(dtype)(bert(packed), bert.embeddings.words.weight)
    assert_close(logits_TV, expected_TV, **PRECISIONS[dtype])


def head_of(checkpoint: Pretrained) -> LanguageModelHead:
    head = LanguageModelHead(checkpoint.bert.config)
    assert checkpoint.head is not None
    head.load_state_dict(checkpoint.head)
    return head


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "distilbert"])
@precisions
def test_as_decoder(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Causal, each token attending to its sentence's one vector: transformers' decoder with one encoder state."""
    theirs = families.build(family, AutoModelForCausalLM, is_decoder=True, add_cross_attention=True)
    weights = {name: tensor.clone() for name, tensor in theirs.state_dict().items() if "crossattention" not in name}
    save_file(weights, tmp_path / "model.safetensors")
    AutoConfig.for_model(family, **families.shape(family)).save_pretrained(tmp_path)
    checkpoint = read_pretrained(tmp_path)
    bert, head = checkpoint.bert.to(dtype).eval(), head_of(checkpoint).to(dtype)
    crosses = crosses_of(theirs.base_model, checkpoint).to(dtype).eval()
    theirs = theirs.to(dtype)

    packed = ragged()
    layout = Layout.of(packed)
    sentence_BD = torch.randn(len(LENGTHS), bert.config.width, generator=torch.Generator().manual_seed(2)).to(dtype)
    sentence_BD.requires_grad_()
    inputs = padded(packed, theirs.config.pad_token_id)
    expected_TV = theirs(**inputs, encoder_hidden_states=sentence_BD[:, None]).logits[inputs["attention_mask"].bool()]
    hidden_TD = bert.embeddings(packed.token_ids_T, layout)
    for layer, cross in zip(bert.layers, crosses, strict=True):
        hidden_TD = layer(hidden_TD, layout, causal=True, cross=cross, sentence_BD=sentence_BD)
    logits_TV = head(hidden_TD, bert.embeddings.words.weight)
    assert_close(logits_TV, expected_TV, **PRECISIONS[dtype])

    weight_TV = torch.randn(expected_TV.shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    gradients = [
        torch.autograd.grad((logits * weight_TV).sum(), [sentence_BD, embedding])
        for logits, embedding in (
            (expected_TV, theirs.get_input_embeddings().weight),
            (logits_TV, bert.embeddings.words.weight),
        )
    ]
    for expected, ours in zip(*gradients, strict=True):
        assert expected.abs().max() > 1e-4
        assert_close(ours, expected, **PRECISIONS[dtype])


def crosses_of(theirs: PreTrainedModel, checkpoint: Pretrained) -> nn.ModuleList:
    """Their cross-attention in our modules; its query and key have no part in attention to a single vector."""
    crosses = nn.ModuleList(OneVectorAttention(checkpoint.bert.config) for _ in range(LAYERS))
    for cross, layer in zip(crosses, theirs.encoder.layer, strict=True):
        their_cross = layer.crossattention
        cross.value.load_state_dict(their_cross.self.value.state_dict())
        cross.output.load_state_dict(their_cross.output.dense.state_dict())
        cross.norm.load_state_dict(their_cross.output.LayerNorm.state_dict())
    return crosses


@every_family
def test_bfloat16_errs_no_more_than_twice_theirs(family: str) -> None:
    exact, _ = both(family, AutoModel, torch.float64)
    theirs, checkpoint = both(family, AutoModel, torch.bfloat16)
    packed = ragged()
    with torch.no_grad():
        exact_TD = families.hidden(exact, packed)
        their_error = (families.hidden(theirs, packed).double() - exact_TD).abs().max()
        hidden_TD = checkpoint.bert(packed)
    assert hidden_TD.dtype == torch.bfloat16
    assert their_error > 1e-3  # both really computed in bfloat16
    assert (hidden_TD.double() - exact_TD).abs().max() <= BFLOAT16_RATIO * their_error


def test_dropout_is_off_where_these_tests_compare() -> None:
    """Premise of this file: evaluation mode on both sides, though both have dropout to switch off."""
    theirs, checkpoint = both("bert", AutoModel, torch.float64)
    assert theirs.config.hidden_dropout_prob > 0
    assert checkpoint.bert.config.dropout > 0
    assert not theirs.training
    assert not checkpoint.bert.training
