"""The sentence encoder: tokenizer, BERT and pooling; what remains when the decoder is thrown away.

# B sentences, T packed tokens, L padded length, D hidden size
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tsdae import ops
from tsdae.bert import Bert, LanguageModelHead, Pretrained
from tsdae.packing import Layout, Packed, ranges
from tsdae.text.tokenization import texts_of, token_ids, vocabulary_of
from tsdae.utils.checks import check_range

# Files that load, save and show progress are imported where they are called: an encoder that is only used needs none.
POOLINGS = ("cls", "mean", "max")


def pool(hidden_TD: Tensor, layout: Layout, pooling: str) -> Tensor:
    """Return one vector a sentence, sentence_BD: the [CLS] row, or mean or maximum over all its tokens.

    The paper compares all three and takes [CLS] (section 3).
    """
    if pooling == "cls":
        return layout.first(hidden_TD)
    hidden_BLD = layout.pad(hidden_TD)
    if pooling == "mean":
        return hidden_BLD.sum(1) / layout.lengths_B[:, None]
    return hidden_BLD.masked_fill(~layout.real_BL[:, :, None], float("-inf")).max(1).values


class SentenceEncoder(nn.Module):
    """s = pool(Encoder(x)), s in R^D (paper, section 3).

    >>> encoder = SentenceEncoder.from_pretrained("mini")
    >>> encoder.encode(["A man plays a guitar.", "Dogs run."]).shape
    (2, 256)

    bert: a `Bert`, or a `Pretrained` that holds one.
    tokenizer: a Hugging Face tokenizer, fast or slow, whose ids fit the word-embedding table.
    pooling: "cls" (the paper's choice), "mean" or "max".
    max_length: longest sentence in tokens, special ones included; None: as many as there are positions.
    normalize: whether `encode` scales vectors to length 1. `forward` never does: the decoder gets the plain vector.
    """

    def __init__(
        self,
        bert: Bert | Pretrained,
        tokenizer: Any,
        pooling: str = "cls",
        max_length: int | None = None,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
        self.pretrained = bert if isinstance(bert, Pretrained) else Pretrained(bert)
        self.bert = self.pretrained.bert
        config = self.bert.config
        self.vocabulary = vocabulary_of(tokenizer)  # refuses a tokenizer that adds no special tokens
        if self.vocabulary.size > config.vocabulary_size:
            raise ValueError(
                f"the tokenizer has ids up to {self.vocabulary.size - 1}, "
                f"the model has {config.vocabulary_size} word embeddings"
            )
        self.tokenizer, self.pooling, self.normalize = tokenizer, pooling, normalize
        longest = config.longest_sentence
        self.max_length = longest if max_length is None else max_length
        check_range("max_length", self.max_length, f"[3, {longest}]", f"the model has {longest} positions")
        # Settings of sentence-transformers that nothing here uses, to be written back by `save_pretrained`.
        self.include_prompt = True
        self.described: dict[str, Any] = {}  # config_sentence_transformers.json: prompts, similarity

    def forward(self, packed: Packed[Tensor]) -> Tensor:
        """Return sentence_BD, not normalised, of B sentences as token ids."""
        layout = ops.layout_of(packed)
        if self.pooling == "cls":
            return self.bert(packed, layout, first_only=True)
        return pool(self.bert(packed, layout), layout, self.pooling)

    def encode(
        self,
        sentences: Iterable[str],
        batch_size: int = 64,
        normalize: bool | None = None,
        show_progress: bool = False,
    ) -> np.ndarray:
        """Return the vectors of sentences, float32 [B, D], in the order given; without autocast or dropout.

        batch_size: sentences at a time. normalize: to length 1; None: what the folder says.
        Longer sentences are cut to ``max_length`` tokens. ValueError if ``sentences`` is one string, and for the first
        sentence whose vector is not finite.
        """
        from tsdae.utils.progress import progress_bar

        sentences = texts_of(sentences)
        check_range("batch_size", batch_size, "[1, inf)")
        vectors = np.empty((len(sentences), self.bert.config.width), dtype=np.float32)
        if len(sentences) == 0:
            return vectors
        normalize = self.normalize if normalize is None else normalize
        tokens = token_ids(sentences, self.tokenizer, self.max_length)
        device = next(self.parameters()).device
        longest_first = np.argsort(-tokens.lengths_B, kind="stable")  # batches of like length need little padding
        with evaluating(self), progress_bar(len(tokens), "encoding", " sentences", show_progress) as bar:
            for start in range(0, len(tokens), batch_size):
                rows_B = longest_first[start : start + batch_size]
                lengths_B = tokens.lengths_B[rows_B]
                ids_T = tokens.token_ids_T[ranges(tokens.boundaries[rows_B], lengths_B)]
                sentence_BD = self(Packed.from_lengths(ids_T, lengths_B).to(device)).float()
                if normalize:
                    sentence_BD = F.normalize(sentence_BD, dim=1)
                vectors[rows_B] = sentence_BD.cpu().numpy()
                bar.update(len(rows_B))
        check_finite(vectors, sentences)
        return vectors

    def head(self, seed: int = 0) -> LanguageModelHead:
        """Return the language-model head of the pretrained weights, or a new one drawn from ``seed``."""
        head = LanguageModelHead(self.bert.config, seed)
        if self.pretrained.head is not None:
            head.load_state_dict(self.pretrained.head)
        return head

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, pooling: str | None = None, max_length: int | None = None
    ) -> SentenceEncoder:
        """Load "mini", a folder (Hugging Face or sentence-transformers layout) or a model of the hub.

        pooling: "cls", "mean" or "max"; None: the folder's, else "cls".
        max_length: longest sentence in tokens; None: the folder's, else as many as there are positions.
        Returns it in evaluation mode, as transformers does; `train` switches by itself.
        ValueError if the folder cannot be read; UnsupportedArchitecture (a ValueError) if the model is no BERT.
        """
        from tsdae.hub.conversion import read_pretrained
        from tsdae.hub.model_folder import load_tokenizer, model_folder, read_sentence_settings

        folder = model_folder(name_or_path)
        settings = read_sentence_settings(folder)
        pretrained = read_pretrained(folder / settings.model_folder)
        allowed = pretrained.bert.config.longest_sentence
        tokenizer = load_tokenizer(folder / settings.model_folder, settings.lowercase)
        stored = int(min(settings.max_length or tokenizer.model_max_length, allowed))
        try:
            encoder = cls(
                pretrained,
                tokenizer,
                pooling or settings.pooling or "cls",
                stored if max_length is None else max_length,
                settings.normalize,
            )
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error
        encoder.include_prompt, encoder.described = settings.include_prompt, settings.described
        return encoder.eval()

    def check_savable(self) -> None:
        """Raise ValueError for a class of one's own whose pooling or weights a model folder has no place for."""
        kind = type(self)
        own = [name for name in ("forward", "encode") if getattr(kind, name) is not getattr(SentenceEncoder, name)]
        own += [name for name in self.state_dict() if not name.startswith("bert.")]
        if own and kind.save_pretrained is SentenceEncoder.save_pretrained:
            raise ValueError(
                f"{kind.__name__} defines its own {', '.join(own[:3])}, which a model folder cannot store: it would be "
                f"read as {self.pooling} pooling; define save_pretrained too, or save the state_dict"
            )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a folder that `from_pretrained`, SentenceTransformer and AutoModel load alike.

        ValueError for a class of one's own that such a folder cannot hold (see `check_savable`).
        """
        from tsdae.hub.conversion import write_pretrained
        from tsdae.hub.model_folder import SentenceSettings, lowers_text, write_sentence_settings

        self.check_savable()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_pretrained(folder, self.pretrained)
        self.tokenizer.save_pretrained(str(folder))
        lowercase = lowers_text(self.tokenizer)
        read_back = (self.pooling, self.normalize, self.max_length, lowercase, self.include_prompt, self.described)
        write_sentence_settings(folder, self.bert.config.width, SentenceSettings(*read_back))

    def add_tokens(self, words: Iterable[str]) -> list[str]:
        """Add words of a domain to tokenizer and vocabulary, before a `TSDAE` is built; return those that are new.

        The embedding of a new word is the mean of those of its old pieces, and so is its bias in the head.
        See `added_tokens.add_words` for which are new, and for errors.
        """
        from tsdae.text.added_tokens import add_words

        pieces = add_words(self.tokenizer, texts_of(words, "words"))
        self.vocabulary = vocabulary_of(self.tokenizer)
        if pieces:
            rows = {self.tokenizer.convert_tokens_to_ids(word): ids for word, ids in pieces.items()}
            self.bert.set_word_embeddings(_extended(self.bert.embeddings.words.weight, self.vocabulary.size, rows))
            if self.pretrained.head is not None:
                bias_V = _extended(self.pretrained.head["bias"], self.vocabulary.size, rows)
                self.pretrained.head = self.pretrained.head | {"bias": bias_V}
        return list(pieces)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Compute without dropout, gradients or autocast in this context; leave the module's mode as it was."""
    was_training = module.training
    module.eval()
    try:
        with torch.inference_mode(), torch.autocast(next(module.parameters()).device.type, enabled=False):
            yield
    finally:
        module.train(was_training)


def check_finite(vectors_BD: np.ndarray, sentences: Sequence[str]) -> None:
    """Raise ValueError, with its sentence, for the first vector that holds NaN or infinity."""
    wrong_B = ~np.isfinite(vectors_BD).all(1)
    if wrong_B.any():
        row = int(wrong_B.argmax())
        raise ValueError(
            f"the vector of sentence {row} is not finite ({wrong_B.sum()} of {len(wrong_B)} are not): "
            f"{sentences[row][:80]!r}, or another sentence of its batch; check the model's "
            "weights, settings and precision"
        )


def _extended(table: Tensor, size: int, rows: dict[int, list[int]]) -> Tensor:
    """Return ``table`` with at least ``size`` rows; each row of ``rows`` is the mean of the rows named for it."""
    extended = table.detach().new_zeros(max(size, len(table)), *table.shape[1:])
    extended[: len(table)] = table.detach()
    for row, pieces in rows.items():
        extended[row] = table.detach()[pieces].mean(0)
    return extended
