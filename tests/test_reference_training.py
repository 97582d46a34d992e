"""What sentence-transformers' own training does with our folders, and what it loses of a TSDAE run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests import tiny
from tests.test_reference import write_folder
from tsdae import TSDAE, DenoisingDataset, SentenceEncoder, TrainConfig, train

pytestmark = pytest.mark.reference


@pytest.fixture(autouse=True)
def _installed() -> None:
    pytest.importorskip("sentence_transformers", reason="the extra [reference] is not installed")
    pytest.importorskip("accelerate", reason="the extra [reference] is not installed")


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """The encoder folder of a short run of ours."""
    encoder = SentenceEncoder.from_pretrained(write_folder(tmp_path / "start"))
    settings = TrainConfig(steps=5, precision="fp32", device="cpu", eval_every=0, output=str(tmp_path / "run"))
    train(TSDAE(encoder), DenoisingDataset(tiny.SENTENCES, encoder.tokenizer), settings)
    return tmp_path / "run" / "encoder"


def trainer(model: Any, loss: Any, columns: dict[str, list[Any]], folder: Path, steps: int = 20) -> Any:
    """sentence-transformers' trainer on the CPU, quiet."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments

    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="steps",
        save_steps=steps,
        dataloader_pin_memory=False,
    )
    return SentenceTransformerTrainer(model, arguments, train_dataset=Dataset.from_dict(columns), loss=loss)


@pytest.mark.filterwarnings("ignore")  # the trainer's own
def test_the_folder_goes_on_to_supervised_training_and_to_distillation(ours: Path, tmp_path: Path) -> None:
    """The article's next steps: 20 steps of MultipleNegativesRankingLoss, then as the teacher of a student."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import MSELoss, MultipleNegativesRankingLoss

    model = SentenceTransformer(str(ours), device="cpu")
    before = model.encode(tiny.SENTENCES)
    np.testing.assert_allclose(before, SentenceEncoder.from_pretrained(ours).encode(tiny.SENTENCES), rtol=0, atol=1e-5)
    pairs = {"anchor": tiny.SENTENCES * 4, "positive": tiny.SENTENCES[1:] * 4 + tiny.SENTENCES[:4]}
    trainer(model, MultipleNegativesRankingLoss(model), pairs, tmp_path / "mnrl").train()
    after = model.encode(tiny.SENTENCES)
    assert np.abs(after - before).max() > 1e-3
    model.save_pretrained(str(tmp_path / "supervised"))
    again = SentenceEncoder.from_pretrained(tmp_path / "supervised")
    np.testing.assert_allclose(again.encode(tiny.SENTENCES), after, rtol=0, atol=1e-5)

    student = SentenceTransformer(str(write_folder(tmp_path / "student")), device="cpu")
    lessons = {"sentence": tiny.SENTENCES * 4, "label": after.tolist() * 4}

    def distance() -> float:
        return float(np.square(student.encode(tiny.SENTENCES) - after).mean())

    start = distance()
    trainer(student, MSELoss(student), lessons, tmp_path / "distilled").train()
    assert distance() < 0.9 * start


@pytest.mark.filterwarnings("ignore")  # the trainer's own
def test_claim_the_decoder_is_lost_at_checkpoints(tmp_path: Path) -> None:
    """sentence-transformers 6.2.0, 23 November 2026: its trainer's checkpoints hold the encoder, and nothing of the
    decoder's own weights; a resumed run starts with a new cross-attention. Ours writes them."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import DenoisingAutoEncoderLoss

    model = SentenceTransformer(str(write_folder(tmp_path / "start")), device="cpu")
    loss = DenoisingAutoEncoderLoss(model)
    columns = {"noisy": [text.split()[0] for text in tiny.SENTENCES], "text": tiny.SENTENCES}
    trainer(model, loss, columns, tmp_path / "run", steps=2).train()
    written = {name for path in (tmp_path / "run").rglob("*.safetensors") for name in load_file(path)}
    assert any("word_embeddings" in name for name in written), "a checkpoint was written"
    assert any("crossattention" in name for name, _ in loss.decoder.named_parameters())
    assert not any("crossattention" in name for name in written)

    ours = TSDAE(SentenceEncoder.from_pretrained(tmp_path / "start"))
    ours.save_decoder(tmp_path / "decoder.safetensors")
    assert any(name.startswith("crosses.") for name in load_file(tmp_path / "decoder.safetensors"))


TWO_PROCESSES = """
import sys, warnings
from pathlib import Path
import torch
warnings.filterwarnings("ignore")
sys.path.insert(0, sys.argv[2])
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import DenoisingAutoEncoderLoss, MultipleNegativesRankingLoss
from tests import tiny
from tests.test_reference_training import trainer

folder = Path(sys.argv[1])
columns = {"noisy": [text.split()[0] for text in tiny.SENTENCES], "text": tiny.SENTENCES}
for kind in (DenoisingAutoEncoderLoss, MultipleNegativesRankingLoss):
    model = SentenceTransformer(str(folder / "start"), device="cpu")
    torch.manual_seed(0)
    loss = kind(model)
    run = trainer(model, loss, columns, folder / kind.__name__, steps=4)
    run.train()
    weights = {name: parameter.detach().clone() for name, parameter in loss.named_parameters()}
    torch.save(weights, folder / f"{kind.__name__}-{run.accelerator.process_index}.pt")
"""


def test_claim_its_processes_train_models_that_drift_apart(tmp_path: Path) -> None:
    """sentence-transformers 6.2.0, 23 November 2026: its trainer puts the model that DistributedDataParallel wraps in
    place of a loss's ``model``; this loss calls it ``encoder``, so no gradient is ever averaged over processes."""
    write_folder(tmp_path / "start")
    (tmp_path / "two.py").write_text(TWO_PROCESSES)
    root = str(Path(__file__).parent.parent)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(tmp_path / "two.py"), str(tmp_path), root]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]

    def differ(loss: str) -> list[bool]:
        first, second = (torch.load(tmp_path / f"{loss}-{rank}.pt", weights_only=True) for rank in (0, 1))
        return [not torch.equal(first[name], second[name]) for name in first]

    assert not any(differ("MultipleNegativesRankingLoss")), "with another loss its processes agree"
    assert np.mean(differ("DenoisingAutoEncoderLoss")) > 0.9, "all but the pooler, which nothing trains"
