"""What is minimised. An objective is a function ``(model, batch) -> LossSum``; change the loss here.

# B sentences, T packed tokens
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from tsdae.losses import Counts, LossSum
from tsdae.packing import Batch, Layout, Packed
from tsdae.text.tokenization import Vocabulary
from tsdae.utils.progress import print_note
from tsdae.utils.rng import draws

if TYPE_CHECKING:
    from tsdae.autoencoder import TSDAE
    from tsdae.encoder import SentenceEncoder

MASKED, RANDOM = 0.8, 0.1  # of the chosen tokens; the rest stays (Devlin et al. 2019, section 3.1)


Objective = Callable[["TSDAE", Batch], LossSum]


def tsdae(model: TSDAE, batch: Batch) -> LossSum:
    """The paper's objective: - sum_t log p(x_t | x_<t, s), over the tokens of the clean sentences (`TSDAE.forward`)."""
    return model(batch)


def _reconstruction(model: TSDAE, batch: Batch, sentence_BD: Tensor) -> LossSum:
    hidden_TD = model.decode(batch.target, sentence_BD)
    loss_T = model.token_loss(hidden_TD, batch.target.without_first().token_ids_T)
    return LossSum(loss_T.sum(), len(loss_T))


def _tsdae_counts(batch: Batch) -> Counts:
    return {"reconstruction": batch.target.token_count - len(batch.target)}


# An objective whose counts follow from the batch says so before forward; needed where a step has several batches.
tsdae.counts = _tsdae_counts  # type: ignore[attr-defined]  # functions carry attributes, their type does not


class HoldingOn:
    """The paper's objective, and a term that holds on to a finished sentence model, with which training began:

        J + weight x mean over pairs i != j of a batch of (cos(s_i, s_j) - cos(s0_i, s0_j))^2

    s0 is the vector that the model at the start gave the same noisy sentence. What alike sentences are is kept (as in
    similarity-preserving distillation: Tung and Mori 2019, section 3), not the vectors themselves: they may turn, be of
    another pooling, and serve the decoder.

    start: that model, read by its own pooling, the one with which it was good; it is not trained.
    weight: of the term, above 0. A batch of one sentence has no pairs and no such term.
    """

    def __init__(self, start: SentenceEncoder, weight: float) -> None:
        self.start = start.eval().requires_grad_(False)
        self.weight = weight

    def __call__(self, model: TSDAE, batch: Batch) -> LossSum:
        sentence_BD = model.encode(batch.noisy)
        loss = _reconstruction(model, batch, sentence_BD)
        if len(batch.target) == 1:
            return loss
        with torch.no_grad():
            start_BD = self.start.to(sentence_BD.device)(batch.noisy)
        difference_BB = _cosines(sentence_BD) - _cosines(start_BD)  # 0 on the diagonal
        held = LossSum(difference_BB.square().sum(), difference_BB.numel() - len(difference_BB), "holding_on")
        return loss + self.weight * held

    def counts(self, batch: Batch) -> Counts:
        size = len(batch.target)
        return {**_tsdae_counts(batch), **({"holding_on": size * (size - 1)} if size > 1 else {})}


def _cosines(sentence_BD: Tensor) -> Tensor:
    unit_BD = F.normalize(sentence_BD, dim=1)
    with torch.autocast(unit_BD.device.type, enabled=False):  # two similarities may differ by less than bf16 shows
        return unit_BD @ unit_BD.T


class MaskedLanguageModel:
    """BERT's own objective, the paper's main baseline: - sum_t log p(x_t | x~) over the chosen tokens x_t.

    Of a sentence's L tokens round(ratio x L) are chosen, at least one and never its special tokens; of the chosen, 80 %
    become the mask token, 10 % a random one and 10 % stay (Devlin et al. 2019, section 3.1). It reads the clean
    sentences: the batch's own noise and the decoder have no part in it, but for the head, which is tied to E.

    ratio: share of tokens to predict, in (0, 1]; the paper's 0.15.
    """

    def __init__(self, ratio: float = 0.15) -> None:
        if not 0.0 < ratio <= 1.0:
            raise ValueError(f"--mlm-ratio must lie in (0, 1], got {ratio}: 0.15 predicts 15 % of the tokens")
        self.ratio = ratio

    def __call__(self, model: TSDAE, batch: Batch) -> LossSum:
        if not model.tie:
            raise ValueError("masked-language modelling predicts by the encoder's words; an untied decoder has its own")
        noisy, chosen_C = self.noised(batch.target, model.encoder.vocabulary, model.training)
        hidden_CD = model.encoder.bert(noisy).index_select(0, chosen_C)
        loss_C = model.token_loss(hidden_CD, batch.target.token_ids_T.index_select(0, chosen_C))
        return LossSum(loss_C.sum(), len(loss_C), "mlm")

    def counts(self, batch: Batch) -> Counts:
        return {"mlm": int(self._chosen_B(batch.target).sum())}

    def noised(self, clean: Packed[Tensor], vocabulary: Vocabulary, training: bool) -> tuple[Packed[Tensor], Tensor]:
        """The sentences as the encoder reads them, and which of their tokens were chosen: their rows, [C]."""
        if vocabulary.mask_id is None:
            raise ValueError("masked-language modelling needs a mask token, and the tokenizer has none")
        ids_T, device = clean.token_ids_T, clean.token_ids_T.device
        layout = Layout(clean.boundaries, clean.token_count, clean.longest)
        place_T, fate_T, other_T = draws(3 * len(ids_T), training, device).view(3, -1)
        for special_B in (clean.boundaries[:-1], *(clean.boundaries[1:] - 1 - k for k in range(vocabulary.tail))):
            place_T[special_B] += 1.0  # comes after all that may be chosen
        order_T = place_T.argsort()
        order_T = order_T[layout.sentence_T[order_T].argsort(stable=True)]  # sentence by sentence, by their draws
        chosen_C = order_T[layout.position_T < self._chosen_B(clean)[layout.sentence_T]]
        ordinary = torch.as_tensor(vocabulary.ordinary_ids, device=device)
        random_C = ordinary[(other_T[chosen_C] * len(ordinary)).long()]
        fate_C, clean_C = fate_T[chosen_C], ids_T[chosen_C]
        read_C = torch.where(fate_C < MASKED, vocabulary.mask_id, clean_C)
        read_C = torch.where(fate_C >= 1.0 - RANDOM, random_C, read_C)
        return Packed(ids_T.index_copy(0, chosen_C, read_C), clean.boundaries, clean.longest), chosen_C

    def _chosen_B(self, clean: Packed[Tensor]) -> Tensor:
        lengths_B = clean.lengths_B
        return torch.minimum((self.ratio * lengths_B).round().long().clamp(min=1), lengths_B - 2)


def views_of(objective: Objective) -> int:
    """How many noisings of each sentence it reads: its attribute ``views``, else one."""
    views: int = getattr(objective, "views", 1)
    return views


def try_out(objective: Objective, model: TSDAE, batch: Batch) -> LossSum:
    """The loss of one batch, after which no gradient is left; ValueError if it cannot be trained on.

    It must be a `LossSum` whose gradient reaches the encoder, and the objective's ``counts``, if it has any, must be
    those of the loss. A module is tried as a copy: it may keep a queue, or count its calls. A note says if the sentence
    vectors get no gradient: under tying the decoder's own reaches the encoder all the same.
    """
    vectors: list[Tensor] = []
    hook = model.encoder.register_forward_hook(lambda module, read, vector_BD: vectors.append(vector_BD))
    try:
        loss = check_loss(copy.deepcopy(objective)(model, batch))
    finally:
        hook.remove()
    for vector_BD in vectors:
        if vector_BD.requires_grad:
            vector_BD.retain_grad()
    total = loss.mean
    if total.requires_grad:
        total.backward()
    if vectors and all(vector_BD.grad is None for vector_BD in vectors):
        print_note(
            "the objective gives no gradient to the vectors of model.encode: is one of them detached on purpose?"
        )
    reached = [parameter for parameter in model.encoder.parameters() if parameter.grad is not None]
    model.zero_grad()
    if not reached:
        raise ValueError(
            "the objective's loss has no gradient for the encoder: something was detached, computed without gradients, "
            "or does not depend on model.encode"
        )
    counted = getattr(objective, "counts", lambda batch: loss.counts)(batch)
    if dict(counted) != loss.counts:
        raise ValueError(f"the objective's counts(batch) says {dict(counted)}, its loss was divided by {loss.counts}")
    return loss


def check_loss(loss: object) -> LossSum:
    """What an objective has returned; ValueError if it is no LossSum."""
    if not isinstance(loss, LossSum):
        raise ValueError(f"the objective must return a LossSum, it returned {type(loss).__name__}")
    return loss


def check_counts(objective: Objective, batches: int) -> None:
    """ValueError if a step of so many batches cannot be normalised by this objective."""
    if batches > 1 and not hasattr(objective, "counts"):
        raise ValueError(
            "with --accumulate above 1, or several processes, an objective needs a function "
            "`counts(batch) -> {term: count}` as its attribute: what a step is divided by must be known before its "
            "first backward"
        )


def step_counts(objective: Objective, batches: list[Batch]) -> Counts | None:
    """The counts of a whole step. None: one batch only, whose own counts are the step's."""
    check_counts(objective, len(batches))
    counts_of = getattr(objective, "counts", None)
    if counts_of is None:
        return None
    totals: dict[str, int] = {}
    for batch in batches:
        for name, count in counts_of(batch).items():
            totals[name] = totals.get(name, 0) + count
    return totals
