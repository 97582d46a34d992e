"""BERT on packed tokens (Devlin et al. 2019, arXiv 1810.04805), as an encoder and as the layers of a decoder.

Post-norm layers, erf-GELU, dropout where the original has it. From the parts up: embeddings, attention, feed-forward,
layer, `Bert`, its language-model head. The names that weights have elsewhere are in `hub.conversion`.

# B sentences, T packed tokens, L padded length, D hidden size, N heads, H head width, V vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsdae import ops
from tsdae.packing import Layout, Packed
from tsdae.utils.checks import check_range


@dataclass(frozen=True)
class BertConfig:
    """Sizes, dropout and initialisation of a BERT. Defaults are those of bert-base."""

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
            check_range(name, getattr(self, name), "[1, inf)")
        for name in ("position_offset", "token_types", "layer_norm_epsilon", "initializer_range"):
            check_range(name, getattr(self, name), "[0, inf)")
        if self.width % self.heads:
            raise ValueError(f"hidden size {self.width} is not a multiple of {self.heads} attention heads")
        for name in ("dropout", "attention_dropout"):
            check_range(name, getattr(self, name), "[0, 1)")

    @property
    def longest_sentence(self) -> int:
        """Return how many tokens, special ones included, the position table allows."""
        return self.positions - self.position_offset


class Dropout(nn.Dropout):
    """Dropout of packed rows, whose layout `ops.dropout` asks for."""

    def forward(self, hidden_TD: Tensor, layout: Layout) -> Tensor:  # type: ignore[override]
        return ops.dropout(hidden_TD, self.p, self.training, layout)


class Embeddings(nn.Module):
    """Word + position + token type (always type 0: one sentence), then layer norm and dropout."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.position_offset = config.position_offset
        self.words = ops.WordEmbeddings(config.vocabulary_size, config.width)
        self.positions = nn.Embedding(config.positions, config.width)
        self.token_types = nn.Embedding(config.token_types, config.width) if config.token_types else None
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_epsilon)
        self.dropout = Dropout(config.dropout)

    def forward(self, token_ids_T: Tensor, layout: Layout) -> Tensor:
        token_ids_T = layout.with_spare_rows(token_ids_T)
        hidden_TD = self.words(token_ids_T)
        if self.token_types is not None:
            hidden_TD = hidden_TD + self.token_types.weight[0]
        position_T = self._after_padding(token_ids_T, layout) if self.position_offset else layout.position_T
        return self.dropout(self.norm(hidden_TD + self.positions(position_T)), layout)

    def _after_padding(self, token_ids_T: Tensor, layout: Layout) -> Tensor:
        """Return RoBERTa's positions: they begin after the padding id; padding that a text spells does not count."""
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

    def forward(self, hidden_TD: Tensor, layout: Layout, causal: bool, first_only: bool = False) -> Tensor:
        """Return hidden_TD, with ``first_only`` hidden_BD: the first token's row of each sentence."""
        dropout = self.attention_dropout if self.training else 0.0
        context = ops.attention(hidden_TD, self.project, self.heads, layout, causal, dropout, first_only)
        hidden = layout.first(hidden_TD) if first_only else hidden_TD
        return self.norm(hidden + self.dropout(self.output(context), layout))


class OneVectorAttention(nn.Module):
    """Cross-attention of every token of a sentence to that sentence's one vector.

    The softmax over a single key is 1 whatever the query, so attention is ``output(value(s))``: it has no use for
    a query or a key, and none are kept. With attention dropout the original drops the probability "1" per head and
    token, by exactly this law:

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
        """Return hidden_TD. hidden_TD: the decoder's tokens. sentence_BD: one vector per sentence of ``layout``."""
        dropout = self.attention_dropout if self.training else 0.0
        out_TD = ops.one_vector_attention(self.value(sentence_BD), self.output, self.heads, layout, dropout)
        return self.norm(hidden_TD + self.dropout(out_TD, layout))


class FeedForward(nn.Module):
    """Two linear layers with GELU (exact, by erf) between."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.expand = nn.Linear(config.width, config.feed_forward)
        self.contract = nn.Linear(config.feed_forward, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_epsilon)
        self.dropout = Dropout(config.dropout)

    def forward(self, hidden_TD: Tensor, layout: Layout) -> Tensor:
        contracted_TD = ops.gelu_linear(self.expand(hidden_TD), self.contract)
        return self.norm(hidden_TD + self.dropout(contracted_TD, layout))


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
        first_only: bool = False,
    ) -> Tensor:
        """Return hidden_TD, with ``first_only`` hidden_BD: of the other tokens only keys and values are computed."""
        hidden_TD = self.attention(hidden_TD, layout, causal, first_only)
        if cross is not None and sentence_BD is not None:
            hidden_TD = cross(hidden_TD, sentence_BD, layout)
        return self.feed_forward(hidden_TD, layout)


class Bert(nn.Module):
    """The encoder: every token sees its whole sentence. New weights start as BERT's do (see `initialise`)."""

    def __init__(self, config: BertConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        initialise(self, config.initializer_range, seed)

    def set_dropout(self, dropout: float | None = None, attention_dropout: float | None = None) -> None:
        """Change the dropout probabilities of all layers, and of the config; None leaves one as it is.

        Call it before a `TSDAE` is built on this encoder: the decoder's cross-attention takes its own from the config.
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

    def set_word_embeddings(self, weight_VD: Tensor) -> None:
        """Replace the word-embedding matrix, by one of any number of rows; before a `TSDAE` is built on it."""
        self.embeddings.words = ops.WordEmbeddings(*weight_VD.shape)
        self.embeddings.words.weight = nn.Parameter(weight_VD)
        self.config = replace(self.config, vocabulary_size=len(weight_VD))

    def check_length(self, packed: Packed[Tensor]) -> None:
        """Raise ValueError if a sentence is longer than the position table."""
        if packed.longest > self.config.longest_sentence:
            raise ValueError(
                f"a sentence has {packed.longest} tokens, the position table allows {self.config.longest_sentence}; "
                "cut sentences by max_length"
            )

    def forward(self, packed: Packed[Tensor], layout: Layout | None = None, first_only: bool = False) -> Tensor:
        """Return hidden_TD, one row per token of ``packed``; ValueError if a sentence is too long.

        first_only: return hidden_BD, the row of each sentence's first token, for which the last layer has less to do.
        """
        self.check_length(packed)
        layout = layout or ops.layout_of(packed)
        hidden_TD = self.embeddings(packed.token_ids_T, layout)
        *before, last = self.layers
        for layer in before:
            hidden_TD = layer(hidden_TD, layout)
        hidden_TD = last(hidden_TD, layout, first_only=first_only)
        return hidden_TD if first_only else layout.tokens(hidden_TD)


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
        """Return head(h_t), which is multiplied with E: [T, D]."""
        return self.norm(F.gelu(self.transform(hidden_TD)))

    def forward(self, hidden_TD: Tensor, embedding_VD: Tensor) -> Tensor:
        """Return logits_TV."""
        return F.linear(self.features(hidden_TD), embedding_VD, self.bias)


def initialise(module: nn.Module, initializer_range: float, seed: int) -> None:
    """Draw weights from normal(0, initializer_range) and set biases to zero, as BERT's own code does.

    The generator is its own, so that the values do not depend on PyTorch's global random state. Layer norms start as
    PyTorch makes them. Modules without memory (device "meta") are left as they are.
    """
    if next(module.parameters()).is_meta:
        return
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Linear | nn.Embedding):
                part.weight.normal_(0.0, initializer_range, generator=generator)
            if isinstance(part, nn.Linear):
                part.bias.zero_()


@dataclass
class Pretrained:
    """A BERT with all else of the model folder that it was read from, to be written back (see `hub.conversion`).

    model_type: its family, such as "roberta"; by default the first that has such a shape.
    head: state of a `LanguageModelHead`, or None. pooler: weights that are not used here, under their own names.
    raw_config: config.json as it was read.
    ValueError for a shape that no family has: better here than when a trained model is to be saved.
    """

    bert: Bert
    model_type: str = ""
    head: dict[str, Tensor] | None = None
    pooler: dict[str, Tensor] = field(default_factory=dict)
    raw_config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from tsdae.hub.conversion import check_family

        self.model_type = check_family(self.bert, self.model_type)
