"""BERT on packed tokens (Devlin et al. 2019, arXiv 1810.04805), as an encoder and as the layers of a decoder.

Post-norm layers, erf-GELU, dropout where the original has it. Knows no checkpoint names: `checkpoints` does.

# B sentences, T packed tokens, L padded length, D width, N heads, H head width, V vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsdae.ops.dropout import Dropout, Masks, bytes_of, computed_again, our_way
from tsdae.ops.word_embedding import WordEmbeddings
from tsdae.packing import Layout, Packed


@dataclass(frozen=True)
class BertConfig:
    """The shape of a BERT. Defaults are those of bert-base."""

    vocabulary_size: int
    width: int = 768
    layers: int = 12
    heads: int = 12
    feed_forward: int = 3072
    positions: int = 512  # rows of the position table
    position_offset: int = 0  # row of the first token; RoBERTa begins after its padding id
    token_types: int = 2  # rows of the token-type table; only row 0 is used. DistilBERT has none
    dropout: float = 0.1
    attention_dropout: float = 0.1
    attention_output_dropout: bool = True  # DistilBERT has no dropout after the attention output
    layer_norm_epsilon: float = 1e-12
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for name in ("vocabulary_size", "width", "layers", "heads", "feed_forward", "positions"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of {self.heads} heads")
        for name in ("dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")

    @property
    def longest_sentence(self) -> int:
        """How many tokens, special ones included, the position table allows."""
        return self.positions - self.position_offset


class Embeddings(nn.Module):
    """Word + position + token type (always type 0: one sentence), then layer norm and dropout."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.position_offset = config.position_offset
        self.words = WordEmbeddings(config.vocabulary_size, config.width)
        self.positions = nn.Embedding(config.positions, config.width)
        self.token_types = nn.Embedding(config.token_types, config.width) if config.token_types else None
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_epsilon)
        self.dropout = Dropout(config.dropout)

    def forward(self, token_ids_T: Tensor, layout: Layout) -> Tensor:
        token_ids_T = layout.fill(token_ids_T)
        hidden_TD = self.words(token_ids_T)
        if self.token_types is not None:
            hidden_TD = hidden_TD + self.token_types.weight[0]
        position_T = self._after_padding(token_ids_T, layout) if self.position_offset else layout.position_T
        return self.dropout(self.norm(hidden_TD + self.positions(position_T)), layout.masks)

    def _after_padding(self, token_ids_T: Tensor, layout: Layout) -> Tensor:
        """RoBERTa's positions: they begin after the padding id, and padding tokens that a text spells do not count."""
        is_padding_T = token_ids_T == self.position_offset - 1
        passed_T1 = F.pad(is_padding_T.cumsum(0), (1, 0))
        before_T = passed_T1[1:] - passed_T1[layout.boundaries[layout.sentence_T]]
        position_T = (layout.position_T - before_T).masked_fill(is_padding_T, -1) + self.position_offset
        return position_T.clamp(min=0)  # of rows that are no tokens


class SelfAttention(nn.Module):
    """Every token attends to the tokens of its own sentence; with ``causal`` only to itself and those before it."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.heads, self.attention_dropout = config.heads, config.attention_dropout
        self.project = nn.Linear(config.width, 3 * config.width)  # query, key and value in one product
        self.output = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_epsilon)
        self.dropout = Dropout(config.dropout if config.attention_output_dropout else 0.0)

    def forward(self, hidden_TD: Tensor, layout: Layout, causal: bool) -> Tensor:
        query_BNLH, key_BNLH, value_BNLH = layout.split_heads(self.project(hidden_TD), 3, self.heads)
        context_TD = layout.join_heads(self._attend(query_BNLH, key_BNLH, value_BNLH, layout, causal))
        return self.norm(hidden_TD + self.dropout(self.output(context_TD), layout.masks))

    def first(self, hidden_TD: Tensor, layout: Layout) -> Tensor:
        """What each sentence's first token gets, [B, D]: keys and values of all tokens, but one query a sentence."""
        sizes = [hidden_TD.shape[-1], 2 * hidden_TD.shape[-1]]
        (query_DD, key_value_2DD), (query_D, key_value_2D) = (p.split(sizes) for p in self.project.parameters())
        first_BD = layout.first(hidden_TD)
        query_BNH = F.linear(first_BD, query_DD, query_D).unflatten(-1, (self.heads, -1))
        key_BNLH, value_BNLH = layout.split_heads(F.linear(hidden_TD, key_value_2DD, key_value_2D), 2, self.heads)
        context_BNLH = self._attend(query_BNH[:, :, None], key_BNLH, value_BNLH, layout, causal=False)
        return self.norm(first_BD + self.dropout(self.output(context_BNLH.flatten(1)), layout.masks))

    def _attend(self, query_BNLH: Tensor, key_BNLH: Tensor, value_BNLH: Tensor, layout: Layout, causal: bool) -> Tensor:
        """Scaled dot-product attention within each sentence of padded tensors. Returns context_BNLH.

        Under a causal mask the padding needs no mask of its own: it stands to the right of every real token, and what
        its own rows compute is dropped.
        """
        dropout = self.attention_dropout if self.training else 0.0
        if dropout and our_way(query_BNLH):
            # PyTorch has no kernel for this case on CPUs; what it falls back to takes nearly twice as long (measured).
            parts = (part.flatten(0, 1) for part in (query_BNLH, key_BNLH, value_BNLH))
            bias = layout.causal_bias_LL if causal else layout.padding_bias_BL.repeat_interleave(self.heads, 0)[:, None]
            largest = 4 * query_BNLH[..., 0].numel() * layout.longest  # the weights, in fp32
            context = computed_again(largest, partial(self._attend_with_dropout, bias, layout.masks), *parts)
            return context.unflatten(0, (layout.batch, self.heads))
        may_attend = None if causal or layout.is_full else layout.real_BL[:, None, None, :]
        return F.scaled_dot_product_attention(
            query_BNLH, key_BNLH, value_BNLH, attn_mask=may_attend, dropout_p=dropout, is_causal=causal
        )

    def _attend_with_dropout(self, bias: Tensor, masks: Masks, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The same with sentences and heads in one axis; bias: what the mask adds to the scores."""
        score = torch.baddbmm(bias.to(query.dtype), query, key.transpose(1, 2), alpha=query.shape[-1] ** -0.5)
        weight = torch.softmax(score, -1, dtype=torch.promote_types(score.dtype, torch.float32))
        weight = weight * masks.mask(weight, self.attention_dropout)
        return torch.bmm(weight.to(value.dtype), value)


class OneVectorAttention(nn.Module):
    """Cross-attention of every token of a sentence to that sentence's one vector.

    The softmax over a single key is 1 whatever the query, so attention is ``output(value(s))``: it has no use for
    a query or a key, and none are kept. Without dropout it is computed once per sentence. With attention dropout
    the original drops the probability "1" per head and token; exactly that law, without a product per token:

        out_t = sum_n m_tn * (W_output,n v_n) + b_output,   m_tn ~ Bernoulli(1 - p) / (1 - p)
    """

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.heads, self.attention_dropout = config.heads, config.attention_dropout
        self.value = nn.Linear(config.width, config.width)
        self.output = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_epsilon)
        self.dropout = Dropout(config.dropout if config.attention_output_dropout else 0.0)

    def forward(self, hidden_TD: Tensor, sentence_BD: Tensor, layout: Layout) -> Tensor:
        """hidden_TD: the decoder's tokens. sentence_BD: one vector per sentence of ``layout``."""
        value_BD = self.value(sentence_BD)
        if self.training and self.attention_dropout > 0.0:
            weight_NHD = self.output.weight.t().unflatten(0, (self.heads, -1))
            head_out_BND = torch.einsum("bnh,nhd->bnd", value_BD.unflatten(1, (self.heads, -1)), weight_NHD)
            ones_TN = head_out_BND.new_ones(layout.rows, self.heads)
            kept_BLN = layout.pad(layout.masks.mask(ones_TN, self.attention_dropout))
            out_TD = layout.unpad(torch.bmm(kept_BLN, head_out_BND)) + self.output.bias
        else:
            out_TD = self.output(value_BD).index_select(0, layout.sentence_T)
        return self.norm(hidden_TD + self.dropout(out_TD, layout.masks))


class FeedForward(nn.Module):
    """Two linear layers with GELU (exact, by erf) between."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.expand = nn.Linear(config.width, config.feed_forward)
        self.contract = nn.Linear(config.feed_forward, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_epsilon)
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden_TD: Tensor, layout: Layout) -> Tensor:
        expanded_TF = self.expand(hidden_TD)
        contracted_TD = computed_again(
            bytes_of(expanded_TF), lambda wide_TF: self.contract(F.gelu(wide_TF)), expanded_TF
        )
        return self.norm(hidden_TD + self.dropout(contracted_TD, layout.masks))


class Layer(nn.Module):
    """One layer. As a decoder's, ``cross`` attends to the sentence vector between attention and feed-forward."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.feed_forward = FeedForward(config)

    def forward(
        self,
        hidden_TD: Tensor,
        layout: Layout,
        causal: bool = False,
        cross: OneVectorAttention | None = None,
        sentence_BD: Tensor | None = None,
    ) -> Tensor:
        hidden_TD = self.attention(hidden_TD, layout, causal)
        if cross is not None and sentence_BD is not None:
            hidden_TD = cross(hidden_TD, sentence_BD, layout)
        return self.feed_forward(hidden_TD, layout)

    def first(self, hidden_TD: Tensor, layout: Layout) -> Tensor:
        """The first row of each sentence alone, [B, D]: of the other tokens only keys and values are computed."""
        return self.feed_forward(self.attention.first(hidden_TD, layout), layout)


class Bert(nn.Module):
    """The encoder: every token sees its whole sentence. New weights start as BERT's do (see `initialise`)."""

    def __init__(self, config: BertConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        initialise(self, config.initializer_range, seed)

    def set_dropout(self, dropout: float | None = None, attention_dropout: float | None = None) -> None:
        """Changes the dropout probabilities of all layers, and of the config; None leaves one as it is.

        Call it before a `TSDAE` is built on this encoder: the decoder's own blocks take theirs from the config.
        """
        config = self.config
        self.config = replace(
            config,
            dropout=config.dropout if dropout is None else dropout,
            attention_dropout=config.attention_dropout if attention_dropout is None else attention_dropout,
        )
        self.embeddings.dropout.p = self.config.dropout
        for layer in self.layers:
            assert isinstance(layer, Layer)
            layer.attention.attention_dropout = self.config.attention_dropout
            layer.attention.dropout.p = self.config.dropout if self.config.attention_output_dropout else 0.0
            layer.feed_forward.dropout.p = self.config.dropout

    def set_words(self, weight_VD: Tensor) -> None:
        """Gives it another word-embedding matrix, of as many words as it has rows; before a `TSDAE` is built on it."""
        self.embeddings.words = WordEmbeddings(*weight_VD.shape)
        self.embeddings.words.weight = nn.Parameter(weight_VD)
        self.config = replace(self.config, vocabulary_size=len(weight_VD))

    def check_length(self, packed: Packed[Tensor]) -> None:
        """ValueError if a sentence is longer than the position table."""
        if packed.longest > self.config.longest_sentence:
            raise ValueError(
                f"a sentence has {packed.longest} tokens, the position table allows {self.config.longest_sentence}; "
                "cut sentences by max_length"
            )

    def forward(self, packed: Packed[Tensor], layout: Layout | None = None, first_only: bool = False) -> Tensor:
        """packed: B sentences. Returns hidden_TD, one row per token; with ``first_only`` one row per sentence, that of
        its first token, for which the last layer has less to compute. ValueError if a sentence is too long.
        """
        self.check_length(packed)
        layout = layout or Layout.of(packed)
        hidden_TD = self.embeddings(packed.token_ids_T, layout)
        *before, last = self.layers
        for layer in before:
            hidden_TD = layer(hidden_TD, layout)
        assert isinstance(last, Layer)
        return last.first(hidden_TD, layout) if first_only else layout.tokens(last(hidden_TD, layout))


class LanguageModelHead(nn.Module):
    """BERT's masked-language-model head up to the last product: transform, GELU, layer norm, and the output bias.

    The matrix of the last product is the word-embedding matrix, which the caller owns: tied means the same tensor.
    """

    def __init__(self, config: BertConfig, seed: int = 0) -> None:
        super().__init__()
        self.transform = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_epsilon)
        self.bias = nn.Parameter(torch.zeros(config.vocabulary_size))
        initialise(self, config.initializer_range, seed)

    def features(self, hidden_TD: Tensor) -> Tensor:
        """head(h_t), what E is multiplied with: [T, D]."""
        return self.norm(F.gelu(self.transform(hidden_TD)))

    def forward(self, hidden_TD: Tensor, embedding_VD: Tensor) -> Tensor:
        """Returns logits_TV."""
        return F.linear(self.features(hidden_TD), embedding_VD, self.bias)


def initialise(module: nn.Module, initializer_range: float, seed: int) -> None:
    """Weights from normal(0, initializer_range), biases zero, layer norms one: the start of BERT's own code.

    Draws from a generator of its own, so that the values do not depend on PyTorch's global random state.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Linear | nn.Embedding):
                part.weight.normal_(0.0, initializer_range, generator=generator)
            if isinstance(part, nn.Linear):
                part.bias.zero_()
