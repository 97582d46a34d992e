"""Whitening: vectors centred and scaled along their principal axes, so that each direction counts alike.

Su et al. 2021 (arXiv 2103.15316), Huang et al. 2021: no training, yet far better than a language model's own vectors,
which share a few directions that have nothing to do with meaning.

# B sentences, D hidden size, K axes
"""

from __future__ import annotations

import numpy as np

NEGLIGIBLE = 1e-12  # times the mean squared length: a variance of this size is the rounding of float32


class Whitening:
    """x -> (x - mean) U / sqrt(variance), of the mean and the principal axes U of the vectors that it is fitted on.

        whitening = Whitening(encoder.encode(text))
        evaluate_sts(lambda sentences: whitening(encoder.encode(sentences)), pairs).spearman

    vectors_BD: of two sentences or more. Axes along which these vectors do not vary are left out: there are at most
    ``len(vectors_BD) - 1`` others, see ``axes``. ValueError if they do not vary at all, or are not finite.
    """

    def __init__(self, vectors_BD: np.ndarray) -> None:
        if not np.isfinite(vectors_BD).all():
            raise ValueError("whitening cannot be fitted: vectors have NaN or infinite values")
        self.mean_D = vectors_BD.mean(axis=0, dtype=np.float64)
        variance_D, axes_DD = np.linalg.eigh(np.atleast_2d(np.cov(vectors_BD, rowvar=False, dtype=np.float64)))
        varies_D = variance_D > NEGLIGIBLE * np.square(vectors_BD).sum(axis=1, dtype=np.float64).mean()
        if not varies_D.any():
            raise ValueError("whitening cannot be fitted: all vectors of its text are equal")
        self.map_DK = axes_DD[:, varies_D] / np.sqrt(variance_D[varies_D])

    @property
    def axes(self) -> int:
        """Return K, the length of a whitened vector."""
        return self.map_DK.shape[1]

    def __call__(self, vectors_BD: np.ndarray) -> np.ndarray:
        """Return whitened vectors, float32 [B, K]."""
        return ((vectors_BD - self.mean_D) @ self.map_DK).astype(np.float32)
