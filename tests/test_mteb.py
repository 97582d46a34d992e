"""A saved folder in mteb (extra [mteb]): the one line of the user's guide, on a task whose data are given by hand.

mteb's own data come from the hub: not run.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset

from tests import tiny
from tsdae.evaluation.pairs import Pairs
from tsdae.evaluation.sts import evaluate_sts

pytestmark = pytest.mark.mteb


@pytest.mark.filterwarnings("ignore")  # its own, of names that it has itself replaced
def test_a_saved_folder_scores_in_mteb_as_here(tmp_path: Path) -> None:
    mteb = pytest.importorskip("mteb", reason="the extra [mteb] is not installed")
    st = pytest.importorskip("sentence_transformers", reason="the extra [reference] is not installed")
    encoder = tiny.encoder("mean")
    encoder.save_pretrained(tmp_path / "model")
    scores = np.array([5.0, 0.0, 2.0, 4.5, 1.0, 3.0, 2.5])
    pairs = Pairs(tiny.SENTENCES[:-1], tiny.SENTENCES[1:], scores)
    task = mteb.get_task("STSBenchmark.v2")
    columns = {"sentence1": pairs.first, "sentence2": pairs.second, "score": scores.tolist()}
    given = Dataset.from_dict(columns)
    task.dataset, task.data_loaded = {"default": dict.fromkeys(task.eval_splits, given)}, True
    found = mteb.evaluate(st.SentenceTransformer(str(tmp_path / "model"), device="cpu"), task, cache=None)
    theirs = found.task_results[0].scores["test"][0]
    ours = evaluate_sts(encoder, pairs)
    assert [theirs["cosine_spearman"], theirs["cosine_pearson"]] == pytest.approx(
        [ours.spearman / 100, ours.pearson / 100], abs=1e-6
    )
    assert abs(ours.spearman - ours.pearson) > 0.1, "the premise"
