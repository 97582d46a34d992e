"""The noise of TSDAE: x~ = noise(x) (paper, section 3), five kinds, and the random numbers they draw.

A noise is a function ``f(tokens, word_T, draw, ratio, vocabulary) -> Packed`` on a whole batch:

    tokens      Packed, numpy: the clean sentences, special tokens included
    word_T      int, the word each token belongs to, counted through the batch; -1 for special tokens
    draw        a `Draw`: ``draw.words(stream)`` [W] and ``draw.tokens(stream)`` [T] are uniform numbers in [0, 1);
                ``draw.first_W`` is the first token of each word, ``draw.sentence_W`` the sentence of each word, and
                ``draw.step_B`` the optimiser steps done when the sentence is read (0 outside training)
    ratio       share of words to change, in [0, 1); the five noises below also take one for each word, [W]
    vocabulary  `tokenization.Vocabulary`: mask_id, ordinary_ids, size

A ratio that changes over training is a noise of one's own:

    def growing(tokens, word_T, draw, ratio, vocabulary):
        ratio_B = ratio * np.minimum(1, draw.step_B / 1000)
        return delete(tokens, word_T, draw, ratio_B[draw.sentence_W], vocabulary)

A class in place of a function is called with the `DenoisingDataset` that is trained on (its ``corpus`` and
``vocabulary`` are there), an object with a method ``build`` likewise; what they return is the noise.

Only deletion was published with code. `mask`, `replace`, `swap` and `insert` are named in the paper's comparison of
noise types but not defined there: what ``ratio`` means for them is our reading, given in each docstring.

Confusion to avoid: ratio 0.6 means that 60 % of the words are *deleted*. (Examples of other libraries keep 60 % under
the same name.)

# B sentences, T packed tokens, W words, C chosen words, U spans of tokens
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tsdae.packing import Packed, ranges
from tsdae.text.tokenization import Vocabulary
from tsdae.utils.rng import keyed, uniform

Ratio = float | np.ndarray  # one for all words, or one for each
Noise = Callable[[Packed[np.ndarray], np.ndarray, "Draw", float, Vocabulary], Packed[np.ndarray]]

VIEW = 0x71E3  # a part of the key: the second and later noisings of a sentence have draws of their own


class Draw:
    """Uniform numbers in [0, 1) that depend on (seed, epoch, sentence, word, stream, view) and on nothing else.

    So a sentence gets the same noise in any batch, worker or process, and a resumed run continues exactly.
    ``first_W``: the first token of each word; ``sentence_W``: the sentence of each word; ``step_B``: see the module.
    ``stream`` numbers the independent draws that one noise makes, ``view`` the noisings of one sentence.
    """

    def __init__(
        self,
        seed: int,
        epoch_B: np.ndarray,
        row_B: np.ndarray,
        tokens: Packed[np.ndarray],
        word_T: np.ndarray,
        view: int = 0,
        step_B: np.ndarray | None = None,
    ) -> None:
        self.step_B = np.zeros(len(tokens), np.int64) if step_B is None else step_B
        key_B = keyed(seed, epoch_B, row_B, *((VIEW, view) if view else ()))
        sentence_T = np.repeat(np.arange(len(tokens)), tokens.lengths_B)
        begins_T = (word_T >= 0) & (np.diff(word_T, prepend=-1) != 0)
        self.first_W = np.flatnonzero(begins_T)
        self.sentence_W = sentence_T[self.first_W]
        self._key_W, self._key_T = key_B[self.sentence_W], key_B[sentence_T]
        words_B = np.bincount(self.sentence_W, minlength=len(tokens))
        self._place_W = ranges(np.zeros_like(words_B), words_B)  # a word's number within its sentence
        self._place_T = ranges(np.zeros_like(tokens.lengths_B), tokens.lengths_B)

    def words(self, stream: int = 0) -> np.ndarray:
        """Return one number per word, [W]."""
        return uniform(keyed(self._key_W, 2 * stream, self._place_W))

    def tokens(self, stream: int = 0) -> np.ndarray:
        """Return one number per token, [T], independent of `words` of the same stream: its keys are the odd ones."""
        return uniform(keyed(self._key_T, 2 * stream + 1, self._place_T))


def delete(
    tokens: Packed[np.ndarray], word_T: np.ndarray, draw: Draw, ratio: Ratio, vocabulary: Vocabulary
) -> Packed[np.ndarray]:
    """Delete each word with probability ``ratio``; if none survives, the word with the largest draw stays.

    The paper's noise; its best ratio on STS-B is 0.6 (section 3). A word goes with all its tokens.
    """
    draw_W = draw.words()
    keep_W = draw_W >= ratio
    survivors_B = np.bincount(draw.sentence_W[keep_W], minlength=len(tokens))
    largest_B = np.zeros(len(tokens))
    np.maximum.at(largest_B, draw.sentence_W, draw_W)
    keep_W |= (survivors_B == 0)[draw.sentence_W] & (draw_W == largest_B[draw.sentence_W])
    keep_T = ~of_words(~keep_W, word_T)  # not of_words(keep_W): special tokens are of no word, and stay
    return Packed.from_lengths(tokens.token_ids_T[keep_T], sums(keep_T, tokens))


def mask(
    tokens: Packed[np.ndarray], word_T: np.ndarray, draw: Draw, ratio: Ratio, vocabulary: Vocabulary
) -> Packed[np.ndarray]:
    """Mask each word with probability ``ratio``: every token of it becomes the mask token. Our reading."""
    if vocabulary.mask_id is None:
        raise ValueError(
            "noise 'mask' needs a mask token, and the tokenizer has none; use delete, replace, swap or insert"
        )
    chosen_T = of_words(draw.words() < ratio, word_T)
    return Packed(np.where(chosen_T, vocabulary.mask_id, tokens.token_ids_T), tokens.boundaries, tokens.longest)


def replace(
    tokens: Packed[np.ndarray], word_T: np.ndarray, draw: Draw, ratio: Ratio, vocabulary: Vocabulary
) -> Packed[np.ndarray]:
    """Replace each word with probability ``ratio``: every token of it by a random ordinary token. Our reading."""
    chosen_T = of_words(draw.words() < ratio, word_T)
    random_T = random_tokens(draw.tokens(1), vocabulary)
    return Packed(np.where(chosen_T, random_T, tokens.token_ids_T), tokens.boundaries, tokens.longest)


def swap(
    tokens: Packed[np.ndarray], word_T: np.ndarray, draw: Draw, ratio: Ratio, vocabulary: Vocabulary
) -> Packed[np.ndarray]:
    """Choose each word with probability ``ratio``; the chosen words of a sentence change places at random.

    Our reading. A random order leaves some words where they were (one of them on average).
    """
    chosen_C = np.flatnonzero(draw.words() < ratio)
    order_C = np.lexsort((draw.words(1)[chosen_C], draw.sentence_W[chosen_C]))  # at random within each sentence
    # Words differ in length, so spans are permuted: U of them, every word, and every special token on its own.
    begins_U = np.flatnonzero((word_T < 0) | (np.diff(word_T, prepend=-1) != 0))
    length_U = np.diff(begins_U, append=len(word_T))
    source_U = np.arange(len(begins_U))
    span_C = np.searchsorted(begins_U, draw.first_W[chosen_C])
    source_U[span_C] = span_C[order_C]
    rows_T = ranges(begins_U[source_U], length_U[source_U])
    return Packed(tokens.token_ids_T[rows_T], tokens.boundaries, tokens.longest)


def insert(
    tokens: Packed[np.ndarray], word_T: np.ndarray, draw: Draw, ratio: Ratio, vocabulary: Vocabulary
) -> Packed[np.ndarray]:
    """After each word, with probability ``ratio``, insert one random ordinary token. Our reading."""
    chosen_T = of_words(draw.words() < ratio, word_T)
    last_T = np.diff(word_T, append=-1) != 0  # last token of its word
    copies_T = 1 + (chosen_T & last_T)
    rows = np.repeat(np.arange(len(word_T)), copies_T)  # the last token of a chosen word twice
    inserted = np.diff(rows, prepend=-1) == 0  # its second copy becomes the new token
    ids = np.where(inserted, random_tokens(draw.tokens(1), vocabulary)[rows], tokens.token_ids_T[rows])
    return Packed.from_lengths(ids, sums(copies_T, tokens))


NOISES: dict[str, Noise] = {"delete": delete, "mask": mask, "replace": replace, "swap": swap, "insert": insert}


def of_words(chosen_W: np.ndarray, word_T: np.ndarray) -> np.ndarray:
    """Return bool [T], True for the tokens of the chosen words; False for special tokens."""
    return np.append(chosen_W, False)[word_T]  # word -1, a special token, reads the appended False


def sums(values_T: np.ndarray, tokens: Packed[np.ndarray]) -> np.ndarray:
    """Return the sum over the tokens of each sentence, int64 [B]."""
    return np.add.reduceat(values_T, tokens.boundaries[:-1], dtype=np.int64)


def random_tokens(draw_T: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Return an ordinary token id for each number in [0, 1), all equally likely."""
    ids: np.ndarray = vocabulary.ordinary_ids[(draw_T * len(vocabulary.ordinary_ids)).astype(np.int64)]
    return ids
