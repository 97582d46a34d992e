"""Settings of the whole test suite: no network, an empty cache, no words of progress bars in captured output."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # on tiny tensors threads only wait for each other: ten times slower on a busy machine
os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when the hub's client is imported


@pytest.fixture(autouse=True)
def _away_from_home(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tests do not read the user's cache or ask an index; those marked real use the cache on purpose."""
    if "real" not in request.keywords:
        monkeypatch.setenv("TSDAE_CACHE", str(tmp_path / "tsdae-cache"))
        monkeypatch.setenv("PIP_NO_INDEX", "1")
