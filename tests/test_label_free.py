"""The study of metrics without labels: how well each tells what labels would have said."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from benchmarks.label_free import guide


def test_a_guide_is_rank_correlation_moves_and_loss() -> None:
    """Four runs of two settings: alignment (the lower the better) follows dev, uniformity does not."""
    dev = [[70.0, 74.0, 72.0], [71.0, 73.0, 71.0], [60.0, 61.0, 62.0], [59.0, 64.0, 60.0]]
    uniformity = [[-1.0, -2.0, -3.0], [-2.0, -1.0, -2.5], [-1.0, -3.0, -2.0], [-2.0, -3.0, -1.0]]
    runs = [
        [{"step": 1, "stsb_dev": d, "alignment": 100 - d, "uniformity": u} for d, u in zip(*run, strict=True)]
        for run in zip(dev, uniformity, strict=True)
    ]
    assert guide("perplexity", runs, ["a", "a", "b", "b"]) is None
    alignment, other = (guide(name, runs, ["a", "a", "b", "b"]) for name in ("alignment", "uniformity"))
    assert alignment is not None
    assert other is not None
    assert alignment.correlation == pytest.approx(1.0)
    assert (alignment.agreement, alignment.regret) == (1.0, 0.0)
    expected = spearmanr([-run[-1] for run in uniformity], [run[-1] for run in dev]).statistic
    assert other.correlation == pytest.approx(expected)
    signs = [
        (np.sign(u[k] - u[k + 1]), np.sign(d[k + 1] - d[k]))
        for u, d in zip(uniformity, dev, strict=True)
        for k in (0, 1)
    ]
    assert 0 < other.agreement == np.mean([a == b for a, b in signs]) < 1
    kept = [d[int(np.argmin(u))] for u, d in zip(uniformity, dev, strict=True)]
    assert other.regret == pytest.approx(np.mean([max(d) - k for d, k in zip(dev, kept, strict=True)]))
    assert (other.runs, other.moves) == (4, 8)
    assert other.ci95[0] <= other.correlation <= other.ci95[1]


def test_a_run_that_collapsed_is_no_guide() -> None:
    """Its last value is undefined, so it has none to be ranked by; what it said before still counts as moves."""
    runs = [[{"step": 1, "stsb_dev": dev, "alignment": 100 - dev}] for dev in (70.0, 74.0, 60.0, 61.0)]
    groups = ["a", "a", "b", "b"]
    expected = guide("alignment", runs, groups)
    for score, value in ((math.nan, 1.0), (1.0, math.nan)):
        end = {"step": 3, "stsb_dev": score, "alignment": value}
        assert guide("alignment", [*runs, [end]], [*groups, "c"]) == expected
        late = [{"step": 1, "stsb_dev": 1.0, "alignment": 0.0}, {"step": 2, "stsb_dev": 2.0, "alignment": 0.1}, end]
        found = guide("alignment", [*runs, late], [*groups, "c"])
        assert expected is not None
        assert found is not None
        assert (found.runs, found.correlation, found.ci95) == (4, expected.correlation, expected.ci95)
        assert (found.moves, found.agreement) == (1, 0.0)
    assert guide("alignment", [[end]], ["c"]) is None
