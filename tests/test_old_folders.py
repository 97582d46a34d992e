"""A run folder and a prepared corpus that an earlier version wrote (commit 660a563): they resume and open.

Made by that version's scripts from text.txt and model/:
    train.py --corpus text.txt --model model --batch-size 2 --heldout 2 --precision fp32 --device cpu --threads 1
        --eval-every 3 --learning-rate 1e-2 --steps 6 --save-every 3 --keep 1 --output run
    a copy of run resumed with --steps 9, of which resumed.safetensors is the encoder
    prepare.py text.txt --model model --output corpus --heldout 2
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from tests import tiny
from tests.scripts import Run
from tests.tolerances import FLOAT32
from tsdae import SentenceEncoder

OLD = Path(__file__).parent / "data" / "before_folders"


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


def test_a_run_of_an_earlier_version_resumes(old: Path, run: Run) -> None:
    before = SentenceEncoder.from_pretrained("run/encoder").encode(tiny.SENTENCES)
    result = run("train", "--resume --output run --steps 9")
    assert result.code == 0, result.err
    assert "resuming after step 6" in result.err
    after = SentenceEncoder.from_pretrained("run/encoder")
    shutil.copy("resumed.safetensors", "run/encoder/model.safetensors")
    expected = SentenceEncoder.from_pretrained("run/encoder")
    assert np.abs(after.encode(tiny.SENTENCES) - before).max() > 1e-3, "the premise: three more steps change something"
    np.testing.assert_allclose(after.encode(tiny.SENTENCES), expected.encode(tiny.SENTENCES), **FLOAT32)
    settings = json.loads(Path("run/config.json").read_text())
    assert (settings["finished"], settings["best"], settings["batch_size"]) == (9, "heldout_loss", 2)


def test_a_corpus_of_an_earlier_version_opens_and_gives_the_batches_of_its_text(old: Path, run: Run) -> None:
    flags = "--model model --recipe paper --steps 3 --precision fp32 --device cpu --threads 1"
    assert run("train", f"--corpus corpus {flags} --output prepared").code == 0
    assert run("train", f"--corpus text.txt --heldout 2 {flags} --output read").code == 0
    first, second = (load_file(f"{name}/encoder/model.safetensors") for name in ("prepared", "read"))
    assert all(np.array_equal(first[name].numpy(), second[name].numpy()) for name in first)
