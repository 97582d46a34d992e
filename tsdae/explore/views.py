"""What the pages of ``tsdae explore`` show, as plain data: a sentence with some words deleted, seen by two models.

# R sentences of the text, D hidden size, C choices of a ratio and a seed, K neighbours
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from tsdae.autoencoder import TSDAE
from tsdae.commands.neighbours import digits_of, unit_vectors
from tsdae.encoder import SentenceEncoder
from tsdae.evaluation.retrieval import nearest
from tsdae.evaluation.sts import unit
from tsdae.noise import Draw, delete
from tsdae.packing import Packed
from tsdae.text.corpus import Corpus
from tsdae.text.tokenization import decoded, token_ids, truncate

NEIGHBOURS = 5
MAPPED = 300  # sentences of the text that the maps show
EDGE = 1.1  # of a map, whose sentences of the text are within [-1, 1]
FIRST = np.array([0])


class Choice(NamedTuple):
    """A deletion ratio in [0, 1) and a seed of the noise."""

    ratio: float
    seed: int


class PCA(NamedTuple):
    """The two directions in which vectors differ most. share: of their variance, in these two.

    A vector's place is its product with axes_2D, moved by middle_2 and divided by scale.
    """

    axes_2D: np.ndarray
    middle_2: np.ndarray
    scale: float
    share: float

    @classmethod
    def of(cls, unit_RD: np.ndarray) -> PCA:
        """Fit by a singular value decomposition. Signs are such that each axis's largest component is positive."""
        _, spread, axes_DD = np.linalg.svd(unit_RD - unit_RD.mean(0), full_matrices=False)
        axes_2D = axes_DD[:2]
        largest = np.abs(axes_2D).argmax(1)[:, None]
        axes_2D = axes_2D * np.sign(np.take_along_axis(axes_2D, largest, 1))
        places_R2, variance = unit_RD @ axes_2D.T, spread**2
        low_2, high_2 = places_R2.min(0), places_R2.max(0)
        scale = float((high_2 - low_2).max() / 2)
        return cls(axes_2D, (low_2 + high_2) / 2, scale or 1.0, float(variance[:2].sum() / (variance.sum() or 1.0)))

    def places(self, unit_RD: np.ndarray) -> list[list[float]]:
        """Return x and y of each vector; the vectors that were fitted are within [-1, 1]."""
        places_R2 = np.clip((unit_RD @ self.axes_2D.T - self.middle_2) / self.scale, -EDGE, EDGE)
        rounded: list[list[float]] = places_R2.round(3).tolist()
        return rounded


class Side:
    """One of the two models, with its vectors of the text.

    name: as the page shows it. texts: R different sentences, more than there are neighbours.
    """

    def __init__(self, name: str, encoder: SentenceEncoder, texts: list[str]) -> None:
        self.name, self.encoder = f"{name} ({encoder.pooling})", encoder
        self.unit_RD = unit_vectors(name, encoder, texts)
        self.pca = PCA.of(self.unit_RD[:MAPPED])
        row_R = np.arange(len(self.unit_RD[:MAPPED]))
        self.digits = digits_of(nearest(self.unit_RD[row_R], self.unit_RD, row_R, NEIGHBOURS)[1])

    def vectors(self, sentence: str, choices: Sequence[Choice], words: str, max_length: int) -> torch.Tensor:
        """Return the vectors of what stays of a sentence, [C, D], not normalised."""
        corpus = Corpus.build([sentence], self.encoder.tokenizer, words)
        (ids_T,) = corpus.rows(FIRST)[0].sentences()
        kept = [np.array(ids_T)[staying(corpus, choice, max_length, self.encoder)] for choice in choices]
        with torch.inference_mode():
            vectors: torch.Tensor = self.encoder(Packed.from_lists(kept).to(next(self.encoder.parameters()).device))
        return vectors


@dataclass
class Explorer:
    """A text seen by a model before and after training.

        explorer = Explorer(texts, Side("mini", start, texts), Side("runs/001", model.encoder, texts), model)
        explorer.look("A man plays a guitar.", [Choice(0.6, 0)])

    model: writes the sentence again; its encoder is that of ``after``. words, max_length: as in training.
    untrained: why the decoder is not asked; None: it is.
    """

    texts: list[str]
    before: Side
    after: Side
    model: TSDAE
    words: str = "auto"
    max_length: int = 75
    untrained: str | None = None

    def background(self) -> dict[str, Any]:
        """Return what does not depend on a sentence: the text, and each model's name and map of it."""
        sides = [
            {"name": side.name, "places": side.pca.places(side.unit_RD), "share": side.pca.share}
            for side in (self.before, self.after)
        ]
        return {"texts": self.texts, "mapped": MAPPED, "sides": sides, "untrained": self.untrained}

    def look(self, sentence: str, choices: Sequence[Choice]) -> dict[str, Any]:
        """Return the words of a sentence and, for each choice, what stays of them and what the models make of it.

        stays: for each word. written: by the decoder, from the vector of what stays; None if the decoder is untrained.
        near: of both models, the rows of the nearest texts with their cosines; the sentence itself is not among them.
        place: of both models, where its map has the vector.
        ValueError for a sentence without a word.
        """
        sentence = " ".join(sentence.split())
        encoder = self.after.encoder
        special = encoder.vocabulary.front + encoder.vocabulary.tail
        if token_ids([sentence], encoder.tokenizer).token_count <= special:
            raise ValueError("the sentence has no words")
        corpus = Corpus.build([sentence], encoder.tokenizer, self.words)
        clean, word_T = corpus.rows(FIRST)
        tokens = [clean.token_ids_T[word_T == word].tolist() for word in range(word_T.max() + 1)]
        words = [decoded(ids, encoder.tokenizer, skip_special_tokens=False).strip() for ids in tokens]
        kept = [set(word_T[staying(corpus, choice, self.max_length, encoder)].tolist()) for choice in choices]
        stays = [[word in staying_words for word in range(len(words))] for staying_words in kept]
        own_C = np.full(len(choices), self.texts.index(sentence) if sentence in self.texts else -1)
        near, places = [], []
        for side in (self.before, self.after):
            sentence_CD = side.vectors(sentence, choices, self.words, self.max_length)
            unit_CD = unit(sentence_CD.float().cpu().numpy()).astype(np.float32)
            row_CK, cosine_CK = nearest(unit_CD, side.unit_RD, own_C, NEIGHBOURS)
            shown = [[f"{cosine:.{side.digits}f}" for cosine in cosine_K] for cosine_K in cosine_CK]
            near.append([list(zip(*pair, strict=True)) for pair in zip(row_CK.tolist(), shown, strict=True)])
            places.append(side.pca.places(unit_CD))
        written = [None] * len(choices) if self.untrained else self.model.reconstruct(sentence_CD, self.max_length)
        keys = ("stays", "written", "near", "place")
        columns = (stays, written, zip(*near, strict=True), zip(*places, strict=True))
        return {"words": words, "views": [dict(zip(keys, view, strict=True)) for view in zip(*columns, strict=True)]}


def staying(corpus: Corpus, choice: Choice, max_length: int, encoder: SentenceEncoder) -> np.ndarray:
    """Return which tokens of a corpus of one sentence the encoder reads, as their places: deletion, then the limit."""
    clean, word_T = corpus.rows(FIRST)
    places = Packed(np.arange(clean.token_count), clean.boundaries, clean.longest)
    kept = delete(places, word_T, Draw(choice.seed, FIRST, FIRST, clean, word_T), choice.ratio, encoder.vocabulary)
    longest = min(max_length, encoder.bert.config.longest_sentence)
    return truncate(kept, longest, encoder.vocabulary).token_ids_T
