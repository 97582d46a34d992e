"""Greedy decoding: what the decoder writes when it has nothing but a sentence vector.

# B sentences, L tokens of each so far, T = B x L packed tokens, D width, V vocabulary
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from tsdae.packing import Packed
from tsdae.text.tokenization import token_ids

if TYPE_CHECKING:
    from tsdae.autoencoder import TSDAE


@torch.inference_mode()
def greedy(model: TSDAE, sentence_BD: Tensor, max_length: int) -> list[list[int]]:
    """x_t = argmax p(x_t | x_<t, s), from the tokenizer's first special token on, with the model as it is.

    sentence_BD: un-normalised sentence vectors.
    max_length: in tokens, special ones included; at least 2.
    Returns the token ids of each sentence: they end with the closing special token, or there are ``max_length``.

    The prefix is computed again for every token: nothing is cached, so that `TSDAE.decode` is all that is needed.
    """
    (ids,) = token_ids(["a"], model.encoder.tokenizer).sentences()
    first_id, closing_id = ids[0], ids[-model.encoder.vocabulary.tail]
    ids_BL = sentence_BD.new_full((len(sentence_BD), 1), first_id, dtype=torch.int64)
    row_B = torch.arange(len(sentence_BD), device=sentence_BD.device)
    finished: dict[int, list[int]] = {}
    while len(row_B):  # the sentences that have not ended, all of them L tokens long
        hidden_TD = model.decode(_with_one_to_predict(ids_BL), sentence_BD)
        last_BD = hidden_TD.unflatten(0, ids_BL.shape)[:, -1]
        ids_BL = torch.cat([ids_BL, model.logits(last_BD).argmax(1, keepdim=True)], 1)
        ended_B = (ids_BL[:, -1] == closing_id) | (ids_BL.shape[1] >= max_length)
        finished |= zip(row_B[ended_B].tolist(), ids_BL[ended_B].tolist(), strict=True)
        row_B, ids_BL, sentence_BD = row_B[~ended_B], ids_BL[~ended_B], sentence_BD[~ended_B]
    return [finished[row] for row in range(len(finished))]


def _with_one_to_predict(ids_BL: Tensor) -> Packed[Tensor]:
    """The prefixes as targets: with one more token each, which `TSDAE.decode` takes off again unread."""
    longer_BL = F.pad(ids_BL, (0, 1))
    batch, length = longer_BL.shape
    boundaries = torch.arange(0, batch * length + 1, length, device=ids_BL.device)
    return Packed(longer_BL.flatten(), boundaries, length)
