"""The model card of a run: the hub reads it, its code loads the model, and its scores are those of the run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

from tests.scripts import Run
from tests.tolerances import FLOAT32
from tsdae import SentenceEncoder

FLAGS = (
    "--corpus text.txt --model model --batch-size 2 --heldout 2 --steps 2 --eval-every 1 --precision fp32 --output run"
)
SENTENCES = ["A man plays a guitar.", "Dogs run."]


def blocks(folder: Path) -> list[str]:
    card = (folder / "README.md").read_text(encoding="utf-8")
    return [code.replace("PATH", str(folder)) for code in re.findall(r"```python\n(.*?)```", card, re.S)]


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
def test_the_code_of_a_card_gives_the_runs_vectors(pooling: str, run: Run, place: Path) -> None:
    assert run("train", f"{FLAGS} --pooling {pooling}").code == 0
    expected = SentenceEncoder.from_pretrained("run/encoder").encode(SENTENCES)
    for reader in ("tsdae", "transformers"):
        (code,) = [block for block in blocks(place / "run" / "encoder") if f"from {reader} import" in block]
        names: dict[str, np.ndarray] = {}
        exec(code, names)
        np.testing.assert_allclose(np.asarray(names["vectors"]), expected, **FLOAT32)


@pytest.mark.reference
def test_sentence_transformers_reads_it_as_the_card_says(run: Run, place: Path) -> None:
    assert run("train", FLAGS).code == 0
    names: dict[str, np.ndarray] = {}
    exec(blocks(place / "run" / "encoder")[0], names)
    np.testing.assert_allclose(
        names["vectors"], SentenceEncoder.from_pretrained("run/encoder").encode(SENTENCES), **FLOAT32
    )


def test_the_hub_reads_its_head(run: Run, place: Path) -> None:
    """The licence of the initial model is passed on."""
    (place / "model" / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# A model\n")
    assert run("train", f"{FLAGS} --evaluate pairs.tsv --steps 8 --learning-rate 0.01").code == 0
    data = ModelCard.load(place / "run" / "encoder" / "README.md").data
    assert (data.library_name, data.pipeline_tag) == ("sentence-transformers", "sentence-similarity")
    assert "tsdae" in data.tags
    assert data.license == "cc-by-4.0"
    (result,) = data.eval_results
    *untrained, trained = json.loads((place / "run" / "evaluation.json").read_text())
    assert all(row["pairs"]["spearman"] != trained["pairs"]["spearman"] for row in untrained), "the premise"
    assert result.metric_value == round(trained["pairs"]["spearman"], 2)
    assert result.metric_type == "spearman_cosine"


def test_it_tells_text_steps_and_scores(run: Run, place: Path) -> None:
    assert run("train", f"{FLAGS} --evaluate pairs.tsv --noise-ratio 0.3").code == 0
    card = (place / "run" / "encoder" / "README.md").read_text(encoding="utf-8")
    settings = json.loads((place / "run" / "config.json").read_text())
    for line in ("| text | text.txt |", "| noise | delete 0.3 |", "| steps | 2 of 2 sentences |"):
        assert line in card
    assert settings["corpus_fingerprint"][:16] in card
    rows = json.loads((place / "run" / "evaluation.json").read_text())
    assert len(rows) > 1
    for row in rows:
        assert f"| {row['pairs']['spearman']:.2f} [" in card
    assert "| noisy_retrieval | " in card


def test_it_tells_what_was_done_and_not_what_was_asked(run: Run, place: Path) -> None:
    """The steps of a run that stopped early, no noise that the objective did not read, no metric that went missing."""
    (place / "mine.py").write_text(
        "def score(encoder, values=[]):\n    values.append(-float(len(values)))\n"
        "    return {'score': values[-1]} | ({'once': 1.0} if len(values) < 3 else {})\n"
    )
    flags = FLAGS.replace("--steps 2", "--steps 9")
    flags += " --objective simcse --evaluate mine.py:score --early-stop score --patience 4"
    result = run("train", flags)
    assert result.code == 0, result.err
    card = (place / "run" / "encoder" / "README.md").read_text(encoding="utf-8")
    assert "| steps | 4 of 2 sentences |" in card
    assert "| noise |" not in card
    assert "| score | " in card
    assert "once" not in card
