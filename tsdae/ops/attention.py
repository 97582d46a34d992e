"""Attention within each sentence of a packed batch, and from every token to its sentence's one vector.

# B sentences, T packed tokens, L padded length, D hidden size, N heads, H head width, R rows [H] of many heads
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from tsdae.ops.common import computed_again, is_plain, on_cpu
from tsdae.ops.dropout import dropout_mask
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
    """Let every token attend to the tokens of its own sentence; with ``causal`` only to itself and those before it.

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
    """Do what `attention` says in PyTorch's own operations: pad, attend, drop the padding. Returns context_TD."""
    query, key, value = layout.pad(project(hidden_TD)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    may_attend = layout.earlier_LL if causal else layout.real_BL[:, None, None, :]
    context_BNLH = F.scaled_dot_product_attention(query, key, value, may_attend, dropout)
    return layout.unpad(context_BNLH.transpose(1, 2).flatten(2))


def _first_attention(hidden_TD: Tensor, project: nn.Linear, heads: int, layout: Layout, dropout: float) -> Tensor:
    """Compute keys and values of all tokens, but one query a sentence: context_BD."""
    sizes = [hidden_TD.shape[-1], 2 * hidden_TD.shape[-1]]
    (query_DD, key_value_2DD), (query_D, key_value_2D) = (p.split(sizes) for p in project.parameters())
    query_BNH = F.linear(layout.first(hidden_TD), query_DD, query_D).unflatten(-1, (heads, -1))
    key_BNLH, value_BNLH = split_heads(F.linear(hidden_TD, key_value_2DD, key_value_2D), 2, heads, layout)
    return _attend(query_BNH[:, :, None], key_BNLH, value_BNLH, layout, False, dropout).flatten(1)


def _attend(
    query_BNLH: Tensor, key_BNLH: Tensor, value_BNLH: Tensor, layout: Layout, causal: bool, dropout: float
) -> Tensor:
    """Return scaled dot-product attention within each sentence of padded tensors: context_BNLH.

    Under a causal mask the padding needs no mask of its own: it comes after every real token, and what its own rows
    compute is dropped.
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
    """Return the same with sentences and heads in one axis. bias: what the mask adds to the scores."""
    score = torch.baddbmm(bias.to(query.dtype), query, key.transpose(1, 2), alpha=query.shape[-1] ** -0.5)
    weight = torch.softmax(score, -1, dtype=torch.promote_types(score.dtype, torch.float32))
    weight = weight * dropout_mask(weight, dropout, layout)
    return torch.bmm(weight.to(value.dtype), value)


def one_vector_attention(
    value_BD: Tensor, output: nn.Linear, heads: int, layout: Layout, dropout: float = 0.0
) -> Tensor:
    """Let every token attend to one key with this value, by a weight of 1, or 0 where it is dropped: out_TD.

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
    kept_BLN = layout.pad(dropout_mask(ones_TN.to(head_out_BND.dtype), dropout, layout))
    return layout.unpad(torch.bmm(kept_BLN, head_out_BND)) + output.bias


def plain_one_vector_attention(value_BD: Tensor, output: nn.Linear, weight_TN: Tensor, layout: Layout) -> Tensor:
    """Return output(w_tn * v_n): each token's copy of its sentence's value, a head's part weighted by weight_TN."""
    value_TNH = value_BD.index_select(0, layout.sentence_T).unflatten(1, (weight_TN.shape[1], -1))
    return output((weight_TN[:, :, None] * value_TNH).flatten(1))


# ---------------------------------------------------------------------------------------------------------------
# The way from packed rows to padded heads and back: rows are picked in both directions, forward and backward.


def split_heads(rows_TX: Tensor, parts: int, heads: int, layout: Layout) -> Tensor:
    """Return [T, parts * N * H] padded for attention, as [parts, B, N, L, H].

    The padding holds finite numbers, whichever, and takes no gradient.
    """
    if layout.is_full:
        return rows_TX.view(layout.batch, layout.longest, parts, heads, -1).permute(2, 0, 3, 1, 4)
    rows = _head_rows(parts, heads, layout)
    source_RH = rows_TX.reshape(len(rows.packed_R), -1)
    is_token_R1 = rows.is_token_packed_R1 if layout.rows > layout.token_count else None
    padded_RH = _Moved.apply(source_RH, rows.padded_R, rows.packed_R, is_token_R1)
    return padded_RH.view(parts, layout.batch, heads, layout.longest, -1)


def join_heads(rows_BNLH: Tensor, layout: Layout) -> Tensor:
    """Return one part, [B, N, L, H], packed again as [T, N * H]."""
    heads = rows_BNLH.shape[1]
    if layout.is_full:
        return rows_BNLH.transpose(1, 2).reshape(layout.rows, -1)
    rows = _head_rows(1, heads, layout)
    source_RH = rows_BNLH.reshape(len(rows.padded_R), -1)
    return _Moved.apply(source_RH, rows.packed_R, rows.padded_R, rows.is_token_padded_R1).view(layout.rows, -1)


def _head_rows(parts: int, heads: int, layout: Layout) -> _HeadRows:
    """Return the row numbers, made once a batch for all layers."""
    key = f"{parts} parts of {heads} heads"
    if key not in layout.cache:
        device = layout.boundaries.device
        part_P111 = torch.arange(parts, device=device)[:, None, None, None]
        head_N1 = torch.arange(heads, device=device)[:, None]
        token_BL = (layout.boundaries[:-1, None] + torch.arange(layout.longest, device=device)) * layout.real_BL
        packed_PBNL = (token_BL[:, None] * parts + part_P111) * heads + head_N1
        sentence_T11, position_T11 = layout.sentence_T[:, None, None], layout.position_T[:, None, None]
        row_TPN = (part_P111[:, 0, 0] * layout.batch + sentence_T11) * heads + head_N1[:, 0]
        padded_TPN = row_TPN * layout.longest + position_T11
        is_token_T = torch.arange(layout.rows, device=device) < layout.token_count
        layout.cache[key] = _HeadRows(
            packed_PBNL.flatten(),
            padded_TPN.flatten(),
            layout.real_BL[:, None].expand(packed_PBNL.shape).reshape(-1, 1).float(),
            is_token_T[:, None].expand(-1, parts * heads).reshape(-1, 1).float(),
        )
    rows: _HeadRows = layout.cache[key]
    return rows


@dataclass(frozen=True, eq=False)
class _HeadRows:
    """Row numbers between attention's padded tensor [parts, B, N, L, H] and the packed one, [T, parts, N, H], rows [H].

    padded_R: for each row of the padded tensor its number in the packed one, for the padding any.
    packed_R: the other way round. is_token_*: 1 for rows of tokens, 0 for the padding or for spare rows.
    """

    padded_R: Tensor
    packed_R: Tensor
    is_token_padded_R1: Tensor
    is_token_packed_R1: Tensor


class _Moved(torch.autograd.Function):
    """Rows picked by number, ``there_R``. Backward picks as well, by ``back_R``, and adds nothing up as `index_select`
    would: no row that counts is picked twice. It takes a quarter of the time.
    """

    @staticmethod
    def forward(ctx: Any, rows_RH: Tensor, there_R: Tensor, back_R: Tensor, counts_R1: Tensor | None) -> Tensor:
        ctx.back_R, ctx.counts_R1 = back_R, counts_R1
        return rows_RH.index_select(0, there_R)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RH: Tensor) -> tuple[Tensor | None, ...]:
        moved_RH = grad_RH.index_select(0, ctx.back_R)
        if ctx.counts_R1 is not None:
            moved_RH *= ctx.counts_R1.to(moved_RH.dtype)
        return moved_RH, None, None, None
