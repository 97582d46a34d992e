"""The published MiniLM on STS-B: figures that are known, and vectors that another library computes too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.runs import assert_same_run, rows
from tests.scripts import SCRIPTS
from tests.tolerances import FLOAT32
from tsdae.encoder import SentenceEncoder
from tsdae.evaluation.pairs import load_stsb
from tsdae.evaluation.sts import evaluate_sts
from tsdae.hub import downloads as assets
from tsdae.hub.auto_encoder import load_encoder

pytestmark = pytest.mark.real
NO_REFERENCE = "the extra [reference], sentence-transformers, is not installed"


@pytest.mark.parametrize(("pooling", "dev", "test"), [("mean", 86.72, 82.03), ("cls", 79.73, 73.50)])
def test_known_figures_of_minilm(pooling: str, dev: float, test: float) -> None:
    """Spearman x 100; mean pooling is how the model was published."""
    encoder = SentenceEncoder.from_pretrained(assets.fetch(assets.MINILM), pooling)
    splits = load_stsb()
    assert (len(splits["dev"]), len(splits["test"])) == (1500, 1379)
    figures = [evaluate_sts(encoder, splits[split], intervals=False).spearman for split in ("dev", "test")]
    assert [round(figure, 2) for figure in figures] == [dev, test]


@pytest.mark.mpnet
def test_known_figures_of_mpnet() -> None:
    """A family without a hand-written encoder, read through transformers with the folder's own pooling."""
    encoder = load_encoder("all-mpnet-base-v2")
    splits = load_stsb()
    figures = [evaluate_sts(encoder, splits[split], intervals=False).spearman for split in ("dev", "test")]
    assert figures == pytest.approx([88.10, 83.42], abs=0.01)


def sentences() -> list[str]:
    """1,000 distinct ones of STS-B."""
    train = load_stsb()["train"]
    return list(dict.fromkeys(train.first + train.second))[:1000]


@pytest.mark.reference
def test_vectors_of_minilm_equal_sentence_transformers() -> None:
    reference = pytest.importorskip("sentence_transformers", reason=NO_REFERENCE)
    folder = assets.fetch(assets.MINILM)
    theirs = reference.SentenceTransformer(str(folder), device="cpu")
    expected = theirs.encode(sentences(), show_progress_bar=False)
    assert len(expected) == 1000
    np.testing.assert_allclose(SentenceEncoder.from_pretrained(folder).encode(sentences()), expected, **FLOAT32)


LOAD = """
import sys
import numpy as np
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu")
np.save(sys.argv[2], model.encode(["a man plays the guitar", "Dogs bark."], show_progress_bar=False))
"""


@pytest.mark.reference
def test_saved_minilm_is_loaded_silently(tmp_path: Path) -> None:
    """In a process of its own, as a user would: nothing on the screen, not even a warning."""
    pytest.importorskip("sentence_transformers", reason=NO_REFERENCE)
    encoder = SentenceEncoder.from_pretrained(assets.fetch(assets.MINILM))
    encoder.save_pretrained(tmp_path / "saved")
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "saved"), str(tmp_path / "vectors.npy")],
        env=os.environ | {"TQDM_DISABLE": "1"},  # the bar of loading weights is no report
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    expected = np.load(tmp_path / "vectors.npy")
    np.testing.assert_allclose(encoder.encode(["a man plays the guitar", "Dogs bark."]), expected, **FLOAT32)


def test_minilm_killed_and_resumed_is_minilm_never_stopped(tmp_path: Path) -> None:
    """SIGKILL in a step and in the writing of a checkpoint; dropout on, two threads."""
    flags = "--steps 10 --save-every 4 --eval-every 0 --log-every 1 --precision fp32 --threads 2 --heldout 40"
    flags += " --evaluate none"

    def life(name: str, die: Callable[[Path], bool] | None = None) -> None:
        command = [sys.executable, str(SCRIPTS / "train.py"), *flags.split(), "--resume", "--output", name]
        child = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while die and not die(tmp_path / name):
            assert child.poll() is None, "it has ended before it could be killed"
            time.sleep(0.001)
        if die:
            child.kill()
        assert child.wait(timeout=300) == (-signal.SIGKILL if die else 0)

    life("whole")
    life("run", lambda run: (run / "metrics.jsonl").is_file() and len(rows(run)) >= 2)
    life("run", lambda run: (run / "checkpoints" / "step-00000004.part").exists())
    life("run", lambda run: (run / "checkpoints" / "step-00000008").exists())
    life("run")
    assert_same_run(tmp_path / "whole", tmp_path / "run", best=False)
