"""Masked-language modelling, BERT's own objective and the paper's main baseline; and its sum with TSDAE's.

# B sentences, T packed tokens, C chosen tokens, D hidden size
"""

from __future__ import annotations

import torch
from torch import Tensor

from tsdae.autoencoder import TSDAE
from tsdae.losses import Counts, LossSum
from tsdae.packing import Batch, Layout, Packed
from tsdae.text.tokenization import Vocabulary
from tsdae.utils.checks import check_range
from tsdae.utils.rng import draws

MASKED, RANDOM = 0.8, 0.1  # of the chosen tokens; the rest stays (Devlin et al. 2019, section 3.1)


class MaskedLanguageModel:
    """BERT's own objective, the paper's main baseline: - sum_t log p(x_t | x~) over the chosen tokens x_t.

    Of a sentence's L tokens round(ratio x L) are chosen, at least one and never its special tokens; of the chosen, 80 %
    become the mask token, 10 % a random one and 10 % stay (Devlin et al. 2019, section 3.1). It reads the clean
    sentences: the batch's own noise and the decoder have no part in it, but for the head, which is tied to E.

    Recipe: that of TSDAE, mean, since no term reads the [CLS] vector. STS-B test of bert-base, which was so trained, by
    SimCSE's table: mean 47.29, CLS 20.30.

    ratio: share of tokens to predict, in (0, 1]; BERT's 0.15.
    """

    def __init__(self, ratio: float = 0.15) -> None:
        check_range("ratio", ratio, "(0, 1]", "0.15 predicts 15 % of the tokens")
        self.ratio = ratio

    def __call__(self, model: TSDAE, batch: Batch) -> LossSum:
        if not model.tie:
            raise ValueError(
                "masked-language modelling needs a tied model: it predicts with the encoder's word embeddings"
            )
        noisy, chosen_C = self.noised(batch.target, model.encoder.vocabulary, model.training)
        hidden_TD = model.encoder.bert(noisy)
        return self.loss(model, hidden_TD, batch.target, chosen_C)

    def loss(self, model: TSDAE, hidden_TD: Tensor, clean: Packed[Tensor], chosen_C: Tensor) -> LossSum:
        """Return - sum_t log p(x_t | x~) over the chosen tokens, from what the encoder made of the masked sentences."""
        loss_C = model.token_loss(hidden_TD.index_select(0, chosen_C), clean.token_ids_T.index_select(0, chosen_C))
        return LossSum(loss_C.sum(), len(loss_C), "mlm")

    def counts(self, batch: Batch) -> Counts:
        return {"mlm": int(self._chosen_B(batch.target).sum())}

    def noised(self, clean: Packed[Tensor], vocabulary: Vocabulary, training: bool) -> tuple[Packed[Tensor], Tensor]:
        """Return the sentences as the encoder reads them, and the rows of their chosen tokens, [C]."""
        if vocabulary.mask_id is None:
            raise ValueError("masked-language modelling needs a mask token, and the tokenizer has none")
        ids_T, device = clean.token_ids_T, clean.token_ids_T.device
        layout = Layout.of(clean)
        # Of each token: its place in the order of choice, what it becomes if chosen, and by which random token.
        place_T, fate_T, random_T = draws(3 * len(ids_T), training, device).view(3, -1)
        first_B, last_B = clean.boundaries[:-1], clean.boundaries[1:] - 1
        front, tail = range(vocabulary.front), range(vocabulary.tail)
        for special_B in (*(first_B + k for k in front), *(last_B - k for k in tail)):
            place_T[special_B] += 1.0  # after all that may be chosen
        order_T = place_T.argsort()
        order_T = order_T[layout.sentence_T[order_T].argsort(stable=True)]  # sentence by sentence, by place
        chosen_C = order_T[layout.position_T < self._chosen_B(clean)[layout.sentence_T]]  # the first of each sentence
        ordinary = torch.as_tensor(vocabulary.ordinary_ids, device=device)
        random_C = ordinary[(random_T[chosen_C] * len(ordinary)).long()]
        fate_C, clean_C = fate_T[chosen_C], ids_T[chosen_C]
        read_C = torch.where(fate_C < MASKED, vocabulary.mask_id, clean_C)
        read_C = torch.where(fate_C >= 1.0 - RANDOM, random_C, read_C)
        return Packed(ids_T.index_copy(0, chosen_C, read_C), clean.boundaries, clean.longest), chosen_C

    def _chosen_B(self, clean: Packed[Tensor]) -> Tensor:
        """Return how many tokens of each sentence are chosen."""
        lengths_B = clean.lengths_B
        return torch.minimum((self.ratio * lengths_B).round().long().clamp(min=1), lengths_B - 2)


class TSDAEAndMLM:
    """J of the paper, and that of masked-language modelling on the clean sentences, weighed alike.

    Recipe: that of TSDAE. No published score.
    """

    def __init__(self, ratio: float = 0.15) -> None:
        self.mlm = MaskedLanguageModel(ratio)

    def __call__(self, model: TSDAE, batch: Batch) -> LossSum:
        return model(batch) + self.mlm(model, batch)

    def counts(self, batch: Batch) -> Counts:
        return {"reconstruction": batch.reconstructed, **self.mlm.counts(batch)}
