"""Random numbers that are pure functions of integer keys: the same in any batch, worker, process and resumed run.

# B places of an order, or sentences
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, the increment of SplitMix64
FEISTEL_TURNS = 12  # fewer leave neighbours together too often in corpora of a few rows (6: 3 % at 6 rows, measured)


def mix(value: np.ndarray) -> np.ndarray:
    """Return the finaliser of SplitMix64 (Steele, Lea, Flood 2014, constants of Stafford's variant 13), on uint64."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def keyed(*keys: int | np.ndarray) -> np.ndarray:
    """Return a 64-bit hash of integer keys, elementwise: the source of every random choice about data.

    >>> keyed(0, 7)[0] == keyed(0, 7)[0]
    True
    """
    state = np.zeros(1, dtype=np.uint64)
    for key in keys:
        state = mix((state ^ np.atleast_1d(np.asarray(key)).astype(np.uint64)) + GOLDEN)
    return state


def uniform(bits: np.ndarray) -> np.ndarray:
    """Return the upper 53 of 64 bits as a float64 in [0, 1)."""
    return (bits >> np.uint64(11)) * 2.0**-53


def permuted(place_B: np.ndarray, size: int, key_B: np.ndarray) -> np.ndarray:
    """Return where a keyed random permutation of ``range(size)`` sends each place, without storing the permutation.

    A Feistel network (Luby and Rackoff 1988) on the next power of four permutes; places that fall outside ``size``
    are sent on until they fall inside (cycle walking, Black and Rogaway 2002), at most four times on average.
    """
    half_bits = max(1, (int(size - 1).bit_length() + 1) // 2)
    bits, low = np.uint64(half_bits), np.uint64(2**half_bits - 1)
    key_of_turn = [keyed(key_B, turn) for turn in range(FEISTEL_TURNS)]
    value_B = place_B.astype(np.uint64)
    outside = np.arange(len(value_B))
    while len(outside):
        left, right = value_B[outside] >> bits, value_B[outside] & low
        for turn_key_B in key_of_turn:
            left, right = right, left ^ (mix(turn_key_B[outside] ^ right) & low)
        value_B[outside] = (left << bits) | right
        outside = outside[value_B[outside] >= size]
    return value_B.astype(np.int64)


def draws(count: int, training: bool, device: torch.device) -> Tensor:
    """Return uniform numbers in [0, 1) for noise inside the model: new ones in each training step, like dropout's
    masks; in evaluation always the same, so that metrics can be compared.
    """
    generator = None if training else torch.Generator(device).manual_seed(0)
    return torch.rand(count, device=device, generator=generator)
