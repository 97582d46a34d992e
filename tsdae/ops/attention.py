"""Attention within each sentence of a packed batch, and from every token to its sentence's one vector.

# B sentences, T packed tokens, L padded length, D width, N heads, H head width, X any further axes
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsdae.ops.dropout import mask
from tsdae.ops.heads import join_heads, split_heads
from tsdae.ops.switch import computed_again, is_plain, on_cpu
from tsdae.packing import Layout


def attention(
    hidden_TD: Tensor,
    project: nn.Linear,
    heads: int,
    layout: Layout,
    causal: bool = False,
    dropout: float = 0.0,
    first_only: bool = False,
) -> Tensor:
    """Every token attends to the tokens of its own sentence; with ``causal`` only to itself and those before it.

    project: query, key and value in one product, [3 D, D]. dropout: of the attention weights; 0 in evaluation.
    first_only: of each sentence only what its first token gets.
    Returns context_TD, or context_BD with ``first_only``.
    """
    if is_plain():
        context_TD = plain_attention(hidden_TD, project, heads, layout, causal, dropout)
        return layout.first(context_TD) if first_only else context_TD
    if first_only:
        return _first_attention(hidden_TD, project, heads, layout, dropout)
    query_BNLH, key_BNLH, value_BNLH = split_heads(project(hidden_TD), 3, heads, layout)
    return join_heads(_attend(query_BNLH, key_BNLH, value_BNLH, layout, causal, dropout), layout)


def plain_attention(
    hidden_TD: Tensor, project: nn.Linear, heads: int, layout: Layout, causal: bool, dropout: float
) -> Tensor:
    query, key, value = layout.pad(project(hidden_TD)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    may_attend = layout.earlier_LL if causal else layout.real_BL[:, None, None, :]
    context_BNLH = F.scaled_dot_product_attention(query, key, value, may_attend, dropout)
    return layout.unpad(context_BNLH.transpose(1, 2).flatten(2))


def _first_attention(hidden_TD: Tensor, project: nn.Linear, heads: int, layout: Layout, dropout: float) -> Tensor:
    """Keys and values of all tokens, but one query a sentence."""
    sizes = [hidden_TD.shape[-1], 2 * hidden_TD.shape[-1]]
    (query_DD, key_value_2DD), (query_D, key_value_2D) = (p.split(sizes) for p in project.parameters())
    query_BNH = F.linear(layout.first(hidden_TD), query_DD, query_D).unflatten(-1, (heads, -1))
    key_BNLH, value_BNLH = split_heads(F.linear(hidden_TD, key_value_2DD, key_value_2D), 2, heads, layout)
    return _attend(query_BNH[:, :, None], key_BNLH, value_BNLH, layout, False, dropout).flatten(1)


def _attend(
    query_BNLH: Tensor, key_BNLH: Tensor, value_BNLH: Tensor, layout: Layout, causal: bool, dropout: float
) -> Tensor:
    """Scaled dot-product attention within each sentence of padded tensors. Returns context_BNLH.

    Under a causal mask the padding needs no mask of its own: it stands to the right of every real token, and what
    its own rows compute is dropped.
    """
    if dropout and on_cpu(query_BNLH):
        # PyTorch has no kernel for this case on CPUs; what it falls back to takes nearly twice as long (measured).
        heads = query_BNLH.shape[1]
        parts = (part.flatten(0, 1) for part in (query_BNLH, key_BNLH, value_BNLH))
        bias = layout.causal_bias_LL if causal else layout.padding_bias_BL.repeat_interleave(heads, 0)[:, None]
        largest = 4 * query_BNLH[..., 0].numel() * layout.longest  # the weights, in fp32
        context = computed_again(largest, partial(_attend_with_dropout, bias, layout, dropout), *parts)
        return context.unflatten(0, (layout.batch, heads))
    may_attend = None if causal or layout.is_full else layout.real_BL[:, None, None, :]
    return F.scaled_dot_product_attention(
        query_BNLH, key_BNLH, value_BNLH, attn_mask=may_attend, dropout_p=dropout, is_causal=causal
    )


def _attend_with_dropout(
    bias: Tensor, layout: Layout, dropout: float, query: Tensor, key: Tensor, value: Tensor
) -> Tensor:
    """The same with sentences and heads in one axis; bias: what the mask adds to the scores."""
    score = torch.baddbmm(bias.to(query.dtype), query, key.transpose(1, 2), alpha=query.shape[-1] ** -0.5)
    weight = torch.softmax(score, -1, dtype=torch.promote_types(score.dtype, torch.float32))
    weight = weight * mask(weight, dropout, layout)
    return torch.bmm(weight.to(value.dtype), value)


def one_vector_attention(
    value_BD: Tensor, output: nn.Linear, heads: int, layout: Layout, dropout: float = 0.0
) -> Tensor:
    """Attention of every token to one key with this value: its weight is 1, or 0 where it is dropped. out_TD.

    With dropout each head and token drops the weight by itself; the fast version makes one product per sentence and
    head, and adds up those that are kept:  out_t = sum_n m_tn * (W_output,n v_n) + b_output.
    """
    if not dropout:
        return output(value_BD).index_select(0, layout.sentence_T)
    ones_TN = value_BD.new_ones(layout.rows, heads)
    if is_plain():
        return plain_one_vector_attention(value_BD, output, F.dropout(ones_TN, dropout), layout)
    weight_NHD = output.weight.t().unflatten(0, (heads, -1))
    head_out_BND = torch.einsum("bnh,nhd->bnd", value_BD.unflatten(1, (heads, -1)), weight_NHD)
    kept_BLN = layout.pad(mask(ones_TN.to(head_out_BND.dtype), dropout, layout))
    return layout.unpad(torch.bmm(kept_BLN, head_out_BND)) + output.bias


def plain_one_vector_attention(value_BD: Tensor, output: nn.Linear, weight_TN: Tensor, layout: Layout) -> Tensor:
    value_TNH = value_BD.index_select(0, layout.sentence_T).unflatten(1, (weight_TN.shape[1], -1))
    return output((weight_TN[:, :, None] * value_TNH).flatten(1))
