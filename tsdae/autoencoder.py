"""TSDAE: the Transformer-based Sequential Denoising Auto-Encoder (Wang, Reimers, Gurevych 2021, arXiv 2104.06979).

In the order of the paper (section 3):

    x~ = noise(x)                                     `noise`, before the model
    s  = pool(Encoder(x~))                            `TSDAE.encode`
    h_t = Decoder(x_<t, s)                            `TSDAE.decode`
    p(x_t | x_<t, s) = softmax(E . head(h_t))         `TSDAE.logits`, E = the word-embedding matrix
    J = - sum_t log p(x_t | x_<t, s)                  `TSDAE.token_loss`, `TSDAE.reconstruction_loss`

# B sentences, T packed tokens, L tokens of each so far, D hidden size, V vocabulary
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tsdae import ops
from tsdae.bert import Bert, OneVectorAttention, initialise
from tsdae.encoder import SentenceEncoder, evaluating
from tsdae.losses import LossSum
from tsdae.packing import Batch, Packed
from tsdae.text.tokenization import decoded, token_ids
from tsdae.utils.checks import check_range
from tsdae.utils.rng import draws


class TSDAE(nn.Module):
    """Encoder and decoder around one sentence vector s.

    >>> model = TSDAE(SentenceEncoder.from_pretrained("mini"))
    >>> batch = Batch.from_texts(["man guitar"], ["A man plays a guitar."], model.encoder.tokenizer)
    >>> model(batch).counts  # tokens to predict; the loss is .mean
    {'reconstruction': 7}

    encoder: any `SentenceEncoder` in memory; it is what remains after training.
    tie: the decoder runs *the encoder's own layers and embeddings* with a causal mask (the paper's choice); False:
        a copy of them, made here and trained apart.
    decoder_layers: how many of the layers the decoder has, the first ones; None: all.
    decoder_input_noise: share of the tokens x_<t, the first aside, that the decoder reads as the mask token. A decoder
        that sees less of the prefix needs more of s (word dropout: Bowman et al. 2016, section 3.1). The paper: 0.
    seed: draws the new weights (cross-attention; the language-model head where the pretrained weights have none).

    Is it not cheating that the decoder sees the clean prefix x_<t? It could model the language from that alone, but
    every word the prefix does not determine must come through s, and only s reaches it from the source sentence.
    Why has the decoder no padding mask? Because there is no padding: see `packing`.
    """

    def __init__(
        self,
        encoder: SentenceEncoder,
        tie: bool = True,
        decoder_layers: int | None = None,
        seed: int = 0,
        decoder_input_noise: float = 0.0,
    ) -> None:
        super().__init__()
        config = encoder.bert.config
        decoder_layers = config.layers if decoder_layers is None else decoder_layers
        check_range("decoder_layers", decoder_layers, f"[1, {config.layers}]", "the encoder's layers")
        check_range("decoder_input_noise", decoder_input_noise, "[0, 1]")
        if decoder_input_noise and encoder.vocabulary.mask_id is None:
            raise ValueError("decoder_input_noise needs a mask token, and the tokenizer has none")
        self.tie, self.decoder_layers = tie, decoder_layers
        self.decoder_input_noise = decoder_input_noise
        self.encoder = encoder
        self.untied: Bert | None = None  # the decoder's own copy
        if not tie:
            self.untied = copy.deepcopy(encoder.bert)
            del self.untied.layers[self.decoder_layers :]
        # Cross-attention to s: all that the decoder adds to a layer of the encoder.
        self.crosses = nn.ModuleList(OneVectorAttention(config) for _ in range(self.decoder_layers))
        initialise(self.crosses, config.initializer_range, seed)
        self.head = encoder.head(seed + 1)

    @property
    def decoder_bert(self) -> Bert:
        """Return the BERT whose embeddings and layers the decoder runs: the encoder's own, or the untied copy."""
        return self.untied if self.untied is not None else self.encoder.bert

    def encode(self, packed: Packed[Tensor]) -> Tensor:
        """Return s = pool(Encoder(x~)): sentence_BD, not normalised."""
        return self.encoder(packed)

    def decode(self, target: Packed[Tensor], sentence_BD: Tensor) -> Tensor:
        """Return h_t = Decoder(x_<t, s) for every target token but the first.

        target: B clean sentences. sentence_BD: their vectors, all that the decoder learns of the source.
        Returns hidden_TD: row for row with the tokens of ``target.without_first()``, which they have to predict.
        """
        prefix = target.without_last()
        layout = ops.layout_of(prefix)
        bert = self.decoder_bert
        bert.check_length(prefix)
        hidden_TD = bert.embeddings(self._read_by_decoder(prefix), layout)
        for layer, cross in zip(bert.layers, self.crosses, strict=False):  # as many as there are crosses
            hidden_TD = layer(hidden_TD, layout, causal=True, cross=cross, sentence_BD=sentence_BD)
        return layout.tokens(hidden_TD)

    def _read_by_decoder(self, prefix: Packed[Tensor]) -> Tensor:
        """Return x_<t with some tokens masked: never the first of a sentence, and the same ones in each evaluation."""
        ids_T, mask_id = prefix.token_ids_T, self.encoder.vocabulary.mask_id
        if self.decoder_input_noise == 0.0 or mask_id is None:
            return ids_T
        keep_T = draws(len(ids_T), self.training, ids_T.device) >= self.decoder_input_noise
        keep_T[prefix.boundaries[:-1]] = True
        return torch.where(keep_T, ids_T, mask_id)

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Return E . head(h_t): logits_TV, with the decoder's word-embedding matrix as E."""
        return self.head(hidden_TD, self.decoder_bert.embeddings.words.weight)

    def token_loss(self, hidden_TD: Tensor, target_T: Tensor) -> Tensor:
        """Return - log p(x_t | x_<t, s), one number per target token, at least in fp32: loss_T.

        ValueError unless there is one row of hidden_TD for each target.
        """
        if len(hidden_TD) != len(target_T):
            raise ValueError(
                f"token_loss has {len(hidden_TD)} rows of hidden_TD for {len(target_T)} targets; `decode` gives one "
                "for each token of target.without_first()"
            )
        return ops.cross_entropy(hidden_TD, self.head, self.decoder_bert.embeddings.words, target_T)

    def reconstruction_loss(self, target: Packed[Tensor], sentence_BD: Tensor) -> LossSum:
        """Return J = - sum_t log p(x_t | x_<t, s), a sum over the tokens to predict, with their count."""
        hidden_TD = self.decode(target, sentence_BD)
        loss_T = self.token_loss(hidden_TD, target.without_first().token_ids_T)
        return LossSum(loss_T.sum(), len(loss_T))

    def forward(self, batch: Batch) -> LossSum:
        """Return the paper's loss of a batch, J summed over all tokens to predict, as a `LossSum`.

        ``.mean`` is the number to call backward on, ``.terms["reconstruction"]`` its sum and count.
        """
        return self.reconstruction_loss(batch.target, self.encode(batch.noisy))

    def reconstruct(
        self, sentences_or_vectors: Sequence[str] | np.ndarray | Tensor, max_length: int = 75, batch_size: int = 64
    ) -> list[str]:
        """Return what the decoder writes from the sentence vector alone, greedily: the most probable token each time.

        sentences_or_vectors: texts, which are encoded as given (noise them before, if wanted), or an array or tensor
            [B, D] of un-normalised sentence vectors, as `encode` makes them.
        max_length: longest reconstruction in tokens, special ones included; never more than there are positions.
        Returns B texts without special tokens, computed without autocast or dropout.

        With ``decoder_input_noise`` the decoder reads its own words masked as in evaluation. Which ones would depend on
        the batch, so each sentence is then decoded by itself.
        """
        if isinstance(sentences_or_vectors, str):
            raise ValueError("reconstruct takes a list of sentences, not one string")
        check_range("max_length", max_length, "[2, inf)", "the first token and one more")
        check_range("batch_size", batch_size, "[1, inf)")
        config, parameter = self.encoder.bert.config, next(self.parameters())
        vectors = sentences_or_vectors
        if not isinstance(vectors, (np.ndarray, Tensor)):
            vectors = self.encoder.encode(vectors, batch_size, normalize=False)
        if vectors.ndim != 2 or vectors.shape[1] != config.width:
            raise ValueError(
                f"sentence vectors must have the shape [B, {config.width}], got {list(vectors.shape)}; texts are given "
                "as a list"
            )
        sentence_BD = torch.as_tensor(vectors).to(parameter)
        max_length = min(max_length, config.longest_sentence)
        size = 1 if 0.0 < self.decoder_input_noise < 1.0 else batch_size
        with evaluating(self):
            written = [ids for part_BD in sentence_BD.split(size) for ids in greedy(self, part_BD, max_length)]
        return [decoded(ids, self.encoder.tokenizer) for ids in written]

    def save_decoder(self, path: str | Path) -> None:
        """Write all that the encoder's folder does not hold; with it `from_pretrained` restores the pair."""
        state = {name: tensor.contiguous().cpu() for name, tensor in self.state_dict().items()}
        own = {name: tensor for name, tensor in state.items() if not name.startswith("encoder.")}
        shape = {name: getattr(self, name) for name in ("tie", "decoder_layers", "decoder_input_noise")}
        save_file(own, path, {"decoder": json.dumps(shape)})  # one entry: several are written in random order

    @classmethod
    def from_pretrained(cls, run_folder: str | Path) -> TSDAE:
        """Load encoder/ and decoder.safetensors of a run (or of its best/)."""
        from tsdae.utils.files import first_line

        folder = Path(run_folder)
        path = folder / "decoder.safetensors"
        if not path.is_file():
            raise ValueError(f"{folder} is not a run folder: it has no decoder.safetensors")
        encoder = SentenceEncoder.from_pretrained(folder / "encoder")
        try:
            with safe_open(path, framework="pt") as file:
                shape = json.loads(file.metadata()["decoder"])
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        except Exception as error:  # the reader raises its own kinds; all mean that the file cannot be used
            raise ValueError(f"{path} cannot be read as a decoder: {first_line(error)}") from error
        model = cls(encoder, **shape)
        own = {name: tensor.shape for name, tensor in model.state_dict().items() if not name.startswith("encoder.")}
        read = {name: tensor.shape for name, tensor in state.items()}
        differ = [name for name in sorted(own | read) if own.get(name) != read.get(name)]
        if differ:
            raise ValueError(f"{path} does not match {folder / 'encoder'}: {', '.join(differ[:5])}")
        model.load_state_dict(state, strict=False)
        return model.eval()


@torch.inference_mode()
def greedy(model: TSDAE, sentence_BD: Tensor, max_length: int) -> list[list[int]]:
    """Write x_t = argmax p(x_t | x_<t, s), from the tokenizer's first special token on, with the model as it is.

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
    """Return the prefixes as targets: with one more token each, which `TSDAE.decode` takes off again unread."""
    longer_BL = F.pad(ids_BL, (0, 1))
    batch, length = longer_BL.shape
    boundaries = torch.arange(0, batch * length + 1, length, device=ids_BL.device)
    return Packed(longer_BL.flatten(), boundaries, length)
