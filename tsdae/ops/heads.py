"""The way from packed rows to the padded heads that attention works on, and back: rows are picked in both directions.

Kept since it pays beside ``layout.pad(...).unflatten(...).permute(...)``, see benchmarks/details.md.

# B sentences, T packed tokens, L padded length, N heads, H head width, R rows [H] of either tensor
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tsdae.packing import Layout


def split_heads(rows_TX: Tensor, parts: int, heads: int, layout: Layout) -> Tensor:
    """Pads for attention: [T, parts * N * H] to [parts, B, N, L, H].

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
    """The way back, for one part: [B, N, L, H] to [T, N * H]."""
    heads = rows_BNLH.shape[1]
    if layout.is_full:
        return rows_BNLH.transpose(1, 2).reshape(layout.rows, -1)
    rows = _head_rows(1, heads, layout)
    source_RH = rows_BNLH.reshape(len(rows.padded_R), -1)
    return _Moved.apply(source_RH, rows.packed_R, rows.padded_R, rows.is_token_padded_R1).view(layout.rows, -1)


def _head_rows(parts: int, heads: int, layout: Layout) -> _HeadRows:
    """All layers ask for the same, so it is made once a batch."""
    key = f"{parts} parts of {heads} heads"
    if key not in layout.kept:
        device = layout.boundaries.device
        part_P111 = torch.arange(parts, device=device)[:, None, None, None]
        head_N1 = torch.arange(heads, device=device)[:, None]
        token_BL = (layout.boundaries[:-1, None] + torch.arange(layout.longest, device=device)) * layout.real_BL
        packed_PBNL = (token_BL[:, None] * parts + part_P111) * heads + head_N1
        sentence_T11, position_T11 = layout.sentence_T[:, None, None], layout.position_T[:, None, None]
        row_TPN = (part_P111[:, 0, 0] * layout.batch + sentence_T11) * heads + head_N1[:, 0]
        padded_TPN = row_TPN * layout.longest + position_T11
        is_token_T = torch.arange(layout.rows, device=device) < layout.token_count
        layout.kept[key] = _HeadRows(
            packed_PBNL.flatten(),
            padded_TPN.flatten(),
            layout.real_BL[:, None].expand(packed_PBNL.shape).reshape(-1, 1).float(),
            is_token_T[:, None].expand(-1, parts * heads).reshape(-1, 1).float(),
        )
    rows = layout.kept[key]
    assert isinstance(rows, _HeadRows)
    return rows


@dataclass(frozen=True, eq=False)
class _HeadRows:
    """Where the rows [H] of attention's padded tensor [parts, B, N, L, H] stand in the packed one, [T, parts, N, H].

    padded_R: for each row of the padded tensor its number in the packed one, for the padding any.
    packed_R: the other way round. is_token_*: 1 for rows of tokens, 0 for the padding or what fills a layout up.
    """

    padded_R: Tensor
    packed_R: Tensor
    is_token_padded_R1: Tensor
    is_token_packed_R1: Tensor


class _Moved(torch.autograd.Function):
    """Rows of a tensor, picked by number. Backwards they are picked as well, and not added up as `index_select` would:
    no row that counts is picked twice. It takes a quarter of the time.
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
