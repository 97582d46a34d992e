"""Bag-of-words prediction (Ma et al. 2024, arXiv 2401.11248): the vector alone names the words of its sentence.

# B sentences, T packed tokens, V vocabulary
"""

from __future__ import annotations

import torch
from torch import Tensor

from tsdae.autoencoder import TSDAE
from tsdae.losses import Counts, LossSum
from tsdae.ops.common import at_least_fp32
from tsdae.packing import Batch, Layout, Packed


class BagOfWords:
    """TSDAE without a decoder: one softmax a sentence, over the same tied matrix, in place of one a token.

        J = - sum_{distinct tokens x of the clean sentence} log softmax(E . head(s))_x,    s of the noisy sentence

    The first and the last token, [CLS] and [SEP], do not count. A step takes about a third of the time of TSDAE's. The
    article puts this loss in the place of the decoder of a masked auto-encoder; here it is in the place of TSDAE's, so
    words are deleted, not masked.

    Recipe: that of TSDAE. The article reports retrieval after fine-tuning only, no STS-B.
    """

    def __call__(self, model: TSDAE, batch: Batch) -> LossSum:
        sentence_T, token_T = _bag(batch.target)
        logits_BV = model.logits(model.encode(batch.noisy))
        log_BV = at_least_fp32(logits_BV).log_softmax(1)
        log_T = log_BV.flatten().index_select(0, sentence_T * log_BV.shape[1] + token_T)
        return LossSum(-log_T.sum(), len(token_T), "words")

    def counts(self, batch: Batch) -> Counts:
        return {"words": len(_bag(batch.target)[0])}


def _bag(target: Packed[Tensor]) -> tuple[Tensor, Tensor]:
    """Return (sentence, token) of every distinct token of each sentence, the first and the last one aside."""
    layout = Layout.of(target)
    inside_T = (layout.position_T > 0) & (layout.position_T < layout.lengths_B[layout.sentence_T] - 1)
    pairs_T2 = torch.stack([layout.sentence_T, target.token_ids_T], 1)[inside_T]
    sentence_T, token_T = pairs_T2.unique(dim=0).T
    return sentence_T, token_T
