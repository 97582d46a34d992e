"""RetroMAE (Xiao, Liu, Shao, Cao 2022, EMNLP): masked tokens, and a decoder of one layer, half of its input hidden.

# B sentences, T packed tokens, L padded length, D hidden size, N heads, H head width, C chosen tokens
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsdae import ops
from tsdae.autoencoder import TSDAE
from tsdae.bert import Layer, initialise
from tsdae.encoder import pool
from tsdae.losses import Counts, LossSum
from tsdae.objectives.mlm import MaskedLanguageModel
from tsdae.packing import Batch, Layout
from tsdae.utils.rng import draws


class RetroMAE(nn.Module):
    """J = J_mlm(30 % masked) + J_decoder,    J_decoder = - sum_t log p(x_t | s, the part of x that position t sees)

    Enhanced decoding (section 3.3): the query of position t is s + p_t, keys and values are s and the embedded tokens;
    every position draws the tokens that it sees, each with probability 1 - ``hidden``, never itself, always s. So all
    tokens are predicted in one pass of one layer, and each by another part of the sentence.
    The masked sentence gives s; the decoder has a layer of its own and shares embeddings and head.

    Recipe: 1e-4, CLS; batch 64, where the authors' guide has 32 on each GPU. They report retrieval, no STS-B.
    """

    def __init__(self, model: TSDAE, masked: float = 0.3, hidden: float = 0.5) -> None:
        super().__init__()
        config = model.encoder.bert.config
        self.mlm, self.hidden = MaskedLanguageModel(masked), hidden
        self.layer = Layer(config)
        initialise(self.layer, config.initializer_range, torch.initial_seed())

    def forward(self, model: TSDAE, batch: Batch) -> LossSum:
        clean = batch.target
        masked, chosen_C = self.mlm.noised(clean, model.encoder.vocabulary, model.training)
        hidden_TD = model.encoder.bert(masked)
        layout = ops.layout_of(clean)
        decoded_TD = self._decode(model, clean.token_ids_T, pool(hidden_TD, layout, model.encoder.pooling), layout)
        inner_T = (layout.position_T > 0).nonzero()[:, 0]  # the first token, [CLS], is given
        loss_T = model.token_loss(decoded_TD.index_select(0, inner_T), clean.token_ids_T.index_select(0, inner_T))
        return self.mlm.loss(model, hidden_TD, clean, chosen_C) + LossSum(loss_T.sum(), len(loss_T), "decoder")

    def counts(self, batch: Batch) -> Counts:
        return {**self.mlm.counts(batch), "decoder": batch.reconstructed}

    def _decode(self, model: TSDAE, ids_T: Tensor, sentence_BD: Tensor, layout: Layout) -> Tensor:
        """Return hidden_TD of the one decoder layer. In a sentence of L tokens, [L, L] is query by key."""
        attention, embeddings = self.layer.attention, model.encoder.bert.embeddings
        position_TD = embeddings.positions(layout.position_T + embeddings.position_offset)
        query_BLD = layout.pad(sentence_BD.index_select(0, layout.sentence_T) + position_TD)
        key_BLD = torch.cat([sentence_BD[:, None], layout.pad(embeddings(ids_T, layout))[:, 1:]], 1)  # s is the first
        seen_BLL = draws(layout.batch * layout.longest**2, self.training, ids_T.device) >= self.hidden
        seen_BLL = seen_BLL.view(layout.batch, layout.longest, layout.longest) & layout.real_BL[:, None]
        seen_BLL &= ~torch.eye(layout.longest, dtype=torch.bool, device=ids_T.device)
        seen_BLL[:, :, 0] = True
        matrices, biases = attention.project.weight.chunk(3), attention.project.bias.chunk(3)
        query, key, value = (
            F.linear(read, matrix, bias).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
            for read, matrix, bias in zip((query_BLD, key_BLD, key_BLD), matrices, biases, strict=True)
        )
        context_BNLH = F.scaled_dot_product_attention(query, key, value, seen_BLL[:, None])
        context_TD = layout.unpad(context_BNLH.transpose(1, 2).flatten(2))
        hidden_TD = attention.norm(layout.unpad(query_BLD) + attention.dropout(attention.output(context_TD), layout))
        return self.layer.feed_forward(hidden_TD, layout)
