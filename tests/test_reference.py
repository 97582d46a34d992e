"""Equal to sentence-transformers where that is right, and what that does differently, shown on its own code.

Each claim about the reference names the version and the day on which it was seen, and fails when upstream mends it.
"""

from __future__ import annotations

import random
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM

from tests import families, tiny
from tests.hf_names import as_ours
from tests.tolerances import FLOAT64
from tsdae import TSDAE, Batch, SentenceEncoder, TrainConfig, train
from tsdae.hub.model_folder import SentenceSettings, write_sentence_settings
from tsdae.objectives.ct import ContrastiveTension

pytestmark = pytest.mark.reference

NOISY = ["man playing the", "dog", "small bird cat are on grass ,", "cooks", "an !"]
CLEAN = tiny.SENTENCES[:5]
CASES = pytest.mark.parametrize(
    ("family", "tie", "pooling"),
    [(family, tie, pooling) for family in ("bert", "roberta") for tie in (True, False) for pooling in ("cls", "mean")],
)


@pytest.fixture(autouse=True)
def _installed() -> None:
    pytest.importorskip("sentence_transformers", reason="the extra [reference] is not installed")


def write_folder(folder: Path, family: str = "bert", pooling: str = "cls", tokenizer: Any = None) -> Path:
    """A random encoder with its language-model head, no dropout; both sides read it."""
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    families.save(folder, family, AutoModelForMaskedLM, pad_token_id=0, max_position_embeddings=40, **off)
    (tokenizer or tiny.tokenizer()).save_pretrained(folder)
    write_sentence_settings(folder, 24, SentenceSettings(pooling, max_length=39))
    return folder


def reference_loss(folder: Path, tie: bool = True, decoder: Path | None = None) -> Any:
    """sentence-transformers' loss on the folder's encoder, its new weights (cross-attention) random too, float64."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import DenoisingAutoEncoderLoss

    encoder = SentenceTransformer(str(folder), device="cpu")
    loss = DenoisingAutoEncoderLoss(encoder, None if tie else str(decoder or folder), tie)
    for name, module in loss.decoder.named_modules():
        if name.endswith("crossattention"):
            tiny.randomise(module, seed=sum(name.encode()))
    assert sum(isinstance(module, nn.Dropout) for module in loss.modules()) > 10
    assert all(module.p == 0.0 for module in loss.modules() if isinstance(module, nn.Dropout))
    return loss.double()


def both(folder: Path, family: str, tie: bool, pooling: str) -> tuple[TSDAE, Any]:
    """Ours and the reference: the encoder and the head from the same folder, the cross-attention copied across."""
    theirs = reference_loss(write_folder(folder, family, pooling), tie)
    ours = TSDAE(SentenceEncoder.from_pretrained(folder), tie).double()
    assert ours.encoder.pooling == pooling
    expected = named_as_ours(ours, family, theirs, lambda parameter: parameter.detach())
    copied = {name: tensor for name, tensor in expected.items() if name.startswith("crosses.")}
    ours.load_state_dict(copied, strict=False)
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, expected[name]), f"{name} was read otherwise"
        assert parameter.std() > 0.1, f"{name} is not random"
    return ours, theirs


def named_as_ours(ours: TSDAE, family: str, theirs: Any, get: Callable[[nn.Parameter], Any]) -> dict[str, Tensor]:
    sides = [
        {name: get(parameter) for name, parameter in module.named_parameters(remove_duplicate=False)}
        for module in (theirs.encoder.transformers_model, theirs.decoder)
    ]
    return as_ours(ours, family, *sides)


def features(batch: Batch) -> list[dict[str, Tensor]]:
    return [families.padded(batch.noisy, 0), families.padded(batch.target, 0)]


@CASES
def test_loss_and_every_gradient(family: str, tie: bool, pooling: str, tmp_path: Path) -> None:
    ours, theirs = both(tmp_path, family, tie, pooling)
    batch = Batch.from_texts(NOISY, CLEAN, ours.encoder.tokenizer)
    tokenized = [theirs.encoder.preprocess(texts) for texts in (NOISY, CLEAN)]
    for their_features, made in zip(tokenized, features(batch), strict=True):
        assert torch.equal(their_features["input_ids"], made["input_ids"])
    assert (tokenized[1]["attention_mask"] == 0).any(), "not ragged"

    loss, expected = ours(batch).mean, theirs(tokenized, None)
    torch.testing.assert_close(loss, expected, **FLOAT64)
    loss.backward()
    expected.backward()
    gradients = named_as_ours(ours, family, theirs, lambda parameter: parameter.grad)
    for name, parameter in ours.named_parameters():
        assert gradients[name].abs().max() > 1e-6, f"the gradient of {name} is zero: nothing would be compared"
        torch.testing.assert_close(
            parameter.grad, gradients[name], **FLOAT64, msg=lambda text, name=name: f"{name}: {text}"
        )

    # The one exception: query and key of the reference's cross-attention, which we do not have. They learn nothing.
    without_use = {n: p for n, p in theirs.decoder.named_parameters() if "crossattention.self.value" not in n}
    without_use = {n: p for n, p in without_use.items() if "crossattention.self." in n}
    assert len(without_use) == 4 * 3, "query and key, weight and bias, in three layers"
    for name, parameter in without_use.items():
        assert parameter.std() > 0.1
        assert parameter.grad.abs().max() < 1e-12, name


def test_contrastive_tension(tmp_path: Path) -> None:
    """Between two encoders that differ, with its example's dot products, and a scale that is not 1."""
    from sentence_transformers import SentenceTransformer, util
    from sentence_transformers.sentence_transformer.losses import ContrastiveTensionLossInBatchNegatives

    kept, thrown = (write_folder(tmp_path / name, name, "mean") for name in ("bert", "roberta"))
    theirs = ContrastiveTensionLossInBatchNegatives(SentenceTransformer(str(kept), device="cpu"), 1.5, util.dot_score)
    theirs.model1 = SentenceTransformer(str(thrown), device="cpu")
    theirs.double()
    ours = TSDAE(SentenceEncoder.from_pretrained(kept)).double()
    objective = ContrastiveTension(ours).double()
    objective.second = SentenceEncoder.from_pretrained(thrown).double()
    objective.log_scale.data = theirs.logit_scale.data.clone()
    batch = Batch.from_texts(CLEAN, CLEAN, ours.encoder.tokenizer)
    loss, expected = objective(ours, batch).mean, theirs([families.padded(batch.target, 0)], None)
    torch.testing.assert_close(loss, expected, **FLOAT64)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(objective.log_scale.grad, theirs.logit_scale.grad, **FLOAT64)
    for encoder, model in ((ours.encoder, theirs.model2), (objective.second, theirs.model1)):
        words = model.transformers_model.get_input_embeddings().weight
        assert words.grad.abs().max() > 1e-6
        torch.testing.assert_close(encoder.bert.embeddings.words.weight.grad, words.grad, **FLOAT64)


@CASES
@pytest.mark.parametrize("batches", [1, 2])
def test_weights_after_twenty_steps(batches: int, family: str, tie: bool, pooling: str, tmp_path: Path) -> None:
    """Our whole training loop against theirs spelled out. Also with each step's sentences split into two batches."""
    ours, theirs = both(tmp_path, family, tie, pooling)
    data, start = tiny.dataset(), {name: p.detach().clone() for name, p in ours.named_parameters()}
    config = TrainConfig(
        steps=20,
        batch_size=4 // batches,
        accumulate=batches,
        learning_rate=1e-3,
        clip=1.0,
        eval_every=0,
        precision="fp64",
        device="cpu",
    )
    train(ours, data, config)

    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-3, weight_decay=0.0)
    norms = []
    for step in range(20):
        theirs(features(data.batch(*data.order(4 * step, 4))), None).backward()
        norms.append(nn.utils.clip_grad_norm_(theirs.parameters(), 1.0))
        optimizer.step()
        optimizer.zero_grad()
    assert max(norms) > 1.0, "no gradient was clipped"

    expected = named_as_ours(ours, family, theirs, lambda parameter: parameter.detach())
    for name, parameter in ours.named_parameters():
        assert (parameter - start[name]).abs().max() > 1e-3, f"{name} was not trained"
        computed, wanted = without_key_bias(name, parameter), without_key_bias(name, expected[name])
        torch.testing.assert_close(computed, wanted, **FLOAT64, msg=lambda text, name=name: f"{name}: {text}")


def without_key_bias(name: str, tensor: Tensor) -> Tensor:
    """A key's bias shifts all scores of a query alike, so its true gradient is zero, and Adam divides rounding errors
    by their own size."""
    if not name.endswith("attention.project.bias"):
        return tensor
    query, _, value = tensor.chunk(3)
    return torch.cat([query, value])


def test_claim_its_example_keeps_the_share_that_it_calls_deleted() -> None:
    """sentence-transformers 6.2.0, 23 November 2026: `del_ratio` of the words are kept in the docstring's example."""
    from sentence_transformers.sentence_transformer.losses import DenoisingAutoEncoderLoss

    text = DenoisingAutoEncoderLoss.__init__.__doc__ or ""
    start, end = text.index("def noise_transform"), text.index("train_sentences =")
    example = textwrap.dedent(text[text.rindex("\n", 0, start) : end])

    class Detokenizer:
        def detokenize(self, words: list[str]) -> str:
            return " ".join(words)

    names: dict[str, Any] = {
        "random": random.Random(0),
        "word_tokenize": str.split,
        "TreebankWordDetokenizer": Detokenizer,
    }
    exec(example, names)
    words = [" ".join(f"word{i}" for i in range(40))] * 500
    noisy = names["noise_transform"]({"text": words}, del_ratio=0.9)["noisy"]
    kept = sum(len(text.split()) for text in noisy)
    assert stats.binomtest(kept, 500 * 40, 0.9).pvalue > 1e-6, f"{kept} of 20,000 words are kept at del_ratio=0.9"


def test_claim_weights_changed_in_memory_are_lost(tmp_path: Path) -> None:
    """sentence-transformers 6.2.0, 23 November 2026: a tied decoder is read from disk anew, and then overwrites the
    encoder. So what was trained, or built, in memory starts again from the file. Ours keeps it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import DenoisingAutoEncoderLoss

    theirs = SentenceTransformer(str(write_folder(tmp_path)), device="cpu")
    ours = SentenceEncoder.from_pretrained(tmp_path)
    their_words = theirs.transformers_model.embeddings.word_embeddings.weight.detach()
    our_words = ours.bert.embeddings.words.weight.detach()
    on_disk = our_words.clone()
    assert torch.equal(their_words, on_disk)
    their_words += 1.0
    our_words += 1.0
    DenoisingAutoEncoderLoss(theirs)
    TSDAE(ours)
    assert torch.equal(theirs.transformers_model.embeddings.word_embeddings.weight, on_disk)
    assert torch.equal(ours.bert.embeddings.words.weight, on_disk + 1.0)


def test_claim_the_end_is_never_learned_where_padding_is_the_end_token(tmp_path: Path) -> None:
    """sentence-transformers 6.2.0, 23 November 2026: to a decoder's tokenizer without padding it gives the end token
    as padding, and ignores that as a label. Ours has no padding and learns the end."""
    tokenizer = tiny.tokenizer()
    tokenizer.eos_token, tokenizer.pad_token = "[SEP]", None
    decoder = write_folder(tmp_path / "decoder", tokenizer=tokenizer)
    theirs = reference_loss(write_folder(tmp_path / "encoder"), tie=False, decoder=decoder)
    ours = TSDAE(SentenceEncoder.from_pretrained(tmp_path / "encoder"), tie=False).double()
    batch = Batch.from_texts(["dog"], ["the red dog"], ours.encoder.tokenizer)

    their_logits: list[Tensor] = []
    theirs.decoder.register_forward_hook(lambda *call: their_logits.append(call[-1].logits))
    (their_gradient,) = torch.autograd.grad(theirs(features(batch), None), their_logits)
    hidden_TD = ours.decode(batch.target, ours.encode(batch.noisy))  # a row for each token that is to be predicted
    with mock.patch.object(ours, "decode", return_value=hidden_TD):
        (our_gradient,) = torch.autograd.grad(ours(batch).mean, hidden_TD)
    assert (their_gradient[0] != 0).any(1).tolist() == [True, True, True, False]
    assert (our_gradient != 0).any(1).tolist() == [True, True, True, True]
