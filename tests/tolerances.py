"""How far two computations of the same thing may differ, elementwise; the one place where tolerances stand.

They come from the noise floor: what the sums involved lose to rounding, with a margin.
"""

from typing import Any

FLOAT64: dict[str, Any] = {"rtol": 0.0, "atol": 1e-9}
FLOAT32: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}  # relative for numbers above 1
BFLOAT16_RATIO = 2.0  # bfloat16 may err at most this many times as much as plain bfloat16 code, against float64
