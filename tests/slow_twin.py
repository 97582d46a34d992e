"""TSDAE once more, as slow and as obvious as it can be written: what `tsdae` must compute, to be read beside the paper.

One sentence at a time, one head at a time, one token at a time. Nothing is packed, padded, masked, fused or shared,
and no function of the package is called: only the parameters of a `TSDAE` are read, so that both sides can be
differentiated with respect to the same tensors. No dropout.

# L tokens of one sentence, D width, H head width, V vocabulary; no letter: one number
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tsdae import TSDAE
from tsdae.bert import Bert, BertConfig, Embeddings, FeedForward, OneVectorAttention, SelfAttention


def mean_loss(model: TSDAE, noisy: list[list[int]], clean: list[list[int]]) -> Tensor:
    """The paper's loss: the mean over all target tokens of - log p(x_t | x_<t, s)."""
    losses = []
    for noisy_ids, clean_ids in zip(noisy, clean, strict=True):
        sentence_D = encode(model, noisy_ids)
        for t in range(1, len(clean_ids)):  # the first token, [CLS], is given
            hidden_LD = decode(model, clean_ids[:t], sentence_D)  # anew from the start: what comes later is not there
            losses.append(-torch.log(softmax(logits(model, hidden_LD[-1])))[clean_ids[t]])
    return torch.stack(losses).sum() / len(losses)


def encode(model: TSDAE, ids: list[int]) -> Tensor:
    """s = pool(Encoder(x~)): every token sees the whole noisy sentence."""
    bert = model.encoder.bert
    hidden_LD = embed(bert.embeddings, ids, bert.config)
    for layer in bert.layers:
        hidden_LD = self_attention(hidden_LD, layer.attention, bert.config, causal=False)
        hidden_LD = feed_forward(hidden_LD, layer.feed_forward, bert.config)
    if model.encoder.pooling == "cls":
        return hidden_LD[0]
    return hidden_LD.mean(0) if model.encoder.pooling == "mean" else hidden_LD.max(0).values


def decoder_bert(model: TSDAE) -> Bert:
    """Tied: the encoder's own embeddings and layers. Untied: others of the same shape."""
    if model.tie:
        return model.encoder.bert
    assert model.untied is not None
    return model.untied


def decode(model: TSDAE, prefix: list[int], sentence_D: Tensor) -> Tensor:
    """h = Decoder(x_<t, s): every token sees itself, those before it, and the sentence vector."""
    bert, generator = decoder_bert(model), torch.Generator().manual_seed(0)
    hidden_LD = embed(bert.embeddings, prefix, bert.config)
    for index in range(model.decoder_layers):
        layer, cross = bert.layers[index], model.crosses[index]
        hidden_LD = self_attention(hidden_LD, layer.attention, bert.config, causal=True)
        hidden_LD = cross_attention(hidden_LD, sentence_D, cross, bert.config, generator)
        hidden_LD = feed_forward(hidden_LD, layer.feed_forward, bert.config)
    return hidden_LD


def logits(model: TSDAE, hidden_D: Tensor) -> Tensor:
    """E . head(h) + b, with the decoder's word embeddings as E."""
    bert, head = decoder_bert(model), model.head
    transformed_D = layer_norm(gelu(linear(hidden_D, head.transform)), head.norm, bert.config)
    return torch.stack([word_D @ transformed_D for word_D in bert.embeddings.words.weight]) + head.bias


def embed(embeddings: Embeddings, ids: list[int], config: BertConfig) -> Tensor:
    rows = []
    for place, token in enumerate(ids):
        row_D = embeddings.words.weight[token] + embeddings.positions.weight[config.position_offset + place]
        if embeddings.token_types is not None:
            row_D = row_D + embeddings.token_types.weight[0]
        rows.append(layer_norm(row_D, embeddings.norm, config))
    return torch.stack(rows)


def self_attention(hidden_LD: Tensor, attention: SelfAttention, config: BertConfig, causal: bool) -> Tensor:
    weights, biases = attention.project.weight.split(config.width), attention.project.bias.split(config.width)
    query_LD, key_LD, value_LD = (hidden_LD @ w.T + b for w, b in zip(weights, biases, strict=True))
    rows = []
    for t in range(len(hidden_LD)):
        seen = t + 1 if causal else len(hidden_LD)
        heads = attend(query_LD[t], key_LD[:seen], value_LD[:seen], config)
        rows.append(layer_norm(hidden_LD[t] + linear(heads, attention.output), attention.norm, config))
    return torch.stack(rows)


def cross_attention(
    hidden_LD: Tensor, sentence_D: Tensor, cross: OneVectorAttention, config: BertConfig, generator: torch.Generator
) -> Tensor:
    """Every token attends to one key, the sentence vector's. The package keeps no query and no key projection,
    saying that they cannot matter: here they are drawn at random, and everything must come out the same."""
    query_DD, key_DD = torch.randn(2, config.width, config.width, generator=generator, dtype=sentence_D.dtype)
    key_1D, value_1D = (key_DD @ sentence_D)[None], linear(sentence_D, cross.value)[None]
    rows = []
    for hidden_D in hidden_LD:
        heads = attend(query_DD @ hidden_D, key_1D, value_1D, config)
        rows.append(layer_norm(hidden_D + linear(heads, cross.output), cross.norm, config))
    return torch.stack(rows)


def attend(query_D: Tensor, key_LD: Tensor, value_LD: Tensor, config: BertConfig) -> Tensor:
    """One token's attention: each head on its own slice of the width, laid side by side again."""
    head_width, heads = config.width // config.heads, []
    for n in range(config.heads):
        own = slice(n * head_width, (n + 1) * head_width)
        probability_L = softmax(key_LD[:, own] @ query_D[own] / math.sqrt(head_width))
        heads.append(probability_L @ value_LD[:, own])
    return torch.cat(heads)


def feed_forward(hidden_LD: Tensor, block: FeedForward, config: BertConfig) -> Tensor:
    rows = []
    for hidden_D in hidden_LD:
        inner = linear(gelu(linear(hidden_D, block.expand)), block.contract)
        rows.append(layer_norm(hidden_D + inner, block.norm, config))
    return torch.stack(rows)


def linear(x: Tensor, module: nn.Linear) -> Tensor:
    return module.weight @ x + module.bias


def layer_norm(x: Tensor, module: nn.LayerNorm, config: BertConfig) -> Tensor:
    centred = x - x.mean()
    return centred / torch.sqrt((centred**2).mean() + config.layer_norm_epsilon) * module.weight + module.bias


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def softmax(x: Tensor) -> Tensor:
    return torch.exp(x) / torch.exp(x).sum()
