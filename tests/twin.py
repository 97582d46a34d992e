"""A model of the package as `tsdae_in_one_file` has it: that file's code over the same parameters."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor

import tsdae_in_one_file as one_file
from tsdae import TSDAE
from tsdae.bert import Bert, BertConfig, Layer
from tsdae.packing import Packed


class Twin(one_file.TSDAE):
    """With the package's other poolings; "none" leaves the rows as they are."""

    pooling = "cls"

    def pool(self, hidden_BLD: Tensor, is_real_BL: Tensor) -> Tensor:
        if self.pooling == "none":
            return hidden_BLD
        if self.pooling == "cls":
            return super().pool(hidden_BLD, is_real_BL)
        rows = [hidden_LD[is_real_L] for hidden_LD, is_real_L in zip(hidden_BLD, is_real_BL, strict=True)]
        return torch.stack([row_LD.mean(0) if self.pooling == "mean" else row_LD.max(0).values for row_LD in rows])


def twin_of(model: TSDAE) -> Twin:
    """Its parameters are those of ``model``, or parts of them; only queries and keys of the cross-attention are its
    own, and random: the package keeps none, saying that they cannot matter."""
    twin = Twin(config_of(model.encoder.bert.config)).to(next(model.parameters()).dtype)
    twin.pooling = model.encoder.pooling
    if not model.tie:
        twin.decoder = copy.deepcopy(twin.encoder)
        plug_bert(twin.decoder, model.decoder_bert)
    plug_bert(twin.encoder, model.encoder.bert)
    twin.crosses = twin.crosses[: model.decoder_layers]
    for ours, theirs in zip(twin.crosses, model.crosses, strict=True):
        for name in ("value", "output", "norm"):
            plug(ours.get_submodule(name), theirs.get_submodule(name).named_parameters())
    plug(twin.head[0], model.head.transform.named_parameters())
    plug(twin.head[2], model.head.norm.named_parameters())
    plug(twin, [("bias", model.head.bias)])
    return twin


def plug_bert(ours: one_file.Bert, theirs: Bert) -> None:
    embeddings, config = theirs.embeddings, theirs.config
    types = embeddings.token_types.weight[:1] if embeddings.token_types else torch.zeros(1, config.width)
    plug(ours.words, [("weight", embeddings.words.weight)])
    plug(ours.positions, [("weight", embeddings.positions.weight[config.position_offset :])])
    plug(ours.token_types, [("weight", types.to(embeddings.words.weight.dtype))])
    plug(ours.norm, embeddings.norm.named_parameters())
    for attention, feed_forward, layer in zip(ours.attentions, ours.feed_forwards, theirs.layers, strict=False):
        plug_layer(attention, feed_forward, layer)


def twin_layer(layer: Layer, shape: BertConfig) -> tuple[one_file.Attention, one_file.FeedForward]:
    attention, feed_forward = one_file.Attention(config_of(shape)), one_file.FeedForward(config_of(shape))
    plug_layer(attention, feed_forward, layer)
    return attention, feed_forward


def plug_layer(attention: one_file.Attention, feed_forward: one_file.FeedForward, layer: Layer) -> None:
    for kind, parameter in layer.attention.project.named_parameters():
        for name, part in zip(("query", "key", "value"), parameter.chunk(3), strict=True):
            plug(attention.get_submodule(name), [(kind, part)])
    plug(attention.output, layer.attention.output.named_parameters())
    plug(attention.norm, layer.attention.norm.named_parameters())
    for name in ("expand", "contract", "norm"):
        plug(feed_forward.get_submodule(name), layer.feed_forward.get_submodule(name).named_parameters())


def config_of(shape: BertConfig) -> one_file.Config:
    return {
        "vocab_size": shape.vocabulary_size,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.feed_forward,
        "max_position_embeddings": shape.positions - shape.position_offset,
        "type_vocab_size": 1,
        "layer_norm_eps": shape.layer_norm_epsilon,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def plug(module: torch.nn.Module, tensors: Iterator[tuple[str, Tensor]] | list[tuple[str, Tensor]]) -> None:
    """Put tensors in the place of parameters: gradients flow through them to whatever they are made of."""
    for name, tensor in tensors:
        delattr(module, name)
        object.__setattr__(module, name, tensor)


def lists(packed: Packed[Tensor]) -> list[list[int]]:
    return [list(ids) for ids in packed.sentences()]
